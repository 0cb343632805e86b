"""Looks whether a refund waits for a person."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, warning
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_refunds.tables import RefundRow


async def check_refunds(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    """Refunds of which M-Pesa has not said what became of them."""
    count = await gateway.db.run(
        RefundRow.count().where(
            RefundRow.merchant_id == examination.one.merchant_id,
            RefundRow.env == examination.env,
            RefundRow.status == "pending",
            RefundRow.attention.is_not_null(),
        )
    )
    if count:
        yield warning(
            "refunds.attention",
            f"{count} refunds wait for a person: M-Pesa has not said what became of them",
            "GET /v1/refunds?status=pending shows why; decide by POST /v1/admin/refunds/{id}/resolve",
        )


CHECKS = (Check("Refunds", check_refunds, of_each_merchant=True),)
