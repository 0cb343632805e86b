"""Protects the outcome of money from the order of its reports: a callback that contradicts its payment comes first."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tests.daraja import stk_callback
from tests.ledger import broken_invariants
from tests.plugins.c2b.c2b_site import DIGEST, PHONE, C2bSite, c2b_site, path_of
from tests.plugins.c2b.test_push_money import allocate, pay, put, received, subjects

ONE, TWO = "TKN0000001", "TKN0000002"
HOUSE = {"account": "House 7", "phone": DIGEST}
ORDERS = pytest.mark.parametrize("order", [("callback", "c2b"), ("c2b", "callback")], ids=" then ".join)


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found
        assert await broken_invariants(found.gateway) == {}


async def call_back(site: C2bSite, receipt: str, code: int = 0, amount: int = 500) -> None:
    """M-Pesa reports the result of the last push."""
    provider_ref = await site.gateway.db.fetchval("SELECT checkout_request_id FROM payment")
    body = stk_callback(provider_ref, amount=amount, receipt=receipt, phone=int(PHONE))
    body["Body"]["stkCallback"]["ResultCode"] = code
    path = path_of(site.daraja.requests_of("stkpush")[-1]["CallBackURL"])
    assert (await site.api.call("POST", path, body)).status == 200


async def found(site: C2bSite, payment_id: str) -> dict[str, Any]:
    data: dict[str, Any] = (await site.api.call("GET", f"/v1/payments/{payment_id}")).data
    return data


async def published(site: C2bSite, kind: str) -> int:
    count: int = await site.gateway.db.fetchval("SELECT count(*) FROM event WHERE kind = $1", kind)
    return count


async def paid_by_hand(site: C2bSite, path: str) -> str:
    """The payer pays a push by hand, and the prompt is still open."""
    payment_id = await pay(site)
    assert (await site.confirm(path, ONE, **HOUSE)).status == 200
    assert (await found(site, payment_id))["receipt"] == ONE
    return payment_id


@ORDERS
async def test_second_money_of_a_paid_push_counts_to_its_account_number(site: C2bSite, order: tuple[str, str]) -> None:
    path, _ = await site.addresses()
    await put(site)
    payment_id = await paid_by_hand(site, path)
    for report in order * 2:
        if report == "callback":
            await call_back(site, TWO)
        else:
            assert (await site.confirm(path, TWO, **HOUSE)).status == 200
    assert await received(site) == "1000.00"
    after = await found(site, payment_id)
    assert (after["receipt"], after["mismatch"]["of"]) == (ONE, "receipt")
    assert (await published(site, "payment.mismatched"), await published(site, "transaction.received")) == (1, 0)


async def test_second_money_of_a_paid_push_waits_for_its_account_number(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await paid_by_hand(site, path)
    await call_back(site, TWO)
    assert (await site.confirm(path, TWO, **HOUSE)).status == 200
    assert await subjects(site) == ["payment", None]
    await put(site)
    assert await allocate(site) == 1
    assert await received(site) == "500.00"


@pytest.mark.parametrize("amount", [5, 500])
async def test_money_in_conflict_with_an_unpaid_push_counts_to_no_account_number(site: C2bSite, amount: int) -> None:
    path, _ = await site.addresses()
    await put(site)
    payment_id = await pay(site)
    await call_back(site, ONE, 0 if amount == 5 else 7777, amount)
    for _ in range(2):
        assert (await site.confirm(path, ONE, amount=f"{amount}.00", **HOUSE)).status == 200
        await allocate(site)
    after = await found(site, payment_id)
    # The confirmation proves an equal amount, and the payment counts to the number.
    assert (after["status"], await received(site)) == (("pending", "0.00") if amount == 5 else ("completed", "500.00"))
    assert await published(site, "payment.mismatched") == 1


@ORDERS
async def test_confirmation_of_a_receipt_with_an_unknown_code_completes_its_payment(
    site: C2bSite, order: tuple[str, str]
) -> None:
    path, _ = await site.addresses()
    made = (await site.api.pay(PHONE, key="k-1")).data
    for report in order:
        if report == "callback":
            await call_back(site, ONE, 7777)
        else:
            assert (await site.confirm(path, ONE, account=made["reference"], phone=None)).status == 200
    after = await found(site, made["id"])
    assert (after["status"], after["receipt"]) == ("completed", ONE)
    assert await published(site, "payment.completed") == 1


async def test_receipt_with_an_unknown_code_alone_completes_nothing(site: C2bSite) -> None:
    await site.addresses()
    payment_id = await pay(site)
    await call_back(site, ONE, 7777)
    (row,) = await site.transactions()
    path = f"/v1/transactions/{row['transaction_id']}/allocate"
    assert (await site.api.call("POST", path, {"note": "paid back in cash"})).status == 200
    after = await found(site, payment_id)
    assert (after["status"], after["mismatch"]["of"]) == ("pending", "unconfirmed")
