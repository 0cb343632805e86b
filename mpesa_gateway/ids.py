"""Names for our objects: a prefix that says what it is, then time and chance, so that newer sorts later."""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mpesa_gateway.clock import Clock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_FORM = re.compile(rf"_[{_ALPHABET}]{{26}}", re.ASCII)


def base32(number: int, length: int) -> str:
    """A number in Crockford's base 32, lower case, ``length`` characters."""
    out: list[str] = []
    for _ in range(length):
        number, digit = divmod(number, 32)
        out.append(_ALPHABET[digit])
    return "".join(reversed(out))


@dataclass(frozen=True, slots=True)
class IdPrefix:
    """Three letters that identifiers of one kind begin with, and what they identify."""

    name: str
    what: str


KERNEL_PREFIXES = (
    IdPrefix("mer", "merchant"),
    IdPrefix("key", "API key"),
    IdPrefix("evt", "event"),
    IdPrefix("aud", "entry of the audit log"),
    IdPrefix("req", "request"),
)


class Ids:
    """Makes identifiers such as ``pay_01jd…``: 48 bits of milliseconds, 80 bits of chance."""

    def __init__(self, clock: Clock, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._clock = clock
        self._random_bytes = random_bytes

    def new(self, prefix: str, at: datetime | None = None) -> str:
        """Return a new identifier with this prefix, 26 characters after the underscore. It begins with ``at`` or now.

        A row that has a time of its own gives it, so that lists by id and by that time are the same.
        """
        chance = base32(int.from_bytes(self._random_bytes(10), "big"), 16)
        return f"{prefix}_{base32(_milliseconds(at or self._clock.now()), 10)}{chance}"

    @staticmethod
    def least(prefix: str, moment: datetime) -> str:
        """Return the least identifier with this prefix of the millisecond of ``moment``: earlier ones are less."""
        return f"{prefix}_{base32(_milliseconds(moment), 10)}{'0' * 16}"

    @staticmethod
    def has_form(text: str, prefix: str) -> bool:
        """Return whether a text could be an identifier with this prefix."""
        return text.startswith(prefix) and _FORM.fullmatch(text, len(prefix)) is not None

    def token(self, size: int = 32) -> bytes:
        """``size`` unguessable bytes."""
        return self._random_bytes(size)


def _milliseconds(moment: datetime) -> int:
    """Whole milliseconds since 1970, 0 for what is before."""
    return max((moment - _EPOCH) // _MILLISECOND, 0)
