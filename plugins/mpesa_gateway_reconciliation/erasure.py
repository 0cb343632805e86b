"""Erasure of a payer's phone number from statement notes."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpesa_gateway.erasure import ERASED, ErasedNumber, ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_reconciliation import tables
from mpesa_gateway_reconciliation.tables import NoteRow

_PAGE = 100


async def _find(gateway: Runtime, merchant_id: str, number: ErasedNumber, after: str) -> Sequence[str]:
    """Payments' lines are found through their payments."""
    rows: list[dict[str, Any]] = await gateway.db.run(
        NoteRow.select(NoteRow.transaction_id)
        .where(
            NoteRow.merchant_id == merchant_id,
            NoteRow.payer.is_in(list(number.forms)),
            NoteRow.payment_id.is_null(),
            NoteRow.transaction_id > after,
        )
        .order_by(NoteRow.transaction_id)
        .limit(_PAGE)
    )
    return [row["transaction_id"] for row in rows]


async def _widen(gateway: Runtime, case: ErasureCase) -> set[str]:
    rows = await gateway.db.fetch(tables.NOTES_OF_CASE, case.named)
    return {name for row in rows for name in (row["transaction_id"], row["payment_id"]) if name}


async def _objects(gateway: Runtime, case: ErasureCase) -> str | None:
    for row in await gateway.db.fetch(tables.NOTES_OF_CASE, case.named):
        is_open = row["set_aside_at"] is None and not row["is_allocated"]
        if is_open and row["finding"] in {"new", "ambiguous"}:
            return f"{row['transaction_id']} needs review"
        if max(row["created_at"], row["settled_at"] or row["created_at"]) >= case.before:
            return f"{row['transaction_id']} is too recent"
    return None


async def _erase(gateway: Runtime, case: ErasureCase) -> Mapping[str, int]:
    count = 0
    for row in await gateway.db.fetch(tables.NOTES_OF_CASE, case.named):
        # A NULL would be filled by a late answer.
        payer = ERASED if case.number.is_in(row["payer"]) else row["payer"]
        reason = row["set_aside_reason"] and case.number.without(row["set_aside_reason"])
        if (payer, reason) != (row["payer"], row["set_aside_reason"]):
            await gateway.db.run(
                NoteRow.update({NoteRow.payer: payer, NoteRow.set_aside_reason: reason}).where(
                    NoteRow.transaction_id == row["transaction_id"]
                )
            )
            count += 1
    return {"statement lines": count} if count else {}


LINES = Eraser(find=_find, widen=_widen, objects=_objects, erase=_erase)
