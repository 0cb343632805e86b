"""Signatures of webhooks, in two header families over the same bytes."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version

from mpesa_gateway.secret import Secret

_PREFIX = "whsec_"
_AGENT = f"mpesa-gateway/{version('mpesa-gateway')}"


def new_secret(random_bytes: bytes) -> Secret:
    """Return a secret in the format of Standard Webhooks: ``whsec_`` and base64."""
    return Secret(_PREFIX + base64.b64encode(random_bytes).decode())


def headers(event_id: str, event_type: str, body: bytes, at: datetime, secrets: Sequence[Secret]) -> dict[str, str]:
    """Return the headers of one attempt. ``secrets`` holds the current secret, then a replaced one that still signs.

    ``X-Payments-Signature`` is HMAC-SHA256 over ``{timestamp}.{body}`` with the secret's text as the key;
    ``webhook-signature`` follows standardwebhooks.com.
    """
    timestamp = str(int(at.timestamp()))
    found = {
        "Content-Type": "application/json",
        "User-Agent": _AGENT,
        "X-Event-Type": event_type,
        "X-Payments-Timestamp": timestamp,
        "X-Payments-Signature": _plain(secrets[0], timestamp, body),
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_standard(secret, event_id, timestamp, body) for secret in secrets),
    }
    if len(secrets) > 1:
        # Most receivers compare the whole header, so the second signature needs its own.
        found["X-Payments-Signature-Previous"] = _plain(secrets[1], timestamp, body)
    return found


def _plain(secret: Secret, timestamp: str, body: bytes) -> str:
    digest = hmac.new(secret.reveal().encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return "sha256=" + digest.hexdigest()


def _standard(secret: Secret, event_id: str, timestamp: str, body: bytes) -> str:
    key = base64.b64decode(secret.reveal().removeprefix(_PREFIX))
    digest = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
