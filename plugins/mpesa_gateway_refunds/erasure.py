"""Erasure of a payer's phone number from refunds."""

from collections.abc import Mapping, Sequence

from mpesa_gateway.db import idempotency
from mpesa_gateway.erasure import ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.subjects import callback_subjects
from mpesa_gateway_refunds.tables import RefundRow


async def _widen(gateway: Runtime, case: ErasureCase) -> set[str]:
    # Callbacks refer to a refund by its ids at Daraja and by its subjects.
    rows = await gateway.db.fetch(tables.OF_CASE, case.named)
    named = [row[name] for row in rows for name in ("originator_conversation_id", "conversation_id")]
    for row in rows:
        named += [row["payment_id"], row["transaction_id"], *callback_subjects(row["refund_id"])]
    return {name for name in named if name}


async def _objects(gateway: Runtime, case: ErasureCase) -> str | None:
    rows = await gateway.db.fetch(tables.OF_CASE, case.named)
    pending = next((row["refund_id"] for row in rows if row["status"] == "pending"), None)
    if pending is not None:
        return f"{pending} is pending"
    recent = next((row for row in rows if row["updated_at"] >= case.before), None)
    return None if recent is None else f"{recent['refund_id']} is too recent"


async def _erase(gateway: Runtime, case: ErasureCase) -> Mapping[str, int]:
    count = 0
    for row in await gateway.db.fetch(tables.OF_CASE, case.named):
        texts = [row["reason"], row["result_desc"]]
        if any(case.number.is_in(text) for text in texts):
            reason, result_desc = (text and case.number.without(text) for text in texts)
            await gateway.db.run(
                RefundRow.update({RefundRow.reason: reason, RefundRow.result_desc: result_desc}).where(
                    RefundRow.refund_id == row["refund_id"]
                )
            )
            if row["idempotency_key"] is not None:
                # The key's fingerprint covers a text with the number.
                await idempotency.delete_key(
                    gateway.db, merchant_id=row["merchant_id"], env=row["env"], key=row["idempotency_key"]
                )
            count += 1
    return {"refunds": count}


async def _keeps(gateway: Runtime, case: ErasureCase) -> Sequence[str]:
    rows = await gateway.db.fetch(tables.OF_CASE, case.named)
    return [
        f"the Idempotency-Key of {row['refund_id']} contains the number; it stays, to prevent a second refund"
        for row in rows
        if case.number.is_in(row["idempotency_key"])
    ]


REFUNDS = Eraser(widen=_widen, objects=_objects, erase=_erase, keeps=_keeps)
