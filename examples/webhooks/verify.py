"""Verification of a webhook's signature, complete and ready to copy into a Python application."""

import hashlib
import hmac
import re

TOLERANCE = 300
"""Seconds by which a webhook may be old, or a clock wrong."""


def is_ours(headers: dict[str, str], body: bytes, secret: str, now: float) -> bool:
    """Return True if ``body``, exactly as received, was signed with ``secret``. ``headers`` have lower-case names.

    ``now`` is in seconds since 1970. For a day after a secret was replaced, the old one signs in a header of its
    own.
    """
    timestamp = headers.get("x-payments-timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", timestamp) or abs(now - int(timestamp)) > TOLERANCE:
        return False
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    expected = f"sha256={digest}".encode()
    signatures = [headers.get(name, "") for name in ("x-payments-signature", "x-payments-signature-previous")]
    return any(hmac.compare_digest(expected, one.encode("utf-8", "surrogateescape")) for one in signatures)
