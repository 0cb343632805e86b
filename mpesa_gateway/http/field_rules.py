"""Rules for field values: a check and the equivalent JSON Schema."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn

Compose = Callable[[Any], Mapping[str, Any]]
"""Returns a schema from the declarations of enabled plugins."""


class Rule:
    """A check that raises ValueError, and the equivalent JSON Schema."""

    def __init__(self, check: Callable[[Any], Any], compose: Compose | None = None, **schema: Any) -> None:
        self._check = check
        self._compose = compose
        self.schema = schema

    def schema_of(self, gateway: Any) -> dict[str, Any]:
        return self.schema | dict(self._compose(gateway) if self._compose is not None else {})

    def __call__(self, value: Any) -> Any:
        return self._check(value)


def matching(pattern: str, message: str, **schema: Any) -> Rule:
    """Return a rule for a full match. ``message`` is the advice: ``must be 5 to 7 digits``."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if compiled.fullmatch(text) is None:
            raise ValueError(message)
        return text

    return Rule(check, pattern=f"^(?:{pattern})$", **schema)


def printable(most: int, why: str = "", *, least: int = 1, **schema: Any) -> Rule:
    return matching(rf"[ -~]{{{least},{most}}}", f"must be {least} to {most} printable ASCII characters{why}", **schema)


def one_of(words: Iterable[str], why: str = "", **schema: Any) -> Rule:
    """Accept these words. The message omits the sent text, which may be a secret that belongs in another field."""
    known = sorted(words)

    def check(text: str) -> str:
        if text not in known:
            allowed = f"{'one of ' if len(known) > 1 else ''}{', '.join(known)}"
            raise ValueError(f"must be {allowed}{why}")
        return text

    return Rule(check, enum=known, **schema)


def at_most(most: int) -> Rule:

    def check(text: str) -> str:
        if len(text) > most:
            raise ValueError(f"must be at most {most} characters")
        return text

    return Rule(check, maxLength=most)


def checked_by_service(**schema: Any) -> Rule:
    """Return a rule that only documents; the service checks."""
    return Rule(lambda value: value, **schema)


def checked_with_plugins(compose: Compose, **schema: Any) -> Rule:
    """Return a rule that only documents, depending on the plugins."""
    return Rule(lambda value: value, compose, **schema)


PHONE = Rule(
    Msisdn.parse,
    pattern=r"^(?:\+?254|0)?[17][0-9]{8}$",
    description="A Kenyan mobile number.",
    examples=["254708374149"],
)
"""Stored as 2547… or 2541…"""

_TEXT = r"^(?:[1-9][0-9]{0,4}|1[0-9]{5}|2[0-4][0-9]{4}|250000)(?:\.0{1,2})?$"

AMOUNT = Rule(
    lambda raw: Kes.parse_json(bytes(raw)),
    anyOf=[{"type": "integer", "minimum": 1, "maximum": 250_000}, {"type": "string", "pattern": _TEXT}],
    description="Whole KES, as a number or as text.",
    examples=["500.00", 500],
)
"""An amount within M-Pesa's limit, in a JSON body."""

WHOLE = Rule(
    Kes.parse, pattern=r"^[0-9]{1,9}(?:\.0{1,2})?$", description="Whole KES.", examples=["500", "500.00"], format=None
)
"""An amount of any size, in a query."""

SHORTCODE = matching(
    r"[0-9]{5,7}", "must be 5 to 7 digits", description="The paybill or till that payers pay.", examples=["174379"]
)
