"""Protects the example shop: a buyer's way from the product page to "Paid", with every error on it."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import niquests
import pytest

from examples.shop.__main__ import our_merchant
from examples.shop.shop import Orders, application
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.testing.serving import eventually, listening, serving


class Buyer:
    """A browser without JavaScript."""

    def __init__(self, base: str, session: niquests.AsyncSession) -> None:
        self.base = base
        self._session = session

    async def get(self, path: str) -> str:
        answer = await self._session.get(self.base + path)
        assert answer.status_code == 200, answer.text
        return answer.text or ""

    async def post(self, path: str, **fields: str) -> niquests.Response:
        """Submit a form and return the page that it leads to."""
        return await self._session.post(self.base + path, data=fields)

    async def buy(self, phone: str, item: str = "chapati", order_id: str | None = None) -> str:
        """Submit the order form and return the order's path."""
        found = re.search(r'name="order_id" value="([0-9a-f]{32})"', await self.get("/"))
        assert found is not None
        page = await self.post("/orders", order_id=order_id or found[1], item=item, phone=phone)
        assert page.status_code == 200, page.text
        assert str(page.url).startswith(f"{self.base}/orders/")
        return str(page.url).removeprefix(self.base)

    async def wait_for_text(self, path: str, words: str) -> str:
        """Return the order's page once it contains this text."""

        async def shown() -> str:
            page = await self.get(path)
            return page if words in page else ""

        return await eventually(shown)


@asynccontextmanager
async def open_shop(values: dict[str, Any], folder: Path, prefix: str) -> AsyncGenerator[tuple[Buyer, Orders, Gateway]]:
    with listening() as at:
        base = f"http://127.0.0.1:{at.getsockname()[1]}"
        values |= {"public_url": base + prefix, "daraja": {"sandbox_url": f"{base}{prefix}/simulator", "timeout": 2}}
        values["payments"] = {"expire_after": 30, "query_after": [1, 1, 1]}
        gateway = Gateway(GatewayConfig.from_values(values))
        orders = Orders(folder / "orders.sqlite")
        async with serving(application(gateway, orders, our_merchant, prefix=prefix), at):
            session = niquests.AsyncSession()
            session.trust_env = False
            yield Buyer(base, session), orders, gateway
            await session.close()


@pytest.mark.parametrize("prefix", ["/payments", "/m/pesa"])
async def test_shop_order_is_paid(values: dict[str, Any], tmp_path: Path, prefix: str) -> None:
    async with open_shop(values, tmp_path, prefix) as (buyer, orders, _):
        path = await buyer.buy("0712 345 678")
        page = await buyer.wait_for_text(path, "Paid, receipt ")
        order = orders.find(path.removeprefix("/orders/"))
        assert order.receipt is not None
        assert f"Paid, receipt {order.receipt}" in page
        assert "KES 60" in page
        # The same form submitted again is the same order and sends no second prompt.
        assert await buyer.buy("0712 345 678", order_id=order.order_id) == path
        assert orders.find(order.order_id) == order


async def test_shop_pay_pressed_twice_sends_one_prompt(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, _, gateway):
        order_id = "ab" * 16
        paths = await asyncio.gather(*(buyer.buy("0712345678", order_id=order_id) for _ in range(5)))
        assert set(paths) == {f"/orders/{order_id}"}
        await buyer.wait_for_text(paths[0], "Paid, receipt ")
        assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1


async def test_shop_payment_cancelled_and_retried_is_paid_once(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, orders, gateway):
        path = await buyer.buy("0700000001")
        await buyer.wait_for_text(path, "Not paid: cancelled by user")
        wrong = await buyer.post(f"{path}/again", attempt="1", phone="12")
        assert wrong.status_code == 422
        assert "Try again" in (wrong.text or "")
        for _ in range(2):
            await buyer.post(f"{path}/again", attempt="1", phone="0712345678")
        await buyer.wait_for_text(path, "Paid, receipt ")
        assert orders.find(path.removeprefix("/orders/")).attempt == 2
        assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 2
        assert orders.too_much() == []


async def test_shop_push_rejected_by_mpesa_shows_the_reason(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, _, _):
        path = await buyer.buy("0700000015")
        page = await buyer.wait_for_text(path, "Try again")
        assert "✕" in page


async def test_shop_invalid_input_and_unknown_order_are_reported(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, _, _):
        page = await buyer.post("/orders", order_id="cd" * 16, item="unga", phone="12345")
        assert page.status_code == 422
        assert f'value="{"cd" * 16}"' in (page.text or "")
        assert 'value="unga" checked' in (page.text or "")
        assert (await buyer.post("/orders", order_id="x", item="unga", phone="0712345678")).status_code == 422
        assert (await buyer.post("/orders", order_id="cd" * 16, item="gold", phone="0712345678")).status_code == 422
        assert (await buyer.post(f"/orders/{'cd' * 16}/again", attempt="1", phone="0712345678")).status_code == 404


def test_shop_late_money_needs_review(tmp_path: Path) -> None:
    """The first attempt's money arrives after the second one's: both receipts are recorded once."""
    with closing(Orders(tmp_path / "orders.sqlite")) as orders:
        orders.place("one", "chai")
        orders.has_failed("one", 1, "timeout")
        orders.again("one", 1)
        for _ in range(2):
            orders.is_paid("one", "SECOND0001", "50.00")
            orders.is_paid("one", "FIRST00001", "50.00")
        orders.has_failed("one", 2, "timeout")
        found = orders.find("one")
        assert (found.state, found.receipt) == ("paid", "SECOND0001")
        assert orders.too_much() == [("FIRST00001", "one", "50.00")]
