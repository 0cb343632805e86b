"""The simulator's randomness, repeatable with a seed."""

import hashlib
from datetime import datetime

from mpesa_gateway.clock import EAT
from mpesa_gateway.db.engine import Database
from mpesa_gateway.ids import Ids
from mpesa_gateway_simulator import tables

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DAYS = "123456789ABCDEFGHIJKLMNOPQRSTUV"
_TAIL = 7
_TAILS = len(_DIGITS) ** _TAIL
_STEP = 48_431_717_077
"""Coprime to ``_TAILS``: successive numbers have distinct, distant tails."""


def receipt_day(at: datetime) -> str:
    """Return a receipt's first three characters: year (2006 is A), month and day in East Africa."""
    try:
        local = at.astimezone(EAT)
    except OverflowError:
        # The last hours of the range of datetime.
        local = at
    return f"{_DIGITS[10 + (local.year - 2006) % 26]}{_DIGITS[9 + local.month]}{_DAYS[local.day - 1]}"


def receipt_of(at: datetime, number: int) -> str:
    """Return the receipt of the ``number``-th transaction: ten characters such as UKN4A1B2C3."""
    rest, tail = number * _STEP % _TAILS, ""
    for _ in range(_TAIL):
        rest, digit = divmod(rest, len(_DIGITS))
        tail = _DIGITS[digit] + tail
    return receipt_day(at) + tail


def _offset(seed: float | None) -> int:
    return 0 if seed is None else int.from_bytes(hashlib.sha256(str(int(seed)).encode()).digest()[:5], "big")


class SeededRandom:
    """Random bytes. With a seed, the n-th draw since the last reset is always the same."""

    def __init__(self, *, db: Database, ids: Ids, seed: int | None) -> None:
        self._db = db
        self._ids = ids
        self._seed = seed

    async def draw(self, size: int) -> bytes:
        turned = await self._db.fetchval(tables.KNOB, "seed")
        seed = self._seed if turned is None else int(turned)
        if seed is None:
            return self._ids.token(size)
        # raw SQL: function - a sequence of Postgres.
        number = await self._db.fetchval("SELECT nextval('sim_chance')")
        return hashlib.sha256(f"{seed}|{number}".encode()).digest()[:size]

    async def identifier(self) -> str:
        """Return an id in Daraja's form: 4-4-4-16 hexadecimal digits."""
        digits = (await self.draw(14)).hex()
        return f"{digits[:4]}-{digits[4:8]}-{digits[8:12]}-{digits[12:]}"

    async def receipt(self, at: datetime) -> str:
        """Return an unused receipt for money that moves at ``at``."""
        return (await self.receipts([at]))[0]

    async def receipts(self, times: list[datetime]) -> list[str]:
        rows = await self._db.fetch(tables.NEXT_RECEIPTS, self._seed, len(times))
        return [receipt_of(at, row["number"] + _offset(row["seed"])) for at, row in zip(times, rows, strict=True)]

    async def share(self) -> float:
        return int.from_bytes(await self.draw(4), "big") / 2**32
