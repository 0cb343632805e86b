"""Checks that a person of the host can sign in."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, note, ok
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.tables import PersonRow


async def check_operators(gateway: Runtime, _: CheckContext) -> AsyncIterator[CheckResult]:
    count = await gateway.db.run(
        PersonRow.count().where(PersonRow.is_active.eq(value=True), PersonRow.host_role.is_not_null())
    )
    if count:
        text = "one person" if count == 1 else f"{count} persons"
        yield ok("ops.operators", f"{text} may log in at {gateway.url('/ops')}")
    else:
        yield note(
            "ops.operators",
            f"nobody can log in at {gateway.url('/ops')}: there is no person of the host",
            "mpesa-gateway people create EMAIL, or take ops out of `plugins`",
        )


CHECKS = (Check("Operators", check_operators),)
