"""Opaque cursors of lists."""

import base64
import binascii

from mpesa_gateway.env import Env
from mpesa_gateway.errors import InvalidFields

_SEPARATOR = "\x1f"


def invalid_cursor() -> InvalidFields:
    return InvalidFields.field_error("cursor", "send the next_cursor of the page before, unchanged")


def encode_cursor(key: str, env: Env | None) -> str:
    return base64.urlsafe_b64encode(f"{key}{_SEPARATOR}{env or ''}".encode()).decode().rstrip("=")


def decode_cursor(text: str, env: Env | None) -> str:
    """Raise InvalidFields, also for the other env."""
    padded = text + "=" * (-len(text) % 4)
    try:
        key, its_env = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(_SEPARATOR)
    except (binascii.Error, ValueError):
        raise invalid_cursor() from None
    if its_env != (env or ""):
        if its_env not in {"sandbox", "live"} or env is None:
            raise invalid_cursor()
        raise InvalidFields.field_error("cursor", f"this cursor is not of a {env} list: begin at the first page")
    return key
