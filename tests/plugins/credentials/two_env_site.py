"""A gateway between a sandbox and a live Daraja, whose merchants have keys for both."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import Clock
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.testing.serving import INITIATED, Answer, Api, running_gateway
from tests.daraja import Daraja, fault, scripted_daraja

PROVIDERS = "/v1/merchant/providers"
REGISTER = "/v1/payments/mpesa/pull/register"
RECONCILE = "/v1/payments/mpesa/reconcile"
SPIKE_ARREST = fault("500.003.02", "Error Occurred: Spike Arrest Violation")
PHONE = "254711000001"


@dataclass(frozen=True)
class Account:
    """A merchant with a client for each of its keys."""

    merchant_id: str
    sandbox: Api
    live: Api

    def api(self, env: Env) -> Api:
        return self.live if env == "live" else self.sandbox


@dataclass(frozen=True)
class TwoEnvSite:
    """The gateway and the two Darajas."""

    gateway: Gateway
    base: str
    sandbox: Daraja
    live: Daraja
    stack: AsyncExitStack

    def daraja(self, env: Env) -> Daraja:
        return self.live if env == "live" else self.sandbox

    async def account(self) -> Account:
        """Create a merchant without credentials."""
        merchant_id = (await self.gateway.merchants.create("Shop", actor="test")).merchant_id
        return Account(merchant_id, await self._client(merchant_id, "sandbox"), await self._client(merchant_id, "live"))

    async def _client(self, merchant_id: str, env: Env) -> Api:
        _, secret = await self.gateway.api_keys.create(
            merchant_id, name=env, scopes=self.gateway.scopes.of_merchants, env=env, actor="test"
        )
        api = Api(self.base, secret.reveal())
        self.stack.push_async_callback(api.close)
        return api


@asynccontextmanager
async def two_env_site(values: dict[str, Any], clock: Clock | None = None) -> AsyncGenerator[TwoEnvSite]:
    """Serve such a gateway without a worker or simulator."""
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    values.pop("simulator", None)
    options: dict[str, Any] = {} if clock is None else {"clock": clock}
    async with AsyncExitStack() as stack:
        sandbox, live = (
            await stack.enter_async_context(scripted_daraja()),
            await stack.enter_async_context(scripted_daraja()),
        )
        values |= {
            "public_url": "https://pay.example.co.ke",
            "daraja": {"sandbox_url": sandbox.base, "live_url": live.base},
            "worker": {"in_process": False},
        }
        gateway, base = await stack.enter_async_context(running_gateway(values, **options))
        yield TwoEnvSite(gateway, base, sandbox, live, stack)


async def put(api: Api, env: Env, shortcode: str = "600001", **changes: Any) -> Answer:
    """Store credentials for a shortcode with changes. None omits a field."""
    fields = INITIATED["mpesa"] | {"env": env, "shortcode": shortcode} | changes
    mpesa = {name: value for name, value in fields.items() if value is not None}
    return await api.call("PUT", PROVIDERS, {"provider": "mpesa", "mpesa": mpesa})


async def complete_payment(site: TwoEnvSite, payment_id: str, receipt: str = "TKN4A1B2C3") -> None:
    """Complete a payment as a callback would."""
    await site.gateway.db.execute(
        "UPDATE payment SET status = 'completed', receipt = $2, completed_at = now(), due_at = NULL "
        "WHERE payment_id = $1",
        payment_id,
        receipt,
    )
