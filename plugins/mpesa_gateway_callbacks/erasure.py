"""Erases a payer's phone number, and the name that Daraja puts beside it, from the callbacks about their payments."""

from collections.abc import Mapping, Sequence

from mpesa_gateway.erasure import ErasedNumber, ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.tables import CallbackRow, RefusedRow

_PAGE = 100

_LOOKED_AT = 5000
"""How many callbacks are looked at in one go: few enough that Postgres is soon ready."""


async def _find(gateway: Runtime, merchant_id: str, number: ErasedNumber, after: str) -> Sequence[str]:
    """Callbacks about nothing that we know, and those that came after their payment's number had been erased."""
    pattern = f"%{number.forms[-1]}%"
    while rows := await gateway.db.fetch(tables.WITH_NUMBER, merchant_id, pattern, after, _LOOKED_AT):
        found = [row["callback_id"] for row in rows if row["body"] and number.is_in_json(row["body"])]
        if found:
            return found
        after = rows[-1]["callback_id"]
    return []


async def _find_refused(gateway: Runtime, merchant_id: str, number: ErasedNumber, after: str) -> Sequence[str]:
    """Refused callbacks about nothing that we know: whoever sent them, the number is to go."""
    pattern = f"%{number.forms[-1]}%"
    rows = await gateway.db.fetch(tables.LOOSE_REFUSED, merchant_id, pattern, after, _PAGE)
    return [row["refused_id"] for row in rows]


async def _widen(gateway: Runtime, case: ErasureCase) -> set[str]:
    """The callbacks of the case, locked, and what they are about."""
    rows = await gateway.db.fetch(tables.OF_CASE, case.named, case.named)
    return {name for row in rows for name in (row["callback_id"], row["subject_id"]) if name}


async def _objects(gateway: Runtime, case: ErasureCase) -> str | None:
    for row in await gateway.db.fetch(tables.OF_CASE, case.named, case.named):
        if row["verdict"] == "waiting":
            return f"{row['callback_id']} has been received and could not be used yet"
        if row["verdict"] == "unmatched" and row["received_at"] >= case.before:
            return f"{row['callback_id']}, about which we know nothing, is too recent"
    for row in await gateway.db.fetch(tables.REFUSED_OF_CASE, case.named):
        if row["at"] >= case.before:
            return f"{row['refused_id']}, which was refused, is too recent"
    return None


async def _erase(gateway: Runtime, case: ErasureCase) -> Mapping[str, int]:
    count = 0
    for row in await gateway.db.fetch(tables.OF_CASE, case.named, case.named):
        body, handle = case.number.without_in_json(row["body"]), case.number.without(row["handle"])
        if (body, handle) != (row["body"], row["handle"]):
            # From the old fingerprint the number could be found again, by trying all that there are.
            await gateway.db.run(
                CallbackRow.update(
                    {
                        CallbackRow.body: body,
                        CallbackRow.body_bytes: None,
                        CallbackRow.handle: handle,
                        CallbackRow.fingerprint: gateway.ids.token(16),
                    }
                ).where(CallbackRow.callback_id == row["callback_id"])
            )
            count += 1
    refused = 0
    for row in await gateway.db.fetch(tables.REFUSED_OF_CASE, case.named):
        if case.number.is_in_json(row["original"]):
            # It cannot be replayed any more; what is shown of it has been masked from the beginning.
            await gateway.db.run(
                RefusedRow.update(
                    {RefusedRow.original: None, RefusedRow.body_bytes: None, RefusedRow.signature: None}
                ).where(RefusedRow.refused_id == row["refused_id"])
            )
            refused += 1
    return {"callbacks": count, "refused callbacks": refused}


async def _erase_nothing(_: Runtime, __: ErasureCase) -> Mapping[str, int]:
    """What is refused goes with the rest."""
    return {}


CALLBACKS = (
    Eraser(find=_find, widen=_widen, objects=_objects, erase=_erase),
    Eraser(find=_find_refused, erase=_erase_nothing),
)
