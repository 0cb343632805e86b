"""Ids: a prefix, then time and random bits."""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from uuid import UUID

from mpesa_gateway.clock import Clock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MOST_CHANCE = (1 << 64) - 1


def base32(number: int, length: int) -> str:
    out: list[str] = []
    for _ in range(length):
        number, digit = divmod(number, 32)
        out.append(_ALPHABET[digit])
    return "".join(reversed(out))


@dataclass(frozen=True, slots=True)
class IdPrefix:
    """Three letters."""

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
    """Creates ids such as ``pay_01jd…``: 48 bits of milliseconds, 16 of prefix, 64 random."""

    def __init__(self, clock: Clock, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._clock = clock
        self._random_bytes = random_bytes
        self._last: dict[str, tuple[int, int]] = {}

    def new(self, prefix: str, at: datetime | None = None) -> str:
        """``at`` is the time of the row, so that both orders agree.

        Consecutive ids of one millisecond increase.
        """
        milliseconds = _milliseconds(at or self._clock.now())
        chance = int.from_bytes(self._random_bytes(8), "big")
        last = self._last.get(prefix)
        if last is not None and last[0] == milliseconds:
            chance = last[1] + 1 + (chance >> 34) & _MOST_CHANCE
        self._last[prefix] = milliseconds, chance
        return _spell(prefix, milliseconds, chance)

    @staticmethod
    def least(prefix: str, moment: datetime) -> str:
        return _spell(prefix, _milliseconds(moment), 0)

    @staticmethod
    def time_of(text: str) -> datetime:
        return _EPOCH + int.from_bytes(uuid_of(text)[:6], "big") * _MILLISECOND

    @staticmethod
    def has_form(text: str, prefix: str) -> bool:
        return text.startswith(f"{prefix}_") and uuid_of(text) != NO_ROW

    @staticmethod
    def range_of_start(text: str, prefix: str) -> tuple[str, str] | None:
        """Return the least and greatest id with this start, None if it has fewer than 4 characters of its own."""
        if not text.startswith(f"{prefix}_") or _START.fullmatch(text[4:]) is None:
            return None
        digits = text[4:].translate(_TO_DIGITS)
        unknown = 5 * (26 - len(digits))
        first = int(digits, 32) << unknown
        last = first | (1 << unknown) - 1
        tag = _tag(prefix) << 64
        least, greatest = (first & ~_TAG_BITS | tag), (last & ~_TAG_BITS | tag)
        if not (first <= least <= last and first <= greatest <= last):
            return None
        return _written(prefix, least), _written(prefix, greatest)

    def token(self, size: int = 32) -> bytes:
        return self._random_bytes(size)


def _milliseconds(moment: datetime) -> int:
    return max((moment - _EPOCH) // _MILLISECOND, 0)


def _spell(prefix: str, milliseconds: int, chance: int) -> str:
    return _written(prefix, milliseconds << 80 | _tag(prefix) << 64 | chance)


def renamed(identifier: str, prefix: str) -> str:
    uuid = uuid_of(identifier)
    if uuid in {NO_ROW, _NIL}:
        raise ValueError("this is no identifier of ours")
    return _written(prefix, int.from_bytes(uuid, "big") & ~(0xFFFF << 64) | _tag(prefix) << 64)


NO_ROW = b"\xff" * 16

_NIL = b"\x00" * 16

_TO_DIGITS = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_ID = re.compile(rf"([a-z]{{3}})_[0-7][{_ALPHABET}]{{25}}\Z")
_START = re.compile(rf"[0-7][{_ALPHABET}]{{3,25}}")
_TAG_BITS = 0xFFFF << 64
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_PAIRS = tuple(base32(number, 2) for number in range(1024))
_SHIFTS = tuple(range(120, -1, -10))
_LONGEST = 36
_REMEMBERED = 8192


def _tag(prefix: str) -> int:
    first, second, third = (ord(letter) - 96 for letter in prefix)
    return first << 10 | second << 5 | third


@lru_cache
def _prefix(tag: int) -> str | None:
    letters = [tag >> 10, tag >> 5 & 31, tag & 31]
    return "".join(chr(96 + letter) for letter in letters) if all(0 < one < 27 for one in letters) else None


def uuid_of(text: str) -> bytes:
    """Return 16 bytes; ``NO_ROW`` for other text."""
    return _uuid_of(text) if len(text) <= _LONGEST else NO_ROW


# A request uses few ids in several statements.
@lru_cache(_REMEMBERED)
def _uuid_of(text: str) -> bytes:
    found = _ID.match(text)
    if found is None:
        return UUID(text).bytes if _UUID.match(text) else NO_ROW if text else _NIL
    number = int(text[4:].translate(_TO_DIGITS), 32)
    return number.to_bytes(16, "big") if number >> 64 & 0xFFFF == _tag(found[1]) else NO_ROW


@lru_cache(_REMEMBERED)
def id_of(uuid: bytes) -> str:
    """A UUID that is not our id is returned in its usual form."""
    number = int.from_bytes(uuid, "big")
    prefix = _prefix(number >> 64 & 0xFFFF)
    if prefix is None:
        return str(UUID(bytes=bytes(uuid)))
    return _written(prefix, number)


def _written(prefix: str, number: int) -> str:
    return f"{prefix}_{''.join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])}"
