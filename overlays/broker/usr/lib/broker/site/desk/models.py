"""What the broker remembers, beside people and sessions, which are Django's own."""

from django.conf import settings
from django.db import models


class Grant(models.Model):
    """A person may use a desktop. Administrators may use all of them."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="grants")
    desktop = models.CharField(max_length=63)  # a node's name

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user", "desktop"], name="one_grant_each")]


class Ticket(models.Model):
    """Leads one person to one desktop, once. Only its name is kept, hashed, so that who
    reads the table has no ticket."""

    digest = models.CharField(max_length=64, primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    desktop = models.CharField(max_length=63)
    expires = models.DateTimeField(db_index=True)
    used = models.DateTimeField(null=True)


class Attempts(models.Model):
    """How often something failed within a window of time, see throttle.py."""

    key = models.CharField(max_length=64, primary_key=True)
    count = models.PositiveIntegerField()
    ends = models.DateTimeField(db_index=True)
