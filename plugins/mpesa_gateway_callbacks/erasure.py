"""Erasure of a payer's number and name from callbacks."""

from collections.abc import Mapping, Sequence

import msgspec

from mpesa_gateway.erasure import ERASED, ErasedNumber, ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.tables import CallbackRow, RefusedRow

_PAGE = 100

_SCANNED_AT_ONCE = 5000
"""Limits the duration of one query."""


async def _find(gateway: Runtime, merchant_id: str, number: ErasedNumber, after: str) -> Sequence[str]:
    pattern = f"%{number.forms[-1]}%"
    while rows := await gateway.db.fetch(tables.WITH_NUMBER, merchant_id, pattern, after, _SCANNED_AT_ONCE):
        found = [row["callback_id"] for row in rows if row["body"] and number.is_in_json(row["body"])]
        if found:
            return found
        after = rows[-1]["callback_id"]
    return []


async def _find_refused(gateway: Runtime, merchant_id: str, number: ErasedNumber, after: str) -> Sequence[str]:
    pattern = f"%{number.forms[-1]}%"
    rows = await gateway.db.fetch(tables.LOOSE_REFUSED, merchant_id, pattern, after, _PAGE)
    return [row["refused_id"] for row in rows]


async def _widen(gateway: Runtime, case: ErasureCase) -> set[str]:
    rows = await gateway.db.fetch(tables.OF_CASE, case.named, case.named)
    # Without a merchant the subject is a standing address, of all payers.
    subjects = {row["subject_id"] for row in rows if row["subject_id"] and row["merchant_id"]}
    handles = {row["handle"] for row in rows if row["subject_id"] and not row["merchant_id"]}
    return {row["callback_id"] for row in rows} | subjects | handles


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
        kind = gateway.callback_kinds.get(row["kind"])
        if kind is not None and kind.personal:
            body = _without_fields(body, kind.personal)
        if (body, handle) != (row["body"], row["handle"]):
            # The old fingerprint would reveal the number to a search over all numbers.
            await gateway.db.run(
                CallbackRow.update(
                    {
                        CallbackRow.form_id: None,
                        CallbackRow.stored_body: body,
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
            # It cannot be replayed afterwards. Its displayed text was masked when it was stored.
            await gateway.db.run(
                RefusedRow.update(
                    {RefusedRow.original: None, RefusedRow.body_bytes: None, RefusedRow.signature: None}
                ).where(RefusedRow.refused_id == row["refused_id"])
            )
            refused += 1
    return {"callbacks": count, "refused callbacks": refused}


def _without_fields(body: str, names: frozenset[str]) -> str:
    try:
        content = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    found = names & content.keys()
    erased = msgspec.Raw(msgspec.json.encode(ERASED))
    return msgspec.json.encode(content | dict.fromkeys(found, erased)).decode() if found else body


async def _erase_nothing(_: Runtime, __: ErasureCase) -> Mapping[str, int]:
    # The other eraser erases refused callbacks too.
    return {}


CALLBACKS = (
    Eraser(find=_find, widen=_widen, objects=_objects, erase=_erase),
    Eraser(find=_find_refused, erase=_erase_nothing),
)
