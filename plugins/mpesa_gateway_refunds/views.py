"""Refunds as the API and the CSV file show them."""

from typing import Any

from mpesa_gateway.db.engine import Found
from mpesa_gateway.money import Kes
from mpesa_gateway_refunds.schemas import RefundView

_PLAIN = tuple(
    name
    for name in RefundView.__struct_fields__
    if name not in {"id", "amount", "currency", "provider", "provider_ref"}
)


def view(row: Found) -> RefundView:
    return RefundView(
        id=row["refund_id"],
        amount=Kes(row["amount"]).wire,
        currency="KES",
        provider="mpesa",
        provider_ref=row["originator_conversation_id"],
        **{name: row[name] for name in _PLAIN},
    )


EXPORTED: tuple[str, ...] = tuple(name for name in RefundView.__struct_fields__ if name != "merchant_id")


def exported(row: Found) -> tuple[Any, ...]:
    shown = view(row)
    return tuple(getattr(shown, name) for name in EXPORTED)
