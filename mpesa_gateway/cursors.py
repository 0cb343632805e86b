"""Cursors: where the next page of a list begins, as opaque text that callers send back unchanged."""

import base64
import binascii
from datetime import UTC, datetime

from mpesa_gateway.env import Env
from mpesa_gateway.errors import Invalid

_SEPARATOR = "\x1f"


def encode_cursor(*parts: str) -> str:
    """An opaque cursor that holds these parts."""
    return base64.urlsafe_b64encode(_SEPARATOR.join(parts).encode()).decode().rstrip("=")


def decode_cursor(text: str, parts: int) -> tuple[str, ...]:
    """The parts of a cursor; raises Invalid (field ``cursor``) for anything that we did not make."""
    try:
        padded = text + "=" * (-len(text) % 4)
        found = tuple(base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(_SEPARATOR))
    except (binascii.Error, ValueError):
        found = ()
    if len(found) != parts or any("\x00" in part for part in found):
        raise Invalid.field_error("cursor", "send the next_cursor of the page before, unchanged")
    return found


def encode_position(at: datetime, object_id: str, env: Env) -> str:
    """The cursor after an object in a list of one env, ordered by time and id."""
    return encode_cursor(str(int(at.timestamp()) * 1_000_000 + at.microsecond), object_id, env)


def decode_position(text: str, env: Env) -> tuple[datetime, str]:
    """The time and id that a cursor holds. Raises Invalid, also for a cursor of the other env's list."""
    microseconds, object_id, its_env = decode_cursor(text, 3)
    if its_env != env:
        raise Invalid.field_error("cursor", f"this cursor is not of a {env} list: begin at the first page")
    if not (microseconds.isascii() and microseconds.isdigit() and len(microseconds) <= 17):
        raise Invalid.field_error("cursor", "send the next_cursor of the page before, unchanged")
    seconds, rest = divmod(int(microseconds), 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest), object_id
