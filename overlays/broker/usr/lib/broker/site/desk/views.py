"""The broker's pages, and what gateways and balancers ask."""

import hmac
import json
import logging
import secrets
import sys
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model, views as auth
from django.contrib.auth.decorators import login_required
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.http import Http404, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse_lazy
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from . import throttle, tickets
from .cluster import Cluster
from .forms import NewPerson, Rights
from .middleware import DatabaseAway
from .models import Grant

log = logging.getLogger("desk")
User = get_user_model()


def client_address(request):
    """Whose browser it is. A balancer says for whom it asks; nobody else is believed."""
    peer = request.META.get("HTTP_X_REAL_IP") or request.META.get("REMOTE_ADDR", "")
    if peer in Cluster().addresses("balancer"):
        return request.META.get("HTTP_X_FORWARDED_FOR", peer).split(",")[-1].strip()
    return peer


class Login(auth.LoginView):
    """Asks for name and password. Too many that failed, and it does not even look."""

    template_name = "login.html"
    redirect_authenticated_user = True

    @method_decorator(never_cache)
    def post(self, request, *args, **kwargs):
        self.who = request.POST.get("username", "")[:150].casefold(), client_address(request)
        if throttle.refused(*self.who):
            log.warning("login as %r from %s is refused: too many have failed", *self.who)
            form = self.get_form_class()(request)  # what was typed is not looked at
            response = render(request, self.template_name, {"form": form, "too_many": True}, status=429)
            response["Retry-After"] = str(int(throttle.WINDOW.total_seconds()))
            return response
        return super().post(request, *args, **kwargs)

    def form_valid(self, form):
        throttle.succeeded(*self.who)
        log.info("login as %r from %s", *self.who)
        return super().form_valid(form)

    def form_invalid(self, form):
        throttle.failed(*self.who)
        log.warning("login as %r from %s failed", *self.who)
        return super().form_invalid(form)


class Password(auth.PasswordChangeView):
    template_name = "password.html"
    success_url = reverse_lazy("desktops")


def allowed(user):
    """The desktops that a person may use, in order."""
    names = Cluster().desktops()
    if user.is_staff:
        return names
    granted = set(user.grants.values_list("desktop", flat=True))
    return [n for n in names if n in granted]


def host(request):
    """The name by which the person came here, without a port. It is one of ALLOWED_HOSTS."""
    name = urlsplit("//" + request.get_host()).hostname
    return f"[{name}]" if ":" in name else name


@require_safe
@login_required
def desktops(request):
    cluster = Cluster()
    return render(request, "desktops.html", {"desktops": allowed(request.user), "node": cluster.node, "tunnel": cluster.port("tunnel")})


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def desktop(request, name):
    """Asks whether to open a desktop; the answer leads to the gateway with a ticket. The
    ticket is in the address's fragment, which browsers send to nobody."""
    if name not in allowed(request.user):
        raise Http404
    cluster = Cluster()
    if request.method != "POST":
        # Where a desktop's connection was lost, its page comes here to go on at once.
        return render(request, "desktop.html", {"name": name, "again": "again" in request.GET, "tunnel": cluster.port("tunnel")})
    if "tunnel" in request.POST:
        ticket = tickets.issue(request.user, name, settings.TUNNEL_TICKET_SECONDS)
        log.info("a ticket for a program of %r to %s", request.user.username, name)
        return render(request, "tunnel.html", {"name": name, "ticket": ticket, "host": host(request), "port": cluster.port("tunnel"), "seconds": settings.TUNNEL_TICKET_SECONDS})
    ticket = tickets.issue(request.user, name, settings.TICKET_SECONDS)
    log.info("a ticket for %r to %s", request.user.username, name)
    response = HttpResponse(status=303)
    response["Location"] = f"https://{host(request)}:{cluster.port('gateway')}/desktop.html#ticket={ticket}&name={name}&broker={cluster.port('https')}"
    return response


def staff_only(view):
    """Only for administrators; others are told so."""

    @login_required
    def checked(request, *args, **kwargs):
        if not request.user.is_staff:
            return forbidden(request)
        return view(request, *args, **kwargs)

    return checked


def new_password():
    return secrets.token_urlsafe(12)


