"""Runs single checks of the doctor on a running gateway."""

from datetime import UTC, datetime, timedelta
from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.check_result import CheckContext, CheckResult, Look
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.security.scopes import Env


class ShiftedClock:
    """A clock that is ``ahead`` seconds ahead."""

    def __init__(self, ahead: float) -> None:
        self._ahead = timedelta(seconds=ahead)

    def now(self) -> datetime:
        """Return the shifted time."""
        return datetime.now(UTC) + self._ahead


async def results_of_check(look: Look, gateway: Gateway, **examined: Any) -> dict[str, CheckResult]:
    """Return the results of a check by name. Raises AssertionError for two results with one name."""
    wishes: dict[str, Any] = {"now": gateway.clock.now(), "is_live": False}
    merchant = examined.get("merchant")
    wishes |= {} if merchant is None else {"env": merchant.env}
    examination = CheckContext(**(wishes | examined))
    found: dict[str, CheckResult] = {}
    async for observation in look(gateway, examination):
        assert observation.name not in found
        found[observation.name] = observation
    return found


def levels(seen: dict[str, CheckResult]) -> dict[str, str]:
    """Return the level of each result by name."""
    return {name: observation.level.value for name, observation in seen.items()}


async def only_merchant(gateway: Gateway) -> Merchant:
    """Return the merchant of a test with one shop."""
    (merchant,) = (await gateway.merchants.page(10)).rows
    return merchant


def merchant_in(env: Env, gateway: Gateway) -> Merchant:
    """Return a merchant of an environment, for checks that read no row of it."""
    return Merchant(merchant_id="mer_1", name="Shop", envs=(env,), is_active=True, created_at=gateway.clock.now())
