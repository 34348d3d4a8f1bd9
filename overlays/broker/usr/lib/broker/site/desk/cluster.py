"""What this node knows of its cluster. The agent writes it to /etc/slipway/product
(docs/payload.md): into the environment, and as cluster.json.

This module is read by the settings, so it may use nothing of Django that needs them.
"""

import json
import os
import platform
from pathlib import Path

PRODUCT = Path(os.environ.get("BROKER_PRODUCT", "/etc/slipway/product"))


class Cluster:
    """The cluster as it is at this moment, or a node that stands alone.

    It is read when it is made: desktops come and go while the site runs.
    """

    def __init__(self, product=None):
        product = product or PRODUCT
        try:
            self.facts = json.loads((product / "cluster.json").read_text())
        except FileNotFoundError:
            self.facts = {}
        self.product = product

    @property
    def name(self):
        return self.facts.get("cluster", "")

    @property
    def node(self):
        """This node's name: what differs from broker to broker."""
        return self.facts.get("node") or platform.node()

    @property
    def maintenance(self):
        return bool(self.facts.get("maintenance"))

    def nodes(self, role):
        """The nodes of this site with a role, by name."""
        found = [n for n in self.facts.get("nodes", []) if n["role"] == role]
        return sorted(found, key=lambda n: n["name"])

    def desktops(self):
        """The names of the desktops, in order."""
        return [n["name"] for n in self.nodes("desktop")]

    def addresses(self, role):
        return {n["address"] for n in self.nodes(role)}

    def port(self, service):
        """The port at which people reach a service ("https", "gateway", "tunnel"), or 0."""
        return next((v[service] for v in self.facts.get("vips", []) if v.get(service)), 0)

    def hosts(self):
        """All names and addresses that a broker may be asked by, now and later. Nothing
        else is answered, so that no page is ever built from a name that somebody made up."""
        return Hosts()

    def host_names(self):
        if not self.facts:
            return ["*"]
        domain = self.facts.get("domain", "")
        names = {"localhost", "127.0.0.1", "brokers.slipway.internal"}
        for item in self.nodes("broker") + self.nodes("balancer") + self.facts.get("vips", []):
            names |= {item["name"], item["address"], *item.get("names", [])}
            if domain:
                names.add(item["name"] + "." + domain)
        return sorted(names)

    def secret(self, name):
        """A secret of this node, or None."""
        try:
            return (self.product / "secrets" / name).read_text().strip() or None
        except FileNotFoundError:
            return None


class Hosts(list):
    """The hosts of the moment. Django wants a list, and only ever goes through it."""

    def __iter__(self):
        return iter(Cluster().host_names())


def database():
    """How Django reaches the database: PostgreSQL through the virtual address, with TLS
    that is checked (PGSSLMODE, PGSSLROOTCERT, PGPASSFILE: libpq reads them itself). A
    broker that stands alone keeps its own file."""
    if not os.environ.get("PGHOST"):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": "/var/server/alone.sqlite3"}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "USER": os.environ["PGUSER"],
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ.get("PGPORT", "5432"),
        "CONN_MAX_AGE": 300,
        # After a failover the connections of before are dead: they are tried first.
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "connect_timeout": 8,
            # A primary that was cut off is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15000,
            "target_session_attrs": "read-write",
            "options": "-c statement_timeout=10s -c idle_in_transaction_session_timeout=30s",
        },
    }
