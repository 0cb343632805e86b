"""A gateway at a scripted Daraja, with a shop whose shortcode is registered for C2B."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.engine import Row
from mpesa_gateway.testing.serving import Answer, Api, running_gateway, shop
from tests.daraja import Daraja, c2b_body, scripted_daraja

PHONE = "254708374149"
DIGEST = "bbff37cea44ac0b2d964ee0dfb8d2df8513dc7ba1b36129a929fc3fbd6dd4af4"
"""SHA-256 of the phone."""


@dataclass(frozen=True)
class C2bSite:
    """The gateway, its Daraja, and a shop's client."""

    gateway: Gateway
    base: str
    daraja: Daraja
    api: Api
    stack: AsyncExitStack

    async def register(self, api: Api | None = None, shortcode: str = "174379", **more: Any) -> Answer:
        """Register the addresses of a shortcode."""
        return await (api or self.api).call("POST", f"/v1/merchant/shortcodes/{shortcode}/c2b", more)

    async def addresses(self) -> tuple[str, str]:
        """Register, and return the paths of confirmations and of validation requests."""
        found = (await self.register()).data["addresses"]
        return path_of(found["confirmation"]), path_of(found["validation"])

    async def confirm(self, path: str, receipt: str = "TKN4A1B2C3", **body: Any) -> Answer:
        """Post a confirmation, as Safaricom does."""
        return await self.api.call("POST", path, c2b_body(receipt, **body))

    async def transactions(self) -> list[Row]:
        return await self.gateway.db.fetch("SELECT * FROM transaction ORDER BY receipt")

    async def witnesses(self) -> list[tuple[str, str]]:
        rows = await self.gateway.db.fetch(
            "SELECT receipt, source FROM transaction_witness JOIN transaction USING (transaction_id) ORDER BY 1, 2"
        )
        return [(row["receipt"], row["source"]) for row in rows]


def path_of(url: Any) -> str:
    return urlsplit(str(url)).path


@asynccontextmanager
async def c2b_site(values: dict[str, Any], **options: Any) -> AsyncGenerator[C2bSite]:
    """Serve such a gateway without the simulator."""
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    values.pop("simulator", None)
    async with AsyncExitStack() as stack:
        daraja = await stack.enter_async_context(scripted_daraja())
        values["daraja"] = {"sandbox_url": daraja.base}
        gateway, base = await stack.enter_async_context(running_gateway(values, **options))
        api = await stack.enter_async_context(shop(gateway, base))
        yield C2bSite(gateway, base, daraja, api, stack)
