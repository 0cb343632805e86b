"""Protects money of one receiver: a payment of another receiver that names its receipt neither gets nor holds it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from mpesa_gateway.testing.serving import shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.conftest import Harness
from tests.daraja import Daraja, fault, result, stk_callback
from tests.ledger import broken_invariants
from tests.plugins.payments.test_evidence import (
    PHONE,
    STORE,
    TILL_A,
    TILL_B,
    create_payment,
    get_payment,
    put_till,
    query_status,
    values,
)
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

__all__ = ["values"]

RECEIPT = "UKA1B2C3D1"
OTHER_STORE = "600999"
AT_STORE = {"CreditPartyName": f"{STORE} - STORE"}

UNCONFIRMED = """
UPDATE payment SET mismatch = 'unconfirmed', received_receipt = $2, due_at = NULL WHERE payment_id = $1
"""
MONEY = """
SELECT number, merchant_id, subject_id, conflict_id FROM transaction JOIN receiver USING (receiver_id)
WHERE receipt = $1
"""


@pytest.fixture
def callbacks() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Tills:
    """Till A with a payment of KES 700, and till B of another merchant."""

    a: Harness
    b: Harness
    daraja: Daraja

    async def pay_at_b(self, amount: int) -> Any:
        return (await self.b.api.pay(PHONE, amount, key="b")).data

    async def call_back(self, payment: Any, *answer: Any, **says: Any) -> None:
        """Post a callback to the address of a payment's push."""
        url = self.a.gateway.services.get(Callbacks).url_for(
            "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
        )
        body = stk_callback(payment["provider_ref"], *answer, **says)
        assert (await self.a.api.call("POST", url.removeprefix(self.a.base), body)).status == 200

    async def report_at_b(self, how: Literal["query", "statement"], amount: int) -> None:
        """M-Pesa names till B as the receiver of the receipt."""
        if how == "query":
            says = {"CreditPartyName": f"{TILL_B} - B", "Amount": str(amount)}
            assert await query_status(self.b, self.daraja, RECEIPT, **says) == "recovered"
            return
        bought = line(RECEIPT, amount, phone=PHONE, transactiontype="c2b-buy-goods-debit")
        self.daraja.add_answers("pullquery", page(bought))
        assert (await self.b.api.call("POST", RUN, {})).data["recovered"] == 1

    async def check_b_has_its_money(self, payment: Any, amount: int) -> None:
        """Also after the callback of B's payment, and with the books in order."""
        for _ in range(2):
            after = await get_payment(self.b, payment)
            assert (after["status"], after["receipt"], after["mismatch"]) == ("completed", RECEIPT, None)
            money = await self.a.gateway.db.fetchrow(MONEY, RECEIPT)
            assert money is not None
            assert tuple(money) == (TILL_B, payment["merchant_id"], payment["id"], None)
            await self.call_back(payment, amount=amount, receipt=RECEIPT)
        # UNCONFIRMED publishes nothing.
        assert set(await broken_invariants(self.a.gateway)) <= {"payments.mismatch_was_published"}


@pytest.fixture
def store_of_b() -> str:
    return OTHER_STORE


@pytest.fixture
async def tills(harness: Harness, daraja: Daraja, store_of_b: str) -> AsyncGenerator[Tills]:
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B, store_of_b)
        yield Tills(harness, replace(harness, api=other), daraja)


@pytest.mark.parametrize("how", ["query", "statement"])
@pytest.mark.parametrize("amount", [700, 900])
async def test_unproven_receipt_at_another_till_leaves_the_money_to_its_till(
    tills: Tills, how: Literal["query", "statement"], amount: int
) -> None:
    """A's payment of KES 700 names the receipt; the money of either amount is B's."""
    own, theirs = await create_payment(tills.a), await tills.pay_at_b(amount)
    await tills.a.gateway.db.execute(UNCONFIRMED, own["id"], RECEIPT)
    await tills.report_at_b(how, amount)
    await tills.check_b_has_its_money(theirs, amount)
    after = await get_payment(tills.a, own)
    assert (after["status"], after["receipt"]) == ("pending", None)


