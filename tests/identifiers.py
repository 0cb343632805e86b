"""Identifiers chosen by a test: the product makes its own from time and randomness."""

from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import UUID

from mpesa_gateway.ids import Ids, id_of, uuid_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def identifier(prefix: str, number: int = 1, *, at: datetime = _EPOCH) -> str:
    """Return the identifier with this prefix, time and number: the greater of two numbers sorts later."""
    least = int.from_bytes(uuid_of(Ids.least(prefix, at)), "big")
    return id_of((least + number).to_bytes(16, "big"))


def identifiers(prefix: str, numbers: Iterable[int], *, at: datetime = _EPOCH) -> list[str]:
    """Return the identifiers with this prefix, these numbers and this time."""
    return [identifier(prefix, number, at=at) for number in numbers]


def literal(prefix: str, number: int = 1, *, at: datetime = _EPOCH) -> str:
    """Return the same identifier as it is written in SQL, in quotes."""
    return f"'{UUID(bytes=uuid_of(identifier(prefix, number, at=at)))}'"


def expression(prefix: str, at: str, number: str) -> str:
    """Return the SQL for the identifier of a time and a number, both SQL: a timestamptz and a whole number."""
    tag = uuid_of(identifier(prefix)).hex()[12:16]
    milliseconds = f"floor(extract(epoch FROM {at}) * 1000)::bigint"
    return f"(lpad(to_hex({milliseconds}), 12, '0') || '{tag}' || lpad(to_hex({number}), 16, '0'))::uuid"
