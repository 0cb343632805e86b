"""Names for our objects: a prefix that says what it is, then time and chance, so that newer sorts later."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from mpesa_gateway.clock import Clock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


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

    def new(self, prefix: str) -> str:
        """A new identifier with this prefix, 26 characters after the underscore."""
        milliseconds = int(self._clock.now().timestamp() * 1000)
        return f"{prefix}_{base32(milliseconds, 10)}{base32(int.from_bytes(self._random_bytes(10), 'big'), 16)}"

    @staticmethod
    def least(prefix: str, moment: datetime) -> str:
        """What every identifier with this prefix that was made before ``moment`` is less than, and no later one."""
        return f"{prefix}_{base32(int(moment.timestamp() * 1000), 10)}"

    def token(self, size: int = 32) -> bytes:
        """``size`` unguessable bytes."""
        return self._random_bytes(size)