async def test_unproven_receipt_at_another_till_records_money_without_a_payment_for_its_till(tills: Tills) -> None:
    """B has no payment of that money: it stays B's, unallocated."""
    own = await create_payment(tills.a)
    await tills.a.gateway.db.execute(UNCONFIRMED, own["id"], RECEIPT)
    for amount in ("700", "900"):
        says = {"CreditPartyName": f"{TILL_B} - B", "Amount": amount}
        assert await query_status(tills.b, tills.daraja, RECEIPT, **says) == "not_ours"
    money = await tills.a.gateway.db.fetchrow(MONEY, RECEIPT)
    assert money is not None
    assert (money["number"], money["merchant_id"] != own["merchant_id"]) == (TILL_B, True)
    assert (money["subject_id"], money["conflict_id"]) == (None, None)
    assert (await get_payment(tills.a, own))["status"] == "pending"


@pytest.mark.parametrize("callbacks", [{"enforce_allowlist": "never"}])
async def test_forged_callback_with_another_tills_receipt_completes_no_payment(tills: Tills) -> None:
    own = await create_payment(tills.a)
    tills.daraja.answers["stkquery"] = [fault("500.003.1001", "Internal Server Error")] * 50
    forged = stk_callback(own["provider_ref"], amount=700, receipt=RECEIPT)
    assert (await tills.a.api.call("POST", "/v1/webhooks/mpesa", forged)).status == 200
    expired = "UPDATE payment SET due_at = now(), expires_at = now() WHERE payment_id = $1"
    await tills.a.gateway.db.execute(expired, own["id"])
    await tills.a.gateway.services.get(StkQueries).query_payment(own["id"])
    assert (await get_payment(tills.a, own))["mismatch"]["received_receipt"] == RECEIPT
    theirs = await tills.pay_at_b(700)
    await tills.report_at_b("query", 700)
    await tills.check_b_has_its_money(theirs, 700)
    after = await get_payment(tills.a, own)
    assert (after["status"], after["receipt"]) == ("pending", None)


@pytest.mark.parametrize("store_of_b", [STORE])
@pytest.mark.parametrize("how", ["query", "statement"])
@pytest.mark.parametrize(("is_failed", "amount"), [(True, 700), (True, 900), (False, 700), (False, 900)])
async def test_shared_answer_about_a_push_leaves_the_money_to_its_till(
    tills: Tills, how: Literal["query", "statement"], is_failed: bool, amount: int
) -> None:
    """M-Pesa names the shared store and B's receipt in its answer about A's push."""
    own = await create_payment(tills.a)
    if is_failed:
        await tills.call_back(own, "1032")
    theirs = await tills.pay_at_b(amount)
    before = await get_payment(tills.a, own)
    says = {"ReceiptNo": RECEIPT, "Amount": str(amount), **AT_STORE}
    assert await query_status(tills.a, tills.daraja, own["id"], **says) == "ambiguous"
    after = await get_payment(tills.a, own)
    assert {name: after[name] for name in ("status", "mismatch")} == {
        name: before[name] for name in ("status", "mismatch")
    }
    await tills.report_at_b(how, amount)
    await tills.check_b_has_its_money(theirs, amount)
    assert (await get_payment(tills.a, own))["receipt"] is None


# -- receipts that pay for nothing ------------------------------------------------------------------------------------

REVERSED_AT_B: dict[str, dict[str, Any]] = {
    "no parties": {"DebitPartyName": None, "CreditPartyName": None},
    "no credit party": {"CreditPartyName": None},
    "B": {"CreditPartyName": f"{TILL_B} - B"},
    "B's store": {"CreditPartyName": f"{OTHER_STORE} - B"},
    "B as the only debit party": {"DebitPartyName": f"{TILL_B} - B", "CreditPartyName": None},
}