@require_http_methods(["GET", "HEAD", "POST"])
@staff_only
def people(request):
    """Everybody, and a form for one more."""
    form, password = NewPerson(request.POST or None), ""
    if request.method == "POST" and form.is_valid():
        password = new_password()
        added = form.save(commit=False)
        added.set_password(password)
        added.save()
        log.info("%r has added %r", request.user.username, added.username)
        return render(request, "person_added.html", {"person": added, "password": password})
    everybody = User.objects.order_by("username").prefetch_related("grants")
    return render(request, "people.html", {"people": everybody, "form": form})


@require_http_methods(["GET", "HEAD", "POST"])
@staff_only
def person(request, number):
    """What somebody may do."""
    who = get_object_or_404(User, pk=number)
    names = Cluster().desktops()
    before = {"is_active": who.is_active, "is_staff": who.is_staff, "desktops": [g.desktop for g in who.grants.all()]}
    if request.method != "POST":
        return render(request, "person.html", {"person": who, "form": Rights(initial=before, names=names)})
    if "reset" in request.POST:
        password = new_password()
        who.set_password(password)  # which ends their sessions, too
        who.save(update_fields=["password"])
        log.info("%r has given %r a new password", request.user.username, who.username)
        return render(request, "person_added.html", {"person": who, "password": password})
    form = Rights(request.POST, names=names)
    if form.is_valid() and who == request.user and not (form.cleaned_data["is_active"] and form.cleaned_data["is_staff"]):
        form.add_error(None, "You cannot take your own rights away: another administrator can.")
    if not form.is_valid():
        return render(request, "person.html", {"person": who, "form": form})
    with transaction.atomic():
        who.is_active, who.is_staff = form.cleaned_data["is_active"], form.cleaned_data["is_staff"]
        who.save(update_fields=["is_active", "is_staff"])
        wanted = set(form.cleaned_data["desktops"])
        who.grants.filter(desktop__in=set(names) - wanted).delete()
        Grant.objects.bulk_create([Grant(user=who, desktop=n) for n in wanted], ignore_conflicts=True)
    log.info("%r has changed the rights of %r", request.user.username, who.username)
    return redirect("people")


@csrf_exempt
@require_POST
def redeem(request):
    """Tells a gateway which desktop a ticket leads to, once. The gateway shows the key
    that brokers and gateways of the cluster share."""
    key = Cluster().secret("gateway-key")
    shown = request.headers.get("Authorization", "")
    if key is None or not hmac.compare_digest(shown.encode(), f"Bearer {key}".encode()):
        return JsonResponse({"error": "not a gateway of this cluster"}, status=403)
    try:
        text = json.loads(request.body[:4096])["ticket"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        return JsonResponse({"error": "the body is no JSON object with a ticket"}, status=400)
    ticket = tickets.redeem(text)
    if ticket is None or ticket.desktop not in allowed(ticket.user):
        return JsonResponse({"error": "the ticket is not good, or not any more"}, status=404)
    log.info("%r is on the way to %s", ticket.user.username, ticket.desktop)
    return JsonResponse({"desktop": ticket.desktop, "user": ticket.user.username})


def serves():
    """Whether sessions can be read, which is what every page needs."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {Session._meta.db_table} LIMIT 1")


@require_safe
def healthz(request):
    """What balancers ask: 200, or 404 while the node is in maintenance: then who is here
    stays and nobody new is sent. Without the database it is 503 (see DatabaseAway)."""
    if Cluster().maintenance:
        return JsonResponse({"status": "maintenance"}, status=404)
    return healthz_node(request)


@require_safe
def healthz_node(request):
    """What the node's agent asks, in maintenance too."""
    serves()
    return JsonResponse({"status": "ok", "node": Cluster().node})


def error(request, status, title, text):
    return render(request, "error.html", {"title": title, "text": text}, status=status)


def bad_request(request, exception=None):
    return HttpResponse("This request makes no sense here.\n", status=400, content_type="text/plain")


def forbidden(request, exception=None):
    return error(request, 403, "Not allowed", "Your account does not have the right to this page.")


def not_found(request, exception=None):
    return error(request, 404, "Not found", "There is no such page, or it is not yours.")


def server_error(request):
    failure = sys.exc_info()[1]
    if isinstance(failure, DatabaseAway.failures):  # such as a session that could not be kept
        return DatabaseAway.away(request, failure)
    return HttpResponse("Something went wrong. It stands in the broker's journal.\n", status=500, content_type="text/plain")
