"""Looks whether a merchant's payments end as they should: by M-Pesa's own word, and none left lying."""

from collections.abc import AsyncIterator
from datetime import timedelta

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, ok, warning
from mpesa_gateway.ids import Ids
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_payments import tables

_LATELY = timedelta(hours=24)
_ENOUGH = 5
"""Payments without a single callback that are no coincidence."""


async def check_payments(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    """Whether callbacks come, and whether money waits for a person."""
    merchant = examination.one
    row = await gateway.db.fetchrow(
        tables.EXAMINE, merchant.merchant_id, Ids.least("pay", examination.now - _LATELY), examination.env
    )
    if row is None:
        return
    if row["ended"] >= _ENOUGH and row["by_callback"] == 0:
        yield CheckResult(
            name="payments.callbacks",
            level=Level.PROBLEM if examination.env == "live" else Level.WARNING,
            text=f"none of its last {row['ended']} payments ended by a callback: they do not arrive here, and every "
            "payment takes longer",
            fix="see what is said above of public_url and of refused callbacks",
        )
    elif row["ended"]:
        text = f"{row['by_callback']} of its last {row['ended']} payments ended by M-Pesa's callback"
        yield ok("payments.callbacks", text)
    if row["held"]:
        yield warning(
            "payments.held",
            f"{row['held']} payments hold money that is not what was asked for, and wait for a person",
            "see what M-Pesa's portal says of each, then say that it has been looked after (/ops, Payments)",
        )


CHECKS = (Check("Payments", check_payments, of_each_merchant=True),)
