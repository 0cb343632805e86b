"""Sanitised text from M-Pesa, without credentials and phone numbers."""

import re
import unicodedata

from mpesa_gateway.control_characters import CONTROL_CHARACTERS
from mpesa_gateway.phone import NUMBER_IN_TEXT, masked_number

LIMIT = 300

_UNSEEN = re.compile(f"[{CONTROL_CHARACTERS}]+")

_SPACES = re.compile(r"\s+")
_NAMED = re.compile(
    r"((?:access[ _-]?)?token|bearer|basic|password|passkey|credential|secret|(?:consumer|api)[ _-]?key)"
    r"([\"']?(?:\s*(?:[-:=>]|&gt;)\s*|\s+is\s+)[\"']?|\s+(?=[A-Za-z0-9+/=_.%!@#$*-]*[0-9]))([A-Za-z0-9+/=_.~%!@#$*-]{3,})",
    re.IGNORECASE,
)
"""A value that the text names as a credential."""

_ORDINARY = frozenset(
    {"invalid", "expired", "missing", "required", "empty", "wrong", "null", "none", "error", "not", "found", "the"}
)
_LONG = re.compile(
    r"(?<![A-Za-z0-9+/=_-])(?!AG_|ws_CO_)(?=[^\s]*[0-9])(?=[^\s]*[a-z])(?=[^\s]*[A-Z])[A-Za-z0-9+/=_-]{20,}"
    r"(?:\.[A-Za-z0-9+/=_-]+)*|(?<![A-Za-z0-9])[0-9a-fA-F]{32,}(?![A-Za-z0-9])"
)
"""Text like a token or passkey, except Daraja's identifiers."""

_DIGITS = re.compile(r"\d{9,15}")
_HANDLE = re.compile(r"(ws_CO_[0-9]{14}(?:[0-9]{3})?[17])[0-9]{5}([0-9]{3})(?![0-9])", re.ASCII)
"""A CheckoutRequestID may end in the payer's nine digits."""


def provider_text(text: str, limit: int = LIMIT) -> str:
    """Return one line of at most ``limit`` characters, with credentials and phone numbers masked."""
    line = text[: 4 * limit]
    if not line.isprintable():
        line = _UNSEEN.sub(" ", line)
    line = _SPACES.sub(" ", line).strip()
    line = _DIGITS.sub(_mask_digits, line)
    line = _NAMED.sub(_mask_named, line)
    line = _LONG.sub("****", line)
    line = _HANDLE.sub(r"\1****\2", line)
    return NUMBER_IN_TEXT.sub(masked_number, line)[:limit]


def mask_secrets(body: bytes, secrets: tuple[str, ...]) -> bytes:
    """Mask the call's secrets, also with JSON's escaped slash."""
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            body = body.replace(secret.encode(), b"****").replace(secret.replace("/", "\\/").encode(), b"****")
    return body


_SHORTEST = 8
"""Shorter secrets could match ordinary text."""


def _mask_digits(found: re.Match[str]) -> str:
    digits = "".join(str(unicodedata.decimal(digit)) for digit in found[0])
    shown = NUMBER_IN_TEXT.sub(masked_number, digits)
    return found[0] if shown == digits else shown


def _mask_named(found: re.Match[str]) -> str:
    return found[0] if found[3].lower().strip(".-") in _ORDINARY else f"{found[1]}{found[2]}****"
