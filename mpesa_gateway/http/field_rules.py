"""What a field may hold: a rule that refuses in words, and says the same to machines in the OpenAPI document."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn

Compose = Callable[[Any], Mapping[str, Any]]
"""Draws a part of the document from what the enabled plugins of this gateway declare."""


class Rule:
    """A check of one value, which raises ValueError, and the JSON Schema of what it lets through."""

    def __init__(self, check: Callable[[Any], Any], compose: Compose | None = None, **schema: Any) -> None:
        self._check = check
        self._compose = compose
        self.schema = schema

    def schema_of(self, gateway: Any) -> dict[str, Any]:
        """The schema with what depends on the gateway."""
        return self.schema | dict(self._compose(gateway) if self._compose is not None else {})

    def __call__(self, value: Any) -> Any:
        """Check, and give what the check makes of the value."""
        return self._check(value)


def matching(pattern: str, message: str, **schema: Any) -> Rule:
    """Text that matches as a whole. ``message`` says what to send: ``must be 5 to 7 digits``."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(message)
        return text

    return Rule(check, pattern=f"^(?:{pattern})$", **schema)


def printable(most: int, why: str = "", *, least: int = 1, **schema: Any) -> Rule:
    """So many printable ASCII characters, spaces too."""
    return matching(rf"[ -~]{{{least},{most}}}", f"must be {least} to {most} printable ASCII characters{why}", **schema)


def one_of(words: Iterable[str], why: str = "", **schema: Any) -> Rule:
    """One of a few words."""
    known = sorted(words)

    def check(text: str) -> str:
        if text not in known:
            raise ValueError(f"must be {'one of ' if len(known) > 1 else ''}{', '.join(known)}{why}")
        return text

    return Rule(check, enum=known, **schema)


def at_most(most: int) -> Rule:
    """So many characters of any kind."""

    def check(text: str) -> str:
        if len(text) > most:
            raise ValueError(f"must be at most {most} characters")
        return text

    return Rule(check, maxLength=most)


def elsewhere(**schema: Any) -> Rule:
    """What the document says of a field that is checked where more is known."""
    return Rule(lambda value: value, **schema)


def composed(compose: Compose, **schema: Any) -> Rule:
    """What the document says of a field that is checked where the enabled plugins are known."""
    return Rule(lambda value: value, compose, **schema)


PHONE = Rule(
    Msisdn.parse,
    pattern=r"^(?:\+?254|0)?[17][0-9]{8}$",
    description="A Kenyan mobile number.",
    examples=["254708374149"],
)
"""A number as people write it; kept as 2547… or 2541…"""

_TEXT = r"^(?:[1-9][0-9]{0,4}|1[0-9]{5}|2[0-4][0-9]{4}|250000)(?:\.0{1,2})?$"

AMOUNT = Rule(
    lambda raw: Kes.parse_json(bytes(raw)),
    anyOf=[{"type": "integer", "minimum": 1, "maximum": 250_000}, {"type": "string", "pattern": _TEXT}],
    description="Whole KES, as a number or as text.",
    examples=["500.00", 500],
)
"""An amount that M-Pesa moves in one transaction, as it stands in a JSON body."""

WHOLE = Rule(
    Kes.parse, pattern=r"^[0-9]{1,9}(?:\.0{1,2})?$", description="Whole KES.", examples=["500", "500.00"], format=None
)
"""An amount of any size, as it stands in a query."""
