"""Wire schemas of transactions."""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from mpesa_gateway.env import Environment
from mpesa_gateway.http.field_rules import PHONE, WHOLE, Rule, at_most, matching
from mpesa_gateway.http.fields import Amount, Currency, MerchantId, Receipt, example_id, named
from mpesa_gateway.http.query import Limit, Moment
from mpesa_gateway_transactions.api import Direction, TransactionId
from mpesa_gateway_transactions.money_kinds import MoneyKind

ReversedOutside = Literal["whole", "part"]

SHORTEST_NOTE, LONGEST_NOTE = 3, 500

RECEIPT = matching("[A-Za-z0-9]{6,20}", "must be a receipt such as TKN4A1B2C3")
NUMBER = matching("[0-9]{5,7}", "must be 5 to 7 digits")


def _note(text: str) -> str:
    if not SHORTEST_NOTE <= len(text.strip()) <= LONGEST_NOTE or "\x00" in text:
        raise ValueError("must be 3 to 500 characters, none of them NUL")
    return text.strip()


class Payer(msgspec.Struct, frozen=True, kw_only=True):
    """The other party, as far as M-Pesa shows it."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"phone": "2547*****149", "name": "JOHN"}

    phone: str | None
    name: str | None


class AllocatedTo(msgspec.Struct, frozen=True, kw_only=True):
    """The subject of the money. ``resolved``: a person marked it as dealt with."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"type": "payment", "id": example_id("pay")}

    type: str
    id: str


class Witness(msgspec.Struct, frozen=True, kw_only=True):
    """A report of the money. ``detail`` states what differs from the first one."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"source": "c2b", "detail": None}

    source: str
    seen_at: datetime
    detail: str | None


class AllocationView(msgspec.Struct, frozen=True, kw_only=True):
    """A decision on the money, by a rule (its name) or a person."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"by": "own_reference", "note": None}

    allocated_to: AllocatedTo
    by: str
    at: datetime
    note: str | None


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    """Money that M-Pesa moved. ``amount`` is null if no report states a readable one.

    ``refunded_amount`` was returned to the payer; what was returned of a payment is in the payment. ``reversed`` is
    ``whole`` or ``part`` if M-Pesa returned money without a refund of this gateway; a part's amount may be unknown.
    """

    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "shortcode": "174379",
        "direction": "in",
        "kind": "c2b",
        "fee": None,
        "refunded_amount": "0.00",
        "reversed": None,
        "account_number": "ORDER 1041",
    }

    id: TransactionId
    merchant_id: MerchantId
    env: Environment
    shortcode: str
    direction: Annotated[Direction, named("Direction")]
    kind: Annotated[MoneyKind, named("MoneyKind")]
    amount: Amount | None
    fee: Amount | None
    refunded_amount: Amount
    reversed: Annotated[ReversedOutside, named("ReversedOutside")] | None
    currency: Currency
    receipt: Receipt
    account_number: str | None
    payer: Payer
    occurred_at: datetime
    allocated_to: AllocatedTo | None
    witnesses: list[Witness]


class TransactionDetails(TransactionView, frozen=True, kw_only=True):
    """A transaction with the decisions on it, oldest first."""

    allocations: list[AllocationView]


class TransactionFilters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of transactions; they can be combined. ``since`` and ``until`` compare the time of the first report."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "shortcode": NUMBER,
        "account_number": at_most(100),
        "phone": PHONE,
        "receipt": RECEIPT,
        "min_amount": WHOLE,
        "max_amount": WHOLE,
    }

    direction: Annotated[Direction, named("Direction")] | None = None
    kind: Annotated[MoneyKind, named("MoneyKind")] | None = None
    allocated: bool | None = None
    shortcode: str | None = None
    account_number: str | None = None
    phone: str | None = None
    receipt: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    min_amount: Decimal | None = None
    max_amount: Decimal | None = None


class TransactionQuery(TransactionFilters, frozen=True, kw_only=True):
    """Filters and page. ``count`` requests ``meta.total`` and ``meta.total_amount``."""

    limit: Limit = 50
    cursor: str | None = None
    count: bool = False


class Allocate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The subject of money: a payment, or, with a note alone, something dealt with outside the gateway."""

    RULES: ClassVar[Mapping[str, Callable[..., Any]]] = {
        "payment_id": matching("pay_[0-9a-z]{26}", "must be the id of a payment"),
        "note": Rule(_note, minLength=SHORTEST_NOTE, maxLength=LONGEST_NOTE, examples=["order 1041, paid at the till"]),
    }
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"payment_id": example_id("pay")}

    payment_id: str | None = None
    note: str | None = None
