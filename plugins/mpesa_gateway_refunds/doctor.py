"""Check for refunds that need review."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, warning
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_refunds.tables import RefundRow


async def check_refunds(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    count = await gateway.db.run(
        RefundRow.count().where(
            RefundRow.merchant_id == context.require_merchant.merchant_id,
            RefundRow.env == context.env,
            RefundRow.status == "pending",
            RefundRow.attention.is_not_null(),
        )
    )
    if count:
        yield warning(
            "refunds.attention",
            f"{count} refunds need review: M-Pesa has not reported their results",
            "/ops/refunds?status=pending and GET /v1/refunds?status=pending show why; resolve each on its page, or "
            "with POST /v1/admin/refunds/{id}/resolve",
        )


CHECKS = (Check("Refunds", check_refunds, of_each_merchant=True),)
