"""The broker's pages."""

import platform

from django.http import JsonResponse
from django.shortcuts import render
from django.urls import path
from django.views.decorators.http import require_safe


@require_safe
def home(request):
    """Says which broker answered and counts this session's visits: enough to see
    that a session follows its user from one broker to another."""
    visits = request.session.get("visits", 0) + 1
    request.session["visits"] = visits
    return render(request, "home.html", {"host": platform.node(), "visits": visits})


@require_safe
def healthz(request):
    """Answers while this broker can serve; balancers ask."""
    return JsonResponse({"status": "ok", "host": platform.node()})


urlpatterns = [path("", home), path("healthz", healthz)]