async def reversal_events(harness: Harness) -> int:
    return int(await harness.gateway.db.fetchval("SELECT count(*) FROM event WHERE kind = 'payment.reversed'"))


async def pay_at_a(tills: Tills, payment: Any, how: str) -> None:
    """Report the receipt for A's payment."""
    if how == "callback":
        await tills.call_back(payment, amount=700, receipt=RECEIPT)
    elif how == "query":
        assert await query_status(tills.a, tills.daraja, RECEIPT, CreditPartyName=f"{TILL_A} - A") == "recovered"
    else:
        bought = line(RECEIPT, 700, phone=PHONE, transactiontype="c2b-buy-goods-debit")
        tills.daraja.add_answers("pullquery", page(bought))
        assert (await tills.a.api.call("POST", RUN, {})).data["recovered"] == 1


@pytest.mark.parametrize("how", ["callback", "query", "statement"])
@pytest.mark.parametrize("says", REVERSED_AT_B.values(), ids=REVERSED_AT_B)
@pytest.mark.parametrize("state", ["Reversed", "Partially Reversed"])
async def test_reversed_receipt_in_an_answer_to_another_merchant_leaves_the_payment(
    tills: Tills, how: str, says: dict[str, Any], state: str
) -> None:
    """B asks M-Pesa about the receipt of A's money, before A's payment has it."""
    own = await create_payment(tills.a)
    assert await query_status(tills.b, tills.daraja, RECEIPT, TransactionStatus=state, **says) == "not_ours"
    await pay_at_a(tills, own, how)
    assert await tills.a.gateway.services.get(ExternalReversals).apply_recorded() == 0
    after = await get_payment(tills.a, own)
    assert (after["status"], after["receipt"], after["mismatch"]) == ("completed", RECEIPT, None)
    assert await reversal_events(tills.a) == 0
    assert await broken_invariants(tills.a.gateway) == {}


async def test_reversed_receipt_in_answers_to_two_merchants_reverses_the_payment_of_its_receiver(tills: Tills) -> None:
    own = await create_payment(tills.a)
    nobody = REVERSED_AT_B["no parties"]
    for asker in (tills.b, tills.a, tills.b):
        assert await query_status(asker, tills.daraja, RECEIPT, TransactionStatus="Reversed", **nobody) == "not_ours"
    await pay_at_a(tills, own, "callback")
    # The sweep may have been quicker.
    await tills.a.gateway.services.get(ExternalReversals).apply_recorded()
    assert (await get_payment(tills.a, own))["status"] == "reversed"
    assert await reversal_events(tills.a) == 1
    assert await broken_invariants(tills.a.gateway) == {}


@pytest.mark.parametrize("how", ["query", "statement"])
async def test_outgoing_receipt_of_another_receiver_is_money_in_at_its_receiver(tills: Tills, how: str) -> None:
    """B's reversal and A's payment have one receipt: a receipt has a row for each direction."""
    own, theirs = await create_payment(tills.a), await tills.pay_at_b(900)
    await tills.call_back(theirs, amount=900, receipt="UKA1B2C3D9")
    refund = await tills.b.api.call("POST", "/v1/refunds", {"payment_id": theirs["id"]})
    assert refund.status == 201
    address = tills.daraja.requests_of("reversal")[-1]["ResultURL"].removeprefix(tills.a.base)
    done = result(0, transaction_id=RECEIPT, says={"OriginalTransactionID": "UKA1B2C3D9", "Amount": 900})
    assert (await tills.b.api.call("POST", address, done)).status == 200
    await pay_at_a(tills, own, how)
    after = await get_payment(tills.a, own)
    assert (after["status"], after["receipt"]) == ("completed", RECEIPT)
    assert await broken_invariants(tills.a.gateway) == {}
