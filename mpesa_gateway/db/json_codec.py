"""JSON in the database: money as numbers, phone numbers as digits."""

from typing import Any, TypeVar

import msgspec

from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn

T = TypeVar("T")


def dumps(value: Any) -> str:
    """Raise TypeError for other types, such as secrets."""
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def loads(text: str, kind: type[T]) -> T:
    return msgspec.json.decode(text, type=kind, dec_hook=_read)


def plain(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Kes):
        return int(value)
    if isinstance(value, Msisdn):
        # msgspec encodes exact str only.
        return "".join(value)
    raise TypeError(f"a {type(value).__name__} is not kept as JSON")


def _read(kind: type[Any], value: Any) -> Any:
    if kind is Kes and isinstance(value, int):
        return Kes(value)
    if kind is Msisdn and isinstance(value, str):
        return Msisdn(value)
    raise ValueError(f"cannot be read as a {kind.__name__}")
