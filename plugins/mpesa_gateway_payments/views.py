"""A payment's row as API view, CSV row and event fields."""

from collections.abc import Mapping
from typing import Any

import msgspec

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.db.engine import Row
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.events import PaymentEvent
from mpesa_gateway_payments.result_codes import SUCCESS_TEXT
from mpesa_gateway_payments.schemas import Mismatch, PaymentView


def view(row: Row) -> PaymentView:
    mismatch = row["mismatch"]
    return PaymentView(
        id=row["payment_id"],
        merchant_id=row["merchant_id"],
        env=row["env"],
        amount=Kes(row["amount"]).wire,
        refunded_amount=Kes(row["refunded"]).wire,
        currency=row["currency"],
        provider=row["provider"],
        shortcode=row["shortcode"],
        status=row["status"],
        provider_ref=row["checkout_request_id"],
        idempotency_key=row["idempotency_key"],
        created_at=row["created_at"],
        phone=row["phone"],
        reference=row["reference"],
        description=row["description"],
        receipt=row["receipt"],
        result_code=row["result_code"],
        result_desc=_result_desc(row),
        failure_reason=row["failure_reason"],
        mismatch=None
        if mismatch is None
        else Mismatch(of=mismatch, received_amount=row["received_amount"], received_receipt=row["received_receipt"]),
        completed_at=row["completed_at"],
        updated_at=row["updated_at"],
        metadata=_metadata(row),
    )


_SHOWN = tuple(name for name in PaymentView.__struct_fields__ if name not in {"merchant_id", "mismatch", "metadata"})

EXPORTED: tuple[str, ...] = (*_SHOWN, "mismatch", "received_amount", "received_receipt", "metadata")
"""The columns of the CSV file."""


def exported(row: Row) -> tuple[Any, ...]:
    shown = view(row)
    plain = tuple(getattr(shown, name) for name in _SHOWN)
    return (*plain, row["mismatch"], row["received_amount"], row["received_receipt"], row["metadata"])


def event_fields(row: Row | Mapping[str, Any]) -> Mapping[str, Any]:
    fields: dict[str, Any] = {name: row[name] for name in _SHARED}
    completed_at = row["completed_at"]
    return fields | {
        "subject_id": row["payment_id"],
        "amount": Kes(row["amount"]).wire,
        "provider_ref": row["checkout_request_id"],
        "metadata": _metadata(row),
        "result_desc": _result_desc(row),
        "created_at": rfc3339(row["created_at"]),
        "completed_at": None if completed_at is None else rfc3339(completed_at),
    }


_SHARED = tuple(
    name
    for name in PaymentEvent.__struct_fields__
    if name
    not in {"event_id", "occurred_at", "subject_id", "amount", "provider_ref", "metadata", "created_at", "completed_at"}
)


def _result_desc(row: Row | Mapping[str, Any]) -> str | None:
    text: str | None = row["result_desc"]
    return SUCCESS_TEXT if text is None and row["result_code"] == "0" else text


def _metadata(row: Row | Mapping[str, Any]) -> dict[str, str]:
    return msgspec.json.decode(row["metadata"], type=dict[str, str])
