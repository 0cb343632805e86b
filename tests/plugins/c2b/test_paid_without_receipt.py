"""Protects the money of a payment that is paid without receipt: told once, and never returned as loose money."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.testing.serving import INITIATED, Answer
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_transactions.announcing import AnnouncementSweep
from tests.daraja import result, stk_callback
from tests.ledger import broken_invariants
from tests.plugins.c2b.c2b_site import DIGEST, PHONE, C2bSite, c2b_site, path_of

TILL = {"provider": "mpesa", "mpesa": INITIATED["mpesa"] | {"till_number": "5123456", "shortcode": "600111"}}
PAID = (200, {"ResponseCode": "0", "ResultCode": "0", "ResultDesc": "The service request is processed successfully."})
HIDDEN = {
    "TransactionType": "Customer Merchant Payment",
    "shortcode": "600111",
    "account": "",
    "phone": "2547 ***** 149",
}
"""The money of a till, whose payer Safaricom hides."""
STRANGER = HIDDEN | {"phone": DIGEST[::-1]}
RECEIPT = "TKN4A1B2C3"


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found
        assert await broken_invariants(found.gateway) == {}


async def till(site: C2bSite) -> str:
    """Register a till; return the path of its confirmations."""
    assert (await site.api.call("PUT", "/v1/merchant/providers", TILL)).status == 200
    return path_of((await site.register(shortcode="5123456")).data["addresses"]["confirmation"])


async def pay(site: C2bSite) -> dict[str, Any]:
    data: dict[str, Any] = (await site.api.pay(PHONE, key="k-1")).data
    return data


async def paid_by_query(site: C2bSite) -> dict[str, Any]:
    """A payment whose callback is lost, and that M-Pesa's answer to a query completes."""
    payment = await pay(site)
    site.daraja.add_answers("stkquery", PAID)
    found = (await site.api.call("POST", f"/v1/payments/{payment['id']}/query")).data
    assert (found["status"], found["receipt"]) == ("completed", None)
    return payment


async def call_back(site: C2bSite, payment: dict[str, Any]) -> None:
    sent = site.daraja.requests_of("stkpush")[-1]
    late = stk_callback(payment["provider_ref"], receipt=RECEIPT, phone=int(PHONE))
    assert (await site.api.call("POST", path_of(sent["CallBackURL"]), late)).status == 200


async def confirmed(site: C2bSite, path: str, body: dict[str, Any]) -> str:
    """Confirm the money; return its transaction."""
    assert (await site.confirm(path, RECEIPT, **body)).status == 200
    (row,) = await site.transactions()
    transaction_id: str = row["transaction_id"]
    return transaction_id


async def refund(site: C2bSite, transaction_id: str) -> Answer:
    return await site.api.call("POST", "/v1/refunds", {"transaction_id": transaction_id})


async def age_payments(site: C2bSite, by: timedelta) -> None:
    await site.gateway.db.execute("UPDATE payment SET created_at = created_at - $1::interval", by)


async def sweep(site: C2bSite) -> None:
    """Announce all held money now."""
    await site.gateway.db.execute(
        "UPDATE transaction SET announce_at = $1 WHERE announce_at > $1", site.gateway.clock.now()
    )
    await site.gateway.port(AnnouncementSweep).run()


async def kinds(site: C2bSite) -> list[str]:
    rows = await site.gateway.db.fetch(
        "SELECT kind FROM event WHERE kind LIKE 'transaction.%' OR kind = 'payment.completed' ORDER BY event_id"
    )
    return [row["kind"] for row in rows]


async def test_money_of_a_payment_paid_without_receipt_is_held(site: C2bSite) -> None:
    path = await till(site)
    payment = await paid_by_query(site)
    # Its push is no longer recent.
    await age_payments(site, timedelta(minutes=5))
    await confirmed(site, path, HIDDEN)
    assert await kinds(site) == ["payment.completed"]
    await call_back(site, payment)
    await sweep(site)
    assert await kinds(site) == ["payment.completed"]
    (row,) = await site.transactions()
    assert row["subject_id"] == payment["id"]


async def test_money_long_after_a_payment_paid_without_receipt_is_announced_at_once(site: C2bSite) -> None:
    path = await till(site)
    await paid_by_query(site)
    await age_payments(site, timedelta(minutes=20))
    await confirmed(site, path, HIDDEN)
    assert await kinds(site) == ["payment.completed", "transaction.received"]


