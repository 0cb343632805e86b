"""Says that simulated phones stand for Safaricom, which must not be beside real money."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from mpesa_gateway.doctor.observation import Check, Examination, Observation, note, problem

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


async def look_at_simulator(_: "Gateway", examination: Examination) -> AsyncIterator[Observation]:
    """Enabled at all, it is worth a word."""
    if examination.is_live:
        text = "the simulator is enabled: whoever reaches it can make callbacks up, and live merchants are refused"
        yield problem("simulator.enabled", text, "take simulator out of `plugins`")
    else:
        yield note("simulator.enabled", "the simulator is enabled: its phones stand for Safaricom, and no money moves")


CHECKS = (Check("Simulator", look_at_simulator),)
