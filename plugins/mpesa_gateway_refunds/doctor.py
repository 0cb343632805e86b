"""Looks whether a refund waits for a person."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from mpesa_gateway.doctor.observation import Check, Examination, Observation, warning
from mpesa_gateway_refunds import tables

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def look_at_refunds(gateway: "Gateway", examination: Examination) -> AsyncIterator[Observation]:
    """Refunds of which M-Pesa has not said what became of them."""
    count = await gateway.db.fetchval(tables.NEEDING_ATTENTION, examination.one.merchant_id, examination.env)
    if count:
        yield warning(
            "refunds.attention",
            f"{count} refunds wait for a person: M-Pesa has not said what became of them",
            "GET /v1/refunds?status=pending shows why; decide by POST /v1/admin/refunds/{id}/resolve",
        )


CHECKS = (Check("Refunds", look_at_refunds, of_each_merchant=True),)
