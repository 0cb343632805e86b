"""Doctor checks of payments: callbacks arrive, and no payment or status answer needs review."""

from collections.abc import AsyncIterator
from datetime import timedelta

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, ok, warning
from mpesa_gateway.ids import Ids
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.answer_review import StatusAnswerReview

_RECENT = timedelta(hours=24)
_ENOUGH = 5
"""Payments without any callback that are no coincidence."""


async def check_payments(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    """Check that callbacks arrive and no payment or status answer needs review."""
    merchant = examination.require_merchant
    row = await gateway.db.fetchrow(
        tables.COUNT_FOR_DOCTOR, merchant.merchant_id, Ids.least("pay", examination.now - _RECENT), examination.env
    )
    if row is None:
        return
    if row["ended"] >= _ENOUGH and row["by_callback"] == 0:
        yield CheckResult(
            name="payments.callbacks",
            level=Level.PROBLEM if examination.env == "live" else Level.WARNING,
            text=f"none of its last {row['ended']} payments ended by a callback: callbacks do not arrive here, and "
            "every payment takes longer",
            fix="see the checks of public_url and of refused callbacks above",
        )
    elif row["ended"]:
        text = f"{row['by_callback']} of its last {row['ended']} payments ended by M-Pesa's callback"
        yield ok("payments.callbacks", text)
    if row["held"]:
        yield warning(
            "payments.held",
            f"{row['held']} payments have money that differs from the request, and need review",
            "check each on M-Pesa's portal, then mark it as resolved (/ops, Payments)",
        )
    undecided = await gateway.port(StatusAnswerReview).count(examination.env, merchant.merchant_id)
    if undecided:
        yield warning(
            "payments.answers",
            f"{undecided} ambiguous status {'answer reports' if undecided == 1 else 'answers report'} money that no "
            "payment has",
            "find each receipt on M-Pesa's portal, then mark it as resolved (/ops/payments/answers)",
        )


CHECKS = (Check("Payments", check_payments, of_each_merchant=True),)
