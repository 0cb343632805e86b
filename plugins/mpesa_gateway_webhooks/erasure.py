"""Erasure of a payer's number from stored responses."""

from collections.abc import Mapping

from mpesa_gateway.erasure import ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks import tables
from mpesa_gateway_webhooks.tables import AttemptRow, DeliveryRow


async def _objects(gateway: Runtime, case: ErasureCase) -> str | None:
    for row in await gateway.db.fetch(tables.DELIVERIES_OF_CASE, case.named):
        if row["status"] == "pending":
            return f"{row['delivery_id']} has not been delivered yet"
    return None


async def _erase(gateway: Runtime, case: ErasureCase) -> Mapping[str, int]:
    count = 0
    # Locked before the attempts are read: a replay moves the answer of a delivery to a new attempt.
    deliveries = await gateway.db.fetch(tables.DELIVERIES_OF_CASE, case.named)
    for row in await gateway.db.fetch(tables.ATTEMPTS_OF_CASE, case.named):
        answer = case.number.without(row["answer"])
        if answer != row["answer"]:
            await gateway.db.run(
                AttemptRow.update({AttemptRow.answer: answer}).where(AttemptRow.attempt_id == row["attempt_id"])
            )
            count += 1
    for row in deliveries:
        answer = row["answer"] and case.number.without(row["answer"])
        if answer != row["answer"]:
            await gateway.db.run(
                DeliveryRow.update({DeliveryRow.answer: answer}).where(DeliveryRow.delivery_id == row["delivery_id"])
            )
            count += 1
    return {"attempts at delivery": count}


ATTEMPTS = Eraser(objects=_objects, erase=_erase)
