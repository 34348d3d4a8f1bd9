"""Tickets: a person's one-time way to a desktop.

A ticket is a name of 16 random bytes and a signature over it (RSASSA-PKCS1-v1_5 with
SHA-256, RFC 8017, 8.2), both in unpadded base64url (RFC 4648, 5), joined by a dot. The
key is in the settings that all brokers share, so that each of them can check what any
other has made. The signature keeps guesses from the database; what makes a ticket good
is its row there, which is taken once and soon expires.
"""

import base64
import hashlib
import secrets
from datetime import timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from django.conf import settings
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from .models import Ticket

NAME_BYTES = 16
MOST = 1024  # characters of a ticket

_key = SimpleLazyObject(lambda: serialization.load_pem_private_key(settings.RSA_KEY.encode(), password=None))


def _encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _digest(name):
    return hashlib.sha256(b"ticket " + name).hexdigest()


def issue(user, desktop, lifetime):
    """A ticket for a person and a desktop, good for lifetime seconds."""
    name = secrets.token_bytes(NAME_BYTES)
    Ticket.objects.create(
        digest=_digest(name), user=user, desktop=desktop, expires=timezone.now() + timedelta(seconds=lifetime)
    )
    return _encode(name) + "." + _encode(_key.sign(name, padding.PKCS1v15(), hashes.SHA256()))


def redeem(text):
    """The ticket's row, taken now and for good, or None if it is none, was taken before,
    has expired, or is that of somebody who may not log in any more."""
    if len(text) > MOST or text.count(".") != 1 or not text.isascii():
        return None
    try:
        name, signature = (_decode(part) for part in text.split("."))
        _key.public_key().verify(signature, name, padding.PKCS1v15(), hashes.SHA256())
    except (ValueError, InvalidSignature):
        return None
    now = timezone.now()
    # One statement: of two gateways that ask at once, one is told yes.
    taken = Ticket.objects.filter(digest=_digest(name), used=None, expires__gt=now, user__is_active=True).update(used=now)
    if taken != 1:
        return None
    return Ticket.objects.select_related("user").get(digest=_digest(name))
