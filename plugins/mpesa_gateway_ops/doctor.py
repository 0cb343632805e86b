"""Checks that an operator can sign in."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, note, ok
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.tables import OperatorRow


async def check_operators(gateway: Runtime, _: CheckContext) -> AsyncIterator[CheckResult]:
    """Report the number of active operators."""
    count = await gateway.db.run(OperatorRow.count().where(OperatorRow.is_active.eq(value=True)))
    if count:
        text = "one operator" if count == 1 else f"{count} operators"
        yield ok("ops.operators", f"{text} may log in at {gateway.url('/ops')}")
    else:
        yield note(
            "ops.operators",
            f"nobody can log in at {gateway.url('/ops')}: there is no operator",
            "mpesa-gateway operators create NAME, or take ops out of `plugins`",
        )


CHECKS = (Check("Operators", check_operators),)
