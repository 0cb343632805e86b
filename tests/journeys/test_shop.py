"""The example's shop: a buyer's way from the shelf to "Paid", and everything that may happen on it."""

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

    async def sees(self, path: str) -> str:
        answer = await self._session.get(self.base + path)
        assert answer.status_code == 200, answer.text
        return answer.text or ""

    async def sends(self, path: str, **fields: str) -> niquests.Response:
        """A form, as it is sent, with what it leads to."""
        return await self._session.post(self.base + path, data=fields)

    async def buys(self, phone: str, item: str = "chapati", order_id: str | None = None) -> str:
        """Fill the form; gives the order's path."""
        found = re.search(r'name="order_id" value="([0-9a-f]{32})"', await self.sees("/"))
        assert found is not None
        page = await self.sends("/orders", order_id=order_id or found[1], item=item, phone=phone)
        assert page.status_code == 200, page.text
        assert str(page.url).startswith(f"{self.base}/orders/")
        return str(page.url).removeprefix(self.base)

    async def reads(self, path: str, words: str) -> str:
        """The order's page, once it says so."""

        async def said() -> str:
            page = await self.sees(path)
            return page if words in page else ""

        return await eventually(said)


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
async def test_from_the_shelf_to_paid(values: dict[str, Any], tmp_path: Path, prefix: str) -> None:
    async with open_shop(values, tmp_path, prefix) as (buyer, orders, _):
        path = await buyer.buys("0712 345 678")
        page = await buyer.reads(path, "Paid, receipt ")
        order = orders.find(path.removeprefix("/orders/"))
        assert order.receipt is not None
        assert f"Paid, receipt {order.receipt}" in page
        assert "KES 60" in page
        # The same form again is the same order, and nobody is asked again.
        assert await buyer.buys("0712 345 678", order_id=order.order_id) == path
        assert orders.find(order.order_id) == order


async def test_pressing_twice_at_once_asks_once(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, _, gateway):
        order_id = "ab" * 16
        paths = await asyncio.gather(*(buyer.buys("0712345678", order_id=order_id) for _ in range(5)))
        assert set(paths) == {f"/orders/{order_id}"}
        await buyer.reads(paths[0], "Paid, receipt ")
        assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1


async def test_who_cancels_may_try_again_and_pays_once(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, orders, gateway):
        path = await buyer.buys("0700000001")
        await buyer.reads(path, "Not paid: cancelled by user")
        wrong = await buyer.sends(f"{path}/again", attempt="1", phone="12")
        assert wrong.status_code == 422
        assert "Try again" in (wrong.text or "")
        for _ in range(2):
            await buyer.sends(f"{path}/again", attempt="1", phone="0712345678")
        await buyer.reads(path, "Paid, receipt ")
        assert orders.find(path.removeprefix("/orders/")).attempt == 2
        assert await gateway.db.fetchval("SELECT count(*) FROM sim_push") == 2
        assert orders.too_much() == []


async def test_a_push_that_mpesa_would_not_take_says_so(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, _, _):
        path = await buyer.buys("0700000015")
        page = await buyer.reads(path, "Try again")
        assert "✕" in page


async def test_what_cannot_be_read_is_told_and_what_is_not_there_too(values: dict[str, Any], tmp_path: Path) -> None:
    async with open_shop(values, tmp_path, "/payments") as (buyer, _, _):
        page = await buyer.sends("/orders", order_id="cd" * 16, item="unga", phone="12345")
        assert page.status_code == 422
        assert f'value="{"cd" * 16}"' in (page.text or "")
        assert 'value="unga" checked' in (page.text or "")
        assert (await buyer.sends("/orders", order_id="x", item="unga", phone="0712345678")).status_code == 422
        assert (await buyer.sends("/orders", order_id="cd" * 16, item="gold", phone="0712345678")).status_code == 422
        assert (await buyer.sends(f"/orders/{'cd' * 16}/again", attempt="1", phone="0712345678")).status_code == 404


def test_money_that_comes_late_is_kept_for_a_person(tmp_path: Path) -> None:
    """The first attempt's money arrives after the second one's: both receipts are in the book, once."""
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
