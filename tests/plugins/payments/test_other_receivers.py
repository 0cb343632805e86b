"""Protects money of one receiver: a payment of another receiver that names its receipt neither gets nor holds it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from mpesa_gateway.testing.serving import shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.conftest import Harness
from tests.daraja import Daraja, fault, stk_callback
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
