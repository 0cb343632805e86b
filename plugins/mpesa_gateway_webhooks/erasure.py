"""Erasure of a payer's number from stored responses."""

from collections.abc import Mapping

from mpesa_gateway.erasure import ErasureCase
from mpesa_gateway.plugin import Eraser
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_webhooks import tables
from mpesa_gateway_webhooks.tables import AttemptRow, DeliveryRow


async def _objects(gateway: Runtime, case: ErasureCase) -> str | None:
    delivery_id = await gateway.db.fetchval(tables.OWED_OF_CASE, case.named)
    return None if delivery_id is None else f"{delivery_id} has not been delivered yet"


async def _erase(gateway: Runtime, case: ErasureCase) -> Mapping[str, int]:
    count = 0
    for row in await gateway.db.fetch(tables.ATTEMPTS_OF_CASE, case.named):
        answer = case.number.without(row["answer"])
        if answer != row["answer"]:
            await gateway.db.run(
                AttemptRow.update({AttemptRow.answer: answer}).where(AttemptRow.attempt_id == row["attempt_id"])
            )
            count += 1
    for row in await gateway.db.fetch(tables.ANSWERS_OF_CASE, case.named):
        answer = case.number.without(row["answer"])
        if answer != row["answer"]:
            await gateway.db.run(
                DeliveryRow.update({DeliveryRow.answer: answer}).where(DeliveryRow.delivery_id == row["delivery_id"])
            )
            count += 1
    return {"attempts at delivery": count}


ATTEMPTS = Eraser(objects=_objects, erase=_erase)
