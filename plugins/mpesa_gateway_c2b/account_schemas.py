"""Wire schemas of account numbers."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Environment
from mpesa_gateway.errors import FieldChecks
from mpesa_gateway.http.field_rules import Rule, checked_by_service
from mpesa_gateway.http.fields import Amount, Receipt, Yes, id_field, named
from mpesa_gateway.http.query import ListQuery
from mpesa_gateway.money import InvalidAmount, Kes
from mpesa_gateway_c2b.account_states import AccountState, as_text, normalise, state_of

AccountId = Annotated[str, id_field("acc")]
State = Annotated[AccountState, named("AccountState")]

MOST = 500
"""Account numbers in one call."""

_MOST_KES = 10**10
_LONGEST = 20

_NONE = msgspec.Raw(b"null")


def _none() -> msgspec.Raw:
    return _NONE


def read_amount(raw: msgspec.Raw) -> Kes | None:
    """Return whole KES, or None for null. Raises InvalidAmount."""
    text = bytes(raw).decode("utf-8", "replace").strip()
    if text == "null":
        return None
    amount = Kes.parse(text.strip('"') if len(text) > 1 and text[0] == text[-1] == '"' else text)
    if not 0 < amount < _MOST_KES:
        raise InvalidAmount("must be more than 0")
    return amount


_AMOUNT = Rule(
    read_amount,
    anyOf=[
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": r"^[0-9]{1,9}(?:\.0{1,2})?$"},
        {"type": "null"},
    ],
    description="Whole KES, as a number or as text; null for no bound.",
    examples=["12000.00"],
)


def read_number(typed: str) -> str:
    """Return a normalised account number. Raises ValueError."""
    number = normalise(typed)
    if not 1 <= len(number) <= _LONGEST or not number.isprintable() or "/" in number:
        raise ValueError("must be 1 to 20 printable characters without /: M-Pesa passes on no longer account numbers")
    return number


_BOUNDS = {"expected": _AMOUNT, "min": _AMOUNT, "max": _AMOUNT}


class AccountNumberInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The amounts that an account number expects. All are replaced; an omitted amount sets no bound."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = _BOUNDS
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"expected": "12000.00", "min": "500.00", "active": True}

    expected: msgspec.Raw = msgspec.field(default_factory=_none)
    min: msgspec.Raw = msgspec.field(default_factory=_none)
    max: msgspec.Raw = msgspec.field(default_factory=_none)
    active: bool = True


class NumberedInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An account number of a bulk call."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "number": checked_by_service(minLength=1, maxLength=60)
    } | _BOUNDS
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"number": "HOUSE 7", "expected": "12000.00"}

    number: str
    expected: msgspec.Raw = msgspec.field(default_factory=_none)
    min: msgspec.Raw = msgspec.field(default_factory=_none)
    max: msgspec.Raw = msgspec.field(default_factory=_none)
    active: bool = True


class BulkInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Up to 500 account numbers of one shortcode, by default the default one: all are stored, or none."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "account_numbers": checked_by_service(minItems=1, maxItems=500),
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"account_numbers": [{"number": "HOUSE 7", "expected": "12000.00"}]}

    account_numbers: list[NumberedInput]
    shortcode: str | None = None


class Bounds(msgspec.Struct, frozen=True):
    """A checked account number; amounts in KES."""

    number: str
    expected: int | None
    least: int | None
    most: int | None
    is_active: bool


def read_bounds(
    checks: FieldChecks, number: str, given: AccountNumberInput | NumberedInput, path: str = ""
) -> Bounds | None:
    """Check an account number with its bounds. None if a check failed."""
    problems = len(checks.problems)
    found = checks.take(f"{path}number", read_number, number)
    amounts = [checks.take(f"{path}{name}", read_amount, getattr(given, name)) for name in _BOUNDS]
    expected, least, most = amounts
    if least is not None and most is not None and least > most:
        checks.fail(f"{path}max", "must not be less than min")
    if found is None or len(checks.problems) > problems:
        return None
    return Bounds(found, expected, least, most, given.active)


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """An account number with the received sum; refunds are subtracted."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "number": "HOUSE 7",
        "shortcode": "600638",
        "state": "part_paid",
        "active": True,
        "expected": "12000.00",
        "min": "500.00",
        "max": None,
        "received": "4000.00",
        "outstanding": "8000.00",
    }

    id: AccountId
    env: Environment
    shortcode: str
    number: str
    state: State
    active: bool
    expected: Amount | None
    min: Amount | None
    max: Amount | None
    received: str
    outstanding: Amount | None
    created_at: datetime
    updated_at: datetime


class AccountEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Money that counts: a transaction, a payment, or a refund with a negative amount."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"type": "transaction", "id": "txn_01jdk3v8rc4x9m2q7ztbn5wgae"}

    type: Annotated[Literal["transaction", "payment", "refund"], named("AccountEntryType")]
    id: str
    amount: str
    receipt: Receipt | None
    transaction_id: str | None
    at: datetime


class AccountWithEntries(AccountView, frozen=True, kw_only=True):
    """An account number with its newest 100 entries."""

    transactions: list[AccountEntry]


class BulkStored(msgspec.Struct, frozen=True, kw_only=True):
    """The number of stored account numbers."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"stored": 1}

    stored: int


class DeletedAccount(msgspec.Struct, frozen=True, kw_only=True):
    """The account number was deleted."""

    deleted: Yes = True
    number: str


class AccountQuery(ListQuery, frozen=True, kw_only=True):
    """Filters of account numbers."""

    shortcode: str | None = None
    active: bool | None = None


class OfShortcode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shortcode of an account number, by default the default one."""

    shortcode: str | None = None


def _text(cents: int | None) -> str | None:
    return None if cents is None else as_text(cents)


def account_view(row: Row) -> AccountView:
    return AccountView(**_fields(row))


def account_with_entries(row: Row, entries: list[Row]) -> AccountWithEntries:
    return AccountWithEntries(transactions=[_entry(one) for one in entries], **_fields(row))


def _fields(row: Row) -> dict[str, Any]:
    expected, received = row["expected_cents"], row["received_cents"]
    return {
        "id": row["account_id"],
        "env": row["env"],
        "shortcode": row["shortcode"],
        "number": row["number"],
        "state": state_of(received, expected),
        "active": row["is_active"],
        "expected": _text(expected),
        "min": _text(row["min_cents"]),
        "max": _text(row["max_cents"]),
        "received": as_text(received),
        "outstanding": None if expected is None else as_text(max(expected - received, 0)),
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }


_TYPES: Mapping[str, Literal["transaction", "payment", "refund"]] = {
    "txn": "transaction",
    "pay": "payment",
    "rfd": "refund",
    # An event that reports a reversal outside the gateway.
    "evt": "refund",
}


def _entry(row: Row) -> AccountEntry:
    source = row["source_id"]
    return AccountEntry(
        type=_TYPES[source[:3]],
        id=source,
        amount=as_text(row["amount_cents"]),
        receipt=row["receipt"],
        transaction_id=row["transaction_id"],
        at=row["occurred_at"] or row["at"],
    )
