"""The broker's pages."""

from django.contrib.auth.views import LogoutView
from django.urls import path
from django.views.generic import RedirectView

from . import views

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="desktops")),
    path("login", views.Login.as_view(), name="login"),
    path("logout", LogoutView.as_view(http_method_names=["post", "options"]), name="logout"),
    path("password", views.Password.as_view(), name="password"),
    path("desktops", views.desktops, name="desktops"),
    path("desktops/<slug:name>", views.desktop, name="desktop"),
    path("people", views.people, name="people"),
    path("people/<int:number>", views.person, name="person"),
    path("api/redeem", views.redeem),
    path("healthz", views.healthz),
    path("healthz/node", views.healthz_node),
]
handler400 = "desk.views.bad_request"
handler403 = "desk.views.forbidden"
handler404 = "desk.views.not_found"
handler500 = "desk.views.server_error"
