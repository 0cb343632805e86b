"""Reports that the simulator replaces Safaricom's sandbox."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, note, warning
from mpesa_gateway.runtime import Runtime


async def check_simulator(_: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    if examination.is_live:
        text = "the simulator is enabled: sandbox payments are simulated, live ones never reach it"
        yield warning(
            "simulator.enabled", text, "keep its control API off the Internet, or take simulator out of `plugins`"
        )
    else:
        yield note("simulator.enabled", "the simulator is enabled: its phones replace Safaricom's, and no money moves")


CHECKS = (Check("Simulator", check_simulator),)