async def test_announced_money_that_becomes_a_receipt_is_told_once(site: C2bSite) -> None:
    path = await till(site)
    payment = await paid_by_query(site)
    transaction_id = await confirmed(site, path, HIDDEN)
    await sweep(site)
    for _ in range(2):
        await call_back(site, payment)
    assert (await kinds(site))[1:] == ["transaction.received", "transaction.allocated"]
    body = await site.gateway.db.fetchval("SELECT event.body FROM event WHERE kind = 'transaction.allocated'")
    assert (transaction_id in str(body), payment["id"] in str(body)) == (True, True)


async def test_announced_money_that_a_person_gives_to_its_payment_is_told_once(site: C2bSite) -> None:
    path = await till(site)
    payment = await paid_by_query(site)
    transaction_id = await confirmed(site, path, HIDDEN)
    await sweep(site)
    answer = await site.api.call("POST", f"/v1/transactions/{transaction_id}/allocate", {"payment_id": payment["id"]})
    assert answer.status == 200, answer.body
    assert (await kinds(site))[1:] == ["transaction.received", "transaction.allocated"]


async def test_announced_money_that_a_rule_gives_to_its_payment_is_told_once(site: C2bSite) -> None:
    path = await till(site)
    await paid_by_query(site)
    await confirmed(site, path, HIDDEN)
    await sweep(site)
    # The same confirmation again, with the whole payer.
    assert (await site.confirm(path, RECEIPT, **(HIDDEN | {"phone": DIGEST}))).status == 200
    assert (await kinds(site))[1:] == ["transaction.received", "transaction.allocated"]


@pytest.mark.parametrize("state", ["pending", "completed", "expired"])
async def test_money_that_may_be_a_payments_is_not_refunded_as_loose(site: C2bSite, state: str) -> None:
    path = await till(site)
    payment = await (paid_by_query(site) if state == "completed" else pay(site))
    if state == "expired":
        await site.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
        await site.gateway.port(Expiry).end_due()
    await age_payments(site, timedelta(hours=47))
    transaction_id = await confirmed(site, path, HIDDEN)
    await sweep(site)
    refused = await refund(site, transaction_id)
    assert refused.status == 409, refused.body
    assert payment["id"] in refused.error["message"]
    assert site.daraja.requests_of("reversal") == []


async def test_money_that_was_dealt_with_is_refunded_whatever_payment_may_own_it(site: C2bSite) -> None:
    path = await till(site)
    await paid_by_query(site)
    transaction_id = await confirmed(site, path, HIDDEN)
    note = {"note": "the payer was served twice"}
    assert (await site.api.call("POST", f"/v1/transactions/{transaction_id}/allocate", note)).status == 200
    assert (await refund(site, transaction_id)).status == 201


async def give_back(site: C2bSite, transaction_id: str, case: str) -> None:
    """Return the money that a payment may own, or begin to."""
    if case == "portal":
        async with site.gateway.db.transaction():
            await site.gateway.db.execute(
                "UPDATE transaction SET reversed_outside = 'whole', refunded_cents = amount_cents, announce_at = NULL"
            )
        return
    note = {"note": "the payer came back for it"}
    assert (await site.api.call("POST", f"/v1/transactions/{transaction_id}/allocate", note)).status == 200
    made = await refund(site, transaction_id)
    assert made.status == 201, made.body
    if case == "refunded":
        (sent,) = site.daraja.requests_of("reversal")
        says = {"OriginalTransactionID": RECEIPT, "Amount": made.data["amount"]}
        said = result(0, transaction_id="TKN9REV001", says=says)
        assert (await site.api.call("POST", path_of(sent["ResultURL"]), said)).status == 200


async def report_paid(site: C2bSite, payment: dict[str, Any], by: str) -> dict[str, Any]:
    """M-Pesa reports the payment as paid, without a receipt."""
    if by == "callback":
        sent = site.daraja.requests_of("stkpush")[-1]
        told = stk_callback(payment["provider_ref"], receipt=None)
        assert (await site.api.call("POST", path_of(sent["CallBackURL"]), told)).status == 200
    else:
        site.daraja.add_answers("stkquery", PAID)
        await site.api.call("POST", f"/v1/payments/{payment['id']}/query")
    data: dict[str, Any] = (await site.api.call("GET", f"/v1/payments/{payment['id']}")).data
    return data


