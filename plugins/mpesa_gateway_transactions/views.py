"""A transaction's row as API view and CSV row."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from mpesa_gateway.db.engine import Row
from mpesa_gateway.ids import Ids
from mpesa_gateway.money import cents_text
from mpesa_gateway_transactions.schemas import AllocatedTo, AllocationView, Payer, TransactionView, Witness

Values: TypeAlias = Row | Mapping[str, Any]


def cents(amount: int | None) -> str | None:
    """Return an amount in the API's format."""
    return None if amount is None else cents_text(amount)


def subject_of(row: Values) -> AllocatedTo | None:
    return None if row["subject_kind"] is None else AllocatedTo(type=row["subject_kind"], id=row["subject_id"])


def view(row: Values, shortcode: str, witnesses: Sequence[Mapping[str, Any]]) -> TransactionView:
    return TransactionView(**fields(row, shortcode, witnesses))


def fields(row: Values, shortcode: str, witnesses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = Witness(source=row["first_source"], seen_at=Ids.time_of(row["transaction_id"]), detail=None)
    later = [Witness(source=one["source"], seen_at=one["seen_at"], detail=one["detail"]) for one in witnesses]
    return {
        "id": row["transaction_id"],
        "merchant_id": row["merchant_id"],
        "env": row["env"],
        "shortcode": shortcode,
        "direction": row["direction"],
        "kind": row["category"],
        "amount": cents(row["amount_cents"]),
        "fee": cents(row["fee_cents"]),
        "refunded_amount": cents(row["refunded_cents"]),
        "reversed": row["reversed_outside"],
        "currency": "KES",
        "receipt": row["receipt"],
        "account_number": row["account_number"],
        "payer": Payer(phone=row["payer"], name=row["payer_name"]),
        "occurred_at": row["occurred_at"],
        "allocated_to": subject_of(row),
        "witnesses": [first, *later],
    }


def allocation_view(row: Values) -> AllocationView:
    to = AllocatedTo(type=row["subject_kind"], id=row["subject_id"])
    return AllocationView(allocated_to=to, by=row["by"], at=row["at"], note=row["note"])


_PLAIN = (
    "id",
    "env",
    "shortcode",
    "direction",
    "kind",
    "amount",
    "fee",
    "refunded_amount",
    "reversed",
    "currency",
    "receipt",
    "account_number",
)

EXPORTED = (*_PLAIN, "payer_phone", "payer_name", "occurred_at", "allocated_to_type", "allocated_to_id", "first_source")
"""The columns of the CSV file."""


def exported(row: Values, shortcode: str) -> tuple[Any, ...]:
    shown = fields(row, shortcode, ())
    ends = (row["payer"], row["payer_name"], row["occurred_at"], row["subject_kind"], row["subject_id"])
    return (*(shown[name] for name in _PLAIN), *ends, row["first_source"])
