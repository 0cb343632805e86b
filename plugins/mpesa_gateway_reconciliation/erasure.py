"""Erases a payer's phone number from M-Pesa's statements as we have kept them, whoever the money belongs to."""

from collections.abc import Mapping, Sequence

from mpesa_gateway.erasure import Case, Number
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_reconciliation import tables

_PAGE = 100


async def _find(gateway: Runtime, merchant_id: str, number: Number, after: str) -> Sequence[str]:
    """Money that belongs to no payment here; other lines are their payments'."""
    rows = await gateway.db.fetch(tables.LOOSE_LINES_OF_PAYER, merchant_id, list(number.forms), after, _PAGE)
    return [row["line_id"] for row in rows]


async def _widen(gateway: Runtime, case: Case) -> set[str]:
    """The lines of the case's payments: M-Pesa may have been asked whose money they are."""
    rows = await gateway.db.fetch(tables.LINES_OF_CASE, case.named)
    return {name for row in rows for name in (row["line_id"], row["payment_id"]) if name}


async def _objects(gateway: Runtime, case: Case) -> str | None:
    for row in await gateway.db.fetch(tables.LINES_OF_CASE, case.named):
        if row["finding"] in {"new", "ambiguous"} and row["set_aside_at"] is None:
            return f"{row['line_id']} waits for a person"
        if max(row["created_at"], row["settled_at"] or row["created_at"]) >= case.before:
            return f"{row['line_id']} is too recent"
    return None


async def _erase(gateway: Runtime, case: Case) -> Mapping[str, int]:
    count = 0
    for row in await gateway.db.fetch(tables.LINES_OF_CASE, case.named):
        phone = None if case.number.is_in(row["phone"]) else row["phone"]
        texts = [row[name] and case.number.without(row[name]) for name in ("reference", "set_aside_reason")]
        if [phone, *texts] != [row["phone"], row["reference"], row["set_aside_reason"]]:
            await gateway.db.execute(tables.ERASE, row["line_id"], phone, *texts)
            count += 1
    return {"statement lines": count}


LINES = Eraser(find=_find, widen=_widen, objects=_objects, erase=_erase)
