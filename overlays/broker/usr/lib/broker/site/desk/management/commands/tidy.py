"""Removes what is over: sessions, tickets, counts of failed logins."""

from datetime import timedelta

from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.utils import timezone

from desk.models import Attempts, Ticket


class Command(BaseCommand):
    help = __doc__

    def handle(self, **options):
        call_command("clearsessions")
        Ticket.objects.filter(expires__lt=timezone.now() - timedelta(days=1)).delete()
        Attempts.objects.filter(ends__lt=timezone.now()).delete()
