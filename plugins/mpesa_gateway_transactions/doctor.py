"""Check for reports that contradict recorded money."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, warning
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_transactions.contradictions import ContradictionReview


async def check_contradictions(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    """Count the reports of M-Pesa that state another amount or receiver than the first report of their receipt."""
    merchant_id = context.require_merchant.merchant_id
    count = await gateway.port(ContradictionReview).count(context.env, merchant_id)
    if count:
        yield warning(
            "transactions.contradictions",
            f"{count} {'report of M-Pesa contradicts' if count == 1 else 'reports of M-Pesa contradict'} an earlier "
            "one of the same receipt",
            "compare each with M-Pesa's portal, then mark it as resolved (/ops/transactions/contradictions)",
        )


CHECKS = (Check("Transactions", check_contradictions, of_each_merchant=True),)
