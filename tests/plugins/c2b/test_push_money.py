"""Protects account numbers from money of pushes: it counts once, and a push holds no other money for long."""

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import shop
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_payments.evidence import Receiver
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.external_reversals import ExternalReversals
from tests.ledger import broken_invariants
from tests.plugins.c2b.c2b_site import PHONE, C2bSite, c2b_site

PATH = "/v1/account-numbers/House%207"
PAID = (200, {"ResponseCode": "0", "ResultCode": "0", "ResultDesc": "The service request is processed successfully."})
OTHER_SHOP = {
    "env": "sandbox",
    "shortcode": "600638",
    "consumer_key": "k" * 20,
    "consumer_secret": "s" * 20,
    "passkey": "p" * 64,
}


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found
        assert await broken_invariants(found.gateway) == {}


async def put(site: C2bSite, expected: int = 1000) -> None:
    assert (await site.api.call("PUT", PATH, {"expected": expected})).status == 200


async def received(site: C2bSite) -> str:
    return str((await site.api.call("GET", PATH)).data["received"])


async def subjects(site: C2bSite) -> list[str | None]:
    return [row["subject_kind"] for row in await site.transactions()]


async def allocate(site: C2bSite) -> int:
    return await site.gateway.port(AccountNumbers).allocate_waiting()


async def pay(site: C2bSite, reference: str = "House 7") -> str:
    return str((await site.api.pay(PHONE, key="k-1", reference=reference)).data["id"])


async def complete_by_query(site: C2bSite, payment_id: str) -> None:
    """Complete a payment without receipt."""
    site.daraja.add_answers("stkquery", PAID)
    asked = await site.api.call("POST", f"/v1/payments/{payment_id}/query")
    assert (asked.data["status"], asked.data["receipt"]) == ("completed", None)


async def expire(site: C2bSite, payment_id: str) -> None:
    await site.gateway.db.execute(
        "UPDATE payment SET expires_at = now() - interval '1 second', created_at = created_at - interval '30 minutes'"
    )
    await site.gateway.port(Expiry).end_due()
    assert (await site.api.call("GET", f"/v1/payments/{payment_id}")).data["status"] == "failed"


async def move_back(site: C2bSite, hours: int) -> str:
    """Let the payments be older, and return M-Pesa's time of money in the minute after them."""
    await site.gateway.db.execute("UPDATE payment SET created_at = created_at - make_interval(hours => $1)", hours)
    return f"{datetime.now(EAT) - timedelta(hours=hours):%Y%m%d%H%M%S}"


async def test_money_of_an_expired_push_counts_once(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site)
    payment_id = await pay(site)
    await expire(site, payment_id)
    assert (await site.confirm(path, account="House 7", phone=None)).status == 200
    assert await allocate(site) == 0
    await complete_by_query(site, payment_id)
    assert await allocate(site) == 0
    assert await received(site) == "500.00"


async def test_push_paid_after_its_money_was_allocated_counts_once(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site)
    payment_id = await pay(site)
    at = await move_back(site, 25)
    assert (await site.confirm(path, account="House 7", phone=None, TransTime=at)).status == 200
    assert await subjects(site) == ["account_number"]
    await complete_by_query(site, payment_id)
    assert await received(site) == "500.00"


async def test_money_of_a_pending_push_is_allocated_after_a_day(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site)
    await pay(site)
    at = await move_back(site, 23)
    assert (await site.confirm(path, "TKN0000001", account="House 7", phone=None, TransTime=at)).status == 200
    assert await subjects(site) == [None]
    await site.gateway.db.execute("UPDATE payment SET created_at = created_at - interval '2 hours'")
    assert await allocate(site) == 1
    assert await received(site) == "500.00"


async def test_second_money_beside_a_push_without_receipt_is_allocated_after_a_day(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site)
    await complete_by_query(site, await pay(site))
    at = await move_back(site, 25)
    for place in range(2):
        body = {"account": "House 7", "phone": None, "TransTime": at}
        assert (await site.confirm(path, f"TKN000000{place}", **body)).status == 200
        await allocate(site)
    assert await subjects(site) == [None, "account_number"]
    assert await received(site) == "1000.00"


@pytest.mark.parametrize(
    ("age", "phone", "total"), [(0, None, "500.00"), (0, "2547 ***** 126", "1000.00"), (24 * 40, None, "1000.00")]
)
async def test_push_without_receipt_holds_only_money_that_may_be_its(
    site: C2bSite, age: int, phone: str | None, total: str
) -> None:
    path, _ = await site.addresses()
    await put(site)
    await complete_by_query(site, await pay(site))
    await move_back(site, age)
    assert (await site.confirm(path, account="House 7", phone=phone)).status == 200
    assert await received(site) == total


async def test_push_with_two_blanks_in_its_reference_counts_once(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site)
    await complete_by_query(site, await pay(site, "House  7"))
    assert (await site.confirm(path, account="House  7", phone=None)).status == 200
    assert await received(site) == "500.00"


@pytest.mark.parametrize("typed", ["house  7", " HOUSE\t7", "\uff28ouse 7"])
async def test_money_typed_otherwise_before_its_account_number_is_allocated_later(site: C2bSite, typed: str) -> None:
    path, _ = await site.addresses()
    assert (await site.confirm(path, account=typed)).status == 200
    await put(site)
    assert await allocate(site) == 1
    assert await received(site) == "500.00"


@pytest.mark.parametrize(("state", "total"), [("reversed", "0.00"), ("partially_reversed", "500.00")])
async def test_money_that_was_sent_back_counts_to_no_account_number(site: C2bSite, state: Any, total: str) -> None:
    path, _ = await site.addresses()
    await put(site)
    async with site.gateway.db.transaction():
        await site.gateway.port(ExternalReversals).record(Receiver("sandbox", "174379"), "TKN4A1B2C3", state)
    assert (await site.confirm(path, account="House 7")).status == 200
    await allocate(site)
    assert await received(site) == total


async def test_held_money_of_one_merchant_delays_no_other(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await put(site)
    await pay(site)
    for place in range(201):
        assert (await site.confirm(path, f"TKN4A{place:05}", account="House 7", phone=None)).status == 200
    async with shop(site.gateway, site.base) as other:
        assert (await other.call("POST", "/v1/merchant/shortcodes", OTHER_SHOP)).status == 201
        registered = await site.register(other, "600638")
        second: str = urlsplit(str(registered.data["addresses"]["confirmation"])).path
        assert (await site.confirm(second, "TKN4B00001", account="A1", shortcode="600638")).status == 200
        await other.call("PUT", "/v1/account-numbers/A1?shortcode=600638", {"expected": 500})
        assert await allocate(site) == 1
        found = await other.call("GET", "/v1/account-numbers/A1?shortcode=600638")
        assert found.data["received"] == "500.00"
