"""What is done with every answer."""

import logging

from django.db import DatabaseError, InterfaceError
from django.shortcuts import render

from .cluster import Cluster

log = logging.getLogger("desk")


class ContentSecurityPolicy:
    """Pages use nothing but their own style sheet and script (Content Security Policy
    Level 3), and may be shown in no frame. A form may end at the gateway, whose port
    makes it another origin."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        port = Cluster().port("gateway")
        gateway = f" https://*:{port}" if port else ""
        response["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
            f"form-action 'self'{gateway}; frame-ancestors 'none'; base-uri 'none'"
        )
        if not response.has_header("Cache-Control"):
            response["Cache-Control"] = "no-store"
        return response


class DatabaseAway:
    """While the database moves to another node there is a page that says so and tries
    again by itself."""

    failures = (DatabaseError, InterfaceError)

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)

    def process_exception(self, request, exception):
        if isinstance(exception, self.failures):
            return self.away(request, exception)
        return None

    @staticmethod
    def away(request, error):
        log.warning("the database does not serve: %s", str(error).strip().split("\n")[0])
        response = render(None, "away.html", {"again": request.method in ("GET", "HEAD")}, status=503)
        response["Retry-After"] = "5"
        if request.method in ("GET", "HEAD"):
            response["Refresh"] = "5"
        return response
