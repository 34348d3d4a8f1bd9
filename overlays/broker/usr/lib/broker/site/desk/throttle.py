"""How often a login may fail. The counts are in the database, so that they hold for all
brokers together."""

import hashlib
from datetime import timedelta

from django.db.models import Case, F, Value, When
from django.utils import timezone

from .models import Attempts

WINDOW = timedelta(minutes=15)
# For one person from one address; for one address; for one person from anywhere. The
# last is generous: else anybody could keep anybody else out.
LIMITS = {"pair": 10, "address": 100, "person": 200}


def _keys(name, address):
    parts = {"pair": f"{name}\0{address}", "address": address, "person": name}
    return {kind: hashlib.sha256(f"{kind}\0{value}".encode()).hexdigest() for kind, value in parts.items()}


def refused(name, address):
    """Whether a login may not even be tried now."""
    keys = _keys(name, address)
    now = timezone.now()
    counts = {a.key: a.count for a in Attempts.objects.filter(key__in=keys.values(), ends__gt=now)}
    return any(counts.get(key, 0) >= LIMITS[kind] for kind, key in keys.items())


def failed(name, address):
    """Counts a login that failed."""
    now = timezone.now()
    over = When(ends__lte=now, then=Value(1))
    for key in _keys(name, address).values():
        Attempts.objects.bulk_create([Attempts(key=key, count=0, ends=now + WINDOW)], ignore_conflicts=True)
        Attempts.objects.filter(key=key).update(
            count=Case(over, default=F("count") + 1), ends=Case(When(ends__lte=now, then=Value(now + WINDOW)), default=F("ends"))
        )


def succeeded(name, address):
    """Forgets what failed before."""
    Attempts.objects.filter(key=_keys(name, address)["pair"]).delete()
