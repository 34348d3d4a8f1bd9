"""Tells websockify where a ticket leads: the broker redeems it and names a desktop, and
HAProxy has a socket for each desktop of the gateway's own plan."""

import http.client
import json
import logging
import os
import re
import socket
import sys

RUN = os.environ.get("GATEWAY_RUN", "/run/gateway")
TICKET = re.compile(r"[\w.-]{1,1024}", re.ASCII)
NAME = re.compile(r"[a-z0-9-]{1,63}")


class Brokers(http.client.HTTPConnection):
    """The brokers, as HAProxy reaches them."""

    def __init__(self):
        super().__init__("brokers.slipway.internal", timeout=10)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(f"{RUN}/brokers.sock")


class Untold(logging.Filter):
    """Keeps tickets out of the journal: websockify logs the address that is asked for,
    and each token that leads nowhere, though the ticket may still be good."""

    def filter(self, record):
        record.msg, record.args = re.sub(r"(token=|Token ')[^\s&']+", r"\1…", record.getMessage()), ()
        return True


class Tickets:
    """A token plugin of websockify (websockify/token_plugins.py)."""

    def __init__(self, source):
        for handler in logging.getLogger().handlers:
            handler.addFilter(Untold())

    def lookup(self, ticket):
        """Where a ticket leads, as websockify wants it; None if nowhere."""
        if not TICKET.fullmatch(ticket):
            return None
        try:
            brokers = Brokers()
            brokers.request("POST", "/api/redeem", json.dumps({"ticket": ticket}), {"Content-Type": "application/json"})
            answer = brokers.getresponse()
            told = json.loads(answer.read(4096)) if answer.status == 200 else {}
        except (OSError, ValueError, http.client.HTTPException) as failure:
            print(f"tickets: the brokers do not answer: {failure}", file=sys.stderr)
            return None
        name = told.get("desktop", "")
        path = f"{RUN}/desktops/{name}.sock"
        if not NAME.fullmatch(name) or not os.path.exists(path):
            return None
        return "unix_socket", path
