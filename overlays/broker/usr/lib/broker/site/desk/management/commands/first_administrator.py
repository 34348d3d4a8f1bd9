"""Makes the first administrator, unless there is any: first_administrator, with the
password in ADMIN_PASSWORD."""

import os

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    help = __doc__

    def handle(self, **options):
        users = get_user_model().objects
        if users.filter(is_staff=True, is_active=True).exists():
            return
        given = os.environ.get("ADMIN_PASSWORD")
        if not given:
            raise CommandError("ADMIN_PASSWORD is empty: there is no default password")
        admin, _ = users.get_or_create(username="admin")
        admin.is_staff = admin.is_active = True
        admin.set_password(given)
        admin.save()