@pytest.mark.parametrize("case", ["refunded", "refund pending", "portal"])
@pytest.mark.parametrize(("by", "status"), [("query", "failed"), ("query", "pending"), ("callback", "pending")])
async def test_payment_whose_money_may_have_been_returned_is_held(
    site: C2bSite, by: str, status: str, case: str
) -> None:
    path = await till(site)
    payment = await pay(site)
    if status == "failed":
        await site.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
        await site.gateway.port(Expiry).end_due()
    await give_back(site, await confirmed(site, path, HIDDEN), case)
    held = await report_paid(site, payment, by)
    assert (held["status"], held["mismatch"]["of"]) == (status, "returned")
    assert await report_paid(site, payment, by) == held
    assert (await kinds(site)).count("payment.completed") == 0
    # Only another receipt shows that the payer paid twice.
    sent = site.daraja.requests_of("stkpush")[-1]
    for receipt, ended in ((RECEIPT, status), ("TKN4ZZZZZZ", "completed")):
        late = stk_callback(payment["provider_ref"], receipt=receipt, phone=int(PHONE))
        assert (await site.api.call("POST", path_of(sent["CallBackURL"]), late)).status == 200
        assert (await site.api.call("GET", f"/v1/payments/{payment['id']}")).data["status"] == ended


@pytest.mark.parametrize("case", ["another payer", "two days later", "another amount", "kept"])
@pytest.mark.parametrize("by", ["query", "callback"])
async def test_payment_of_other_money_than_the_returned_is_completed(site: C2bSite, by: str, case: str) -> None:
    path = await till(site)
    payment = await pay(site)
    money = (
        STRANGER if case == "another payer" else HIDDEN | {"amount": "501.00"} if case == "another amount" else HIDDEN
    )
    transaction_id = await confirmed(site, path, money)
    if case != "kept":
        await give_back(site, transaction_id, "refunded")
    if case == "two days later":
        await age_payments(site, timedelta(hours=49))
    assert (await report_paid(site, payment, by))["status"] == "completed"


@pytest.mark.parametrize("case", ["another payer", "two days later", "cancelled"])
async def test_money_that_no_payment_may_own_is_refunded(site: C2bSite, case: str) -> None:
    path = await till(site)
    payment = await (pay(site) if case == "cancelled" else paid_by_query(site))
    if case == "cancelled":
        sent = site.daraja.requests_of("stkpush")[-1]
        ended = stk_callback(payment["provider_ref"], 1032)
        assert (await site.api.call("POST", path_of(sent["CallBackURL"]), ended)).status == 200
    if case == "two days later":
        await age_payments(site, timedelta(hours=49))
    transaction_id = await confirmed(site, path, STRANGER if case == "another payer" else HIDDEN)
    made = await refund(site, transaction_id)
    assert made.status == 201, made.body


async def test_refund_offers_the_money_to_the_rules_first(site: C2bSite) -> None:
    path = await till(site)
    payment = await pay(site)
    await age_payments(site, timedelta(hours=1))
    await confirmed(site, path, HIDDEN | {"phone": DIGEST})
    # The payment fits by time only afterwards.
    await site.gateway.db.execute("UPDATE payment SET created_at = created_at + interval '1 hour'")
    (row,) = await site.transactions()
    assert row["subject_id"] is None
    refused = await refund(site, row["transaction_id"])
    assert (refused.status, "with `payment_id`" in refused.error["message"]) == (409, True)
    found = (await site.api.call("GET", f"/v1/payments/{payment['id']}")).data
    assert (found["status"], found["receipt"]) == ("completed", RECEIPT)


async def test_held_money_that_was_refunded_is_not_announced_afterwards(site: C2bSite) -> None:
    path = await till(site)
    # A push of the same amount holds it.
    await pay(site)
    transaction_id = await confirmed(site, path, STRANGER)
    assert await kinds(site) == []
    made = (await refund(site, transaction_id)).data
    (sent,) = site.daraja.requests_of("reversal")
    said = result(0, transaction_id="TKN9REV001", says={"OriginalTransactionID": RECEIPT, "Amount": made["amount"]})
    assert (await site.api.call("POST", path_of(sent["ResultURL"]), said)).status == 200
    await sweep(site)
    await confirmed_again(site, path)
    assert await kinds(site) == ["transaction.refunded"]


async def confirmed_again(site: C2bSite, path: str) -> None:
    """Safaricom repeats its confirmation with another text."""
    assert (await site.confirm(path, RECEIPT, **(STRANGER | {"account": "again"}))).status == 200
