"""Protects refunds of money without a payment: never more than came in, and never money that pays for something."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import SetClock
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.privacy import Privacy
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.testing.receiver import Receiver
from mpesa_gateway.testing.serving import INITIATED, Answer, eventually, running_gateway, shop
from mpesa_gateway_transactions.api import AllocationRule, FoundSubject, IncomingMoney, RefundedMoney, Subject
from tests.conftest import Harness
from tests.daraja import Daraja, fault, result, stk_callback
from tests.identifiers import identifier
from tests.ledger import broken_invariants
from tests.loose_money import receive, receive_loose
from tests.plugins.refunds.test_refunds import RefundClient

RECEIPT = "TKC0000001"
REVERSAL = "TKN9REV001"
STRANGER, PAYER = "2547*****999", "2547*****020"
"""PAYER may be the payer of a payment."""
RENT = Subject("rent", identifier("acc", 1))

RETURNED: list[tuple[str, int, int]] = []
"""Receipt, cents of the refund and cents of all refunds, as the rule of the rents heard of them."""


async def find_rent(_: Runtime, money: Sequence[IncomingMoney]) -> list[FoundSubject | None]:
    """Money for the account number RENT is rent."""
    return [FoundSubject(RENT, one.merchant_id) if one.account_number == "RENT" else None for one in money]


async def note_returned(_: Runtime, money: RefundedMoney) -> None:
    """Note returned rent."""
    RETURNED.append((money.receipt, money.refund_cents, money.refunded_cents))


HOST = Plugin(
    name="rent",
    summary="Rents by account number.",
    contributes=(AllocationRule("rents", "rent", find_rent, refunded=note_returned),),
)


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only."""
    return values | {"daraja": {"sandbox_url": daraja.base}, "refunds": {"query_after": [3600, 3600, 3600]}}


class TransactionRefundClient(RefundClient):
    """Refunds transactions of a shop."""

    async def cancelled_payment(self, key: str) -> dict[str, Any]:
        """A payment of KES 500 by PAYER that M-Pesa reports as cancelled; a person may still allocate money to it."""
        made: dict[str, Any] = (await self.harness.api.pay("254700000020", 500, key=key)).data
        self.merchant_id = made["merchant_id"]
        assert (await self.post("stk", made["id"], stk_callback(made["provider_ref"], 1032))).status == 200
        return made

    async def ask_for(self, transaction_id: str, amount: Any = None, key: str | None = None) -> Answer:
        """Request a refund of a transaction, with a new key if it has an amount."""
        body = {"transaction_id": transaction_id} | ({} if amount is None else {"amount": amount})
        if amount is not None and key is None:
            self.keys += 1
            key = f"refund-{self.keys}"
        return await self.harness.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": key} if key else {})

    async def succeed(self, refund: Any, receipt: str = REVERSAL) -> None:
        """Post M-Pesa's result that the reversal succeeded."""
        says = {"OriginalTransactionID": refund["receipt"], "Amount": refund["amount"]}
        assert (await self.result(refund, result(0, transaction_id=receipt, says=says))).status == 200

    async def sums(self, transaction_id: str) -> tuple[int, int]:
        """The refunded and the reserved cents of a transaction."""
        row = await self.harness.gateway.db.fetchrow(
            "SELECT refunded_cents, refund_reserved_cents FROM transaction WHERE transaction_id = $1", transaction_id
        )
        assert row is not None
        return row["refunded_cents"], row["refund_reserved_cents"]

    async def money(self, receipt: str = RECEIPT, **values: Any) -> str:
        """Money of a payer who was sent no push; returns its id."""
        transaction_id = await receive_loose(self.harness, receipt, **({"payer": STRANGER} | values))
        row = await self.harness.gateway.db.fetchrow("SELECT merchant_id FROM transaction")
        assert row is not None
        self.merchant_id = row["merchant_id"]
        return transaction_id


@pytest.fixture
async def refunds(
    values: dict[str, Any], daraja: Daraja, webhook_receiver: Receiver
) -> AsyncGenerator[TransactionRefundClient]:
    """A shop with an initiator, at a gateway with a rule for rents."""
    RETURNED.clear()
    async with (
        running_gateway(values, plugins=(HOST,)) as (gateway, base),
        shop(gateway, base, webhook_url=webhook_receiver.url) as api,
    ):
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        yield TransactionRefundClient(Harness(gateway, base, api, webhook_receiver), daraja)
        assert await broken_invariants(gateway) == {}


async def test_refund_of_unallocated_money_reverses_its_receipt_and_is_published(
    refunds: TransactionRefundClient,
) -> None:
    money = await refunds.money(account_number="TABLE 4")
    answer = await refunds.ask_for(money)
    assert answer.status == 201
    refund = answer.data
    assert (refund["payment_id"], refund["transaction_id"], refund["status"]) == (None, money, "pending")
    (sent,) = refunds.daraja.requests_of("reversal")
    assert (sent["TransactionID"], sent["Amount"], sent["ReceiverParty"]) == (RECEIPT, 500, "174379")
    assert await refunds.sums(money) == (0, 50_000)
    again = await refunds.ask_for(money)
    assert (again.status, again.headers["idempotent-replayed"], again.data["id"]) == (200, "true", refund["id"])
    for _ in range(2):
        await refunds.succeed(refund)
    assert (await refunds.refund(refund))["status"] == "completed"
    assert await refunds.sums(money) == (50_000, 0)
    (event,) = await refunds.harness.receiver.wait_for(1, kind="transaction.refunded")
    data = event.json["data"]
    assert (data["transaction_id"], data["refund_id"], data["receipt"]) == (money, refund["id"], RECEIPT)
    assert (data["amount"], data["refund_amount"], data["refunded_amount"]) == ("500.00",) * 3
    assert (data["account_number"], data["allocated_to"], data["reversal_receipt"]) == ("TABLE 4", None, REVERSAL)
    out = await refunds.harness.gateway.db.fetchrow("SELECT * FROM transaction WHERE direction = 'out'")
    assert out is not None
    assert (out["receipt"], out["subject_kind"], out["subject_id"]) == (REVERSAL, "refund", refund["id"])
    assert (await refunds.ask_for(money)).status == 200


async def test_refunds_of_parts_never_exceed_the_money(refunds: TransactionRefundClient) -> None:
    money = await refunds.money()
    answers = await asyncio.gather(*(refunds.ask_for(money, 100) for _ in range(8)))
    assert sorted(one.status for one in answers) == [201] * 5 + [409] * 3
    assert len(refunds.daraja.requests_of("reversal")) == 5
    assert await refunds.sums(money) == (0, 50_000)
    refused = next(one for one in answers if one.status == 409)
    assert "KES 0 of this transaction can still be refunded" in refused.error["message"]
    for number, one in enumerate(one for one in answers if one.status == 201):
        await refunds.succeed(one.data, f"TKN9REV00{number}")
    assert await refunds.sums(money) == (50_000, 0)
    listed = await refunds.harness.api.call("GET", f"/v1/refunds?transaction_id={money}")
    assert len(listed.data) == 5


async def test_whole_refunds_at_once_are_one(refunds: TransactionRefundClient) -> None:
    money = await refunds.money()
    answers = await asyncio.gather(*(refunds.ask_for(money) for _ in range(8)))
    assert sorted(one.status for one in answers) == [200] * 7 + [201]
    assert len({one.data["id"] for one in answers}) == len(refunds.daraja.requests_of("reversal")) == 1


@pytest.mark.parametrize("body", [{}, {"payment_id": "pay_x", "transaction_id": "txn_x"}])
async def test_refund_of_none_or_two_names_both_fields(refunds: TransactionRefundClient, body: dict[str, str]) -> None:
    answer = await refunds.harness.api.call("POST", "/v1/refunds", body)
    assert answer.status == 422
    assert {one["field"] for one in answer.body["errors"]} == {"payment_id", "transaction_id"}


async def test_refund_of_a_part_without_a_key_is_refused(refunds: TransactionRefundClient) -> None:
    body = {"transaction_id": await refunds.money(), "amount": 100}
    assert (await refunds.harness.api.call("POST", "/v1/refunds", body)).status == 400


async def test_key_of_a_transaction_refund_is_replayed_and_refuses_another(refunds: TransactionRefundClient) -> None:
    first, second = await refunds.money(), await refunds.money("TKC0000002")
    made = (await refunds.ask_for(first, 100, "k")).data
    again = await refunds.ask_for(first, 100, "k")
    assert (again.status, again.data["id"]) == (200, made["id"])
    assert (await refunds.ask_for(second, 100, "k")).status == 422
    payment_id = await refunds.complete_payment()
    assert (await refunds.ask(payment_id, 100, "k")).status == 422


async def test_cents_are_refused_with_the_amount_that_can_be_sent(refunds: TransactionRefundClient) -> None:
    money = await refunds.money(amount_cents=50_050)
    answer = await refunds.ask_for(money)
    assert answer.status == 422
    (error,) = answer.body["errors"]
    assert (error["field"], "at most 500" in error["message"]) == ("amount", True)
    made = (await refunds.ask_for(money, 500)).data
    await refunds.succeed(made)
    assert await refunds.sums(money) == (50_000, 0)
    assert "KES 0.50 of this transaction" in (await refunds.ask_for(money)).error["message"]


async def test_money_that_cannot_be_refunded_is_refused_with_the_reason(refunds: TransactionRefundClient) -> None:
    unreadable = await refunds.money(amount_cents=None)
    out = await refunds.money("TKC0000002", direction="out")
    await refunds.complete_payment(receipt="TKC0000003")
    sql = "SELECT transaction_id FROM transaction WHERE receipt = 'TKC0000003'"
    paid = await refunds.harness.gateway.db.fetchval(sql)
    for money, why in ((unreadable, "no readable amount"), (out, "money out"), (paid, "`payment_id`")):
        answer = await refunds.ask_for(money)
        assert (answer.status, why in answer.error["message"]) == (409, True), answer.body
    assert (await refunds.ask_for(identifier("txn", 9))).status == 404
    assert (await refunds.ask_for("txn_x")).status == 404
    assert refunds.daraja.requests_of("reversal") == []


async def test_money_of_another_merchant_or_env_does_not_exist(refunds: TransactionRefundClient) -> None:
    money, gateway = await refunds.money(), refunds.harness.gateway
    for env in ("sandbox", "live"):
        async with shop(gateway, refunds.harness.base, env=env, is_configured=False) as other:
            assert (await other.call("POST", "/v1/refunds", {"transaction_id": money})).status == 404
    assert await refunds.sums(money) == (0, 0)


async def test_second_money_for_a_payment_is_refunded(refunds: TransactionRefundClient) -> None:
    made = (await refunds.harness.api.pay("254711000001", 500, key="twice")).data
    refunds.merchant_id = made["merchant_id"]
    await refunds.post("stk", made["id"], stk_callback(made["provider_ref"], receipt="TKN0000001"))
    await refunds.post("stk", made["id"], stk_callback(made["provider_ref"], receipt="TKN0000002"))
    row = await refunds.harness.gateway.db.fetchrow("SELECT * FROM transaction WHERE receipt = 'TKN0000002'")
    assert row is not None
    assert (row["subject_id"], row["conflict_id"]) == (None, made["id"])
    refund = (await refunds.ask_for(row["transaction_id"])).data
    await refunds.succeed(refund)
    assert await refunds.sums(row["transaction_id"]) == (50_000, 0)
    payment = await refunds.payment(made["id"])
    assert (payment["status"], payment["refunded_amount"]) == ("completed", "0.00")


async def test_refund_of_a_rules_money_is_reported_to_its_rule_once(
    refunds: TransactionRefundClient,
) -> None:
    one = await receive(refunds.harness, RECEIPT, account_number="RENT")
    assert one.subject == RENT
    refunds.merchant_id = one.merchant_id
    failed = (await refunds.ask_for(one.transaction_id, 100)).data
    await refunds.result(failed, result(1, "no balance", transaction_id=REVERSAL))
    assert RETURNED == []
    for number, amount in enumerate((200, 300)):
        made = (await refunds.ask_for(one.transaction_id, amount)).data
        for _ in range(2):
            await refunds.succeed(made, f"TKN9REV00{number}")
    assert RETURNED == [(RECEIPT, 20_000, 20_000), (RECEIPT, 30_000, 50_000)]
    events = await refunds.harness.receiver.wait_for(2, kind="transaction.refunded")
    assert {event.json["data"]["allocated_to"]["id"] for event in events} == {RENT.subject_id}


async def test_money_marked_as_dealt_with_is_refunded_and_the_audit_says_so(refunds: TransactionRefundClient) -> None:
    money = await refunds.money()
    gateway, path = refunds.harness.gateway, f"/v1/transactions/{money}/allocate"
    assert (await refunds.harness.api.call("POST", path, {"note": "kept"})).status == 200
    refund = (await refunds.ask_for(money)).data
    (entry,) = (await gateway.audit.page(1, None, "refund.requested", None)).rows
    assert (entry.subject_id, entry.detail["allocated_to"]) == (refund["id"], "resolved")


async def test_failed_refund_releases_the_money_and_is_published(refunds: TransactionRefundClient) -> None:
    money = await refunds.money()
    refund = (await refunds.ask_for(money)).data
    await refunds.result(refund, result(1, "no balance", transaction_id=REVERSAL))
    assert (await refunds.refund(refund))["outcome"] == "insufficient_merchant_balance"
    assert await refunds.sums(money) == (0, 0)
    (event,) = await refunds.harness.receiver.wait_for(1, kind="refund.failed")
    assert (event.json["data"]["payment_id"], event.json["data"]["transaction_id"]) == (None, money)
    assert (await refunds.ask_for(money)).status == 201


async def test_refused_and_unsent_reversals_release_the_money(refunds: TransactionRefundClient) -> None:
    money = await refunds.money()
    refunds.daraja.add_answers("reversal", fault("500.003.02", "Spike arrest violation", 503))
    assert (await refunds.ask_for(money, 100, "k")).status == 503
    assert await refunds.sums(money) == (0, 0)
    refunds.daraja.add_answers("reversal", fault("400.002.02", "Bad Request", 400))
    assert (await refunds.ask_for(money, 100, "k")).status == 502
    assert await refunds.sums(money) == (0, 0)


async def test_lost_answer_is_queried_and_completes_the_refund(refunds: TransactionRefundClient) -> None:
    money = await refunds.money()
    refunds.daraja.add_answers("reversal", (500, b"<html>"))
    refund = (await refunds.ask_for(money)).data
    assert (refund["status"], await refunds.sums(money)) == ("pending", (0, 50_000))
    asked = await refunds.send_query(refund)
    assert asked["TransactionID"] == RECEIPT
    says = {"ReceiptNo": RECEIPT, "TransactionStatus": "Reversed", "Amount": "500.00"}
    await refunds.answer(asked, result(0, says=says))
    assert (await refunds.refund(refund))["status"] == "completed"
    assert await refunds.sums(money) == (50_000, 0)


async def test_refunded_money_is_allocated_to_nothing(refunds: TransactionRefundClient) -> None:
    payment = (await refunds.harness.api.pay("254700000020", 500, key="a")).data
    money = await refunds.money()
    refund = (await refunds.ask_for(money, 100)).data
    for _ in range(2):
        # A later report names the payment's own reference, or the rent.
        for number in (payment["reference"], "RENT"):
            assert (await receive(refunds.harness, RECEIPT, source="pull", account_number=number)).subject is None
        await refunds.succeed(refund)
    assert (await refunds.payment(payment["id"]))["status"] == "pending"
    assert await refunds.sums(money) == (10_000, 0)


async def test_callback_with_the_receipt_of_refunded_money_needs_review(refunds: TransactionRefundClient) -> None:
    payment = (await refunds.harness.api.pay("254700000020", 500, key="a")).data
    await refunds.succeed((await refunds.ask_for(await refunds.money())).data)
    body = stk_callback(payment["provider_ref"], amount=500, receipt=RECEIPT)
    assert (await refunds.post("stk", payment["id"], body)).status == 200
    found = await refunds.payment(payment["id"])
    assert (found["receipt"], found["mismatch"]["of"]) == (None, "receipt")


async def test_allocation_and_refund_at_once_have_one_winner(refunds: TransactionRefundClient) -> None:
    won = {"refund": 0, "payment": 0}
    for number in range(12):
        payment = (await refunds.harness.api.pay("254700000020", 500, key=f"p{number}")).data
        receipt = f"TKC00001{number:02}"
        money = await refunds.money(receipt)
        answer, found = await asyncio.gather(
            refunds.ask_for(money, 500),
            receive(refunds.harness, receipt, source="pull", account_number=payment["reference"]),
            return_exceptions=True,
        )
        assert isinstance(answer, Answer)
        assert not isinstance(found, BaseException) or isinstance(found, ConcurrentUpdate)
        status = (await refunds.payment(payment["id"]))["status"]
        assert (answer.status, status) in {(201, "pending"), (409, "completed")}
        assert await refunds.sums(money) == ((0, 50_000) if answer.status == 201 else (0, 0))
        won["refund" if answer.status == 201 else "payment"] += 1
    assert sum(won.values()) == 12


async def test_people_who_allocate_and_refund_at_once_have_one_winner(refunds: TransactionRefundClient) -> None:
    call = refunds.harness.api.call
    for number in range(12):
        payment = await refunds.cancelled_payment(f"p{number}")
        money = await refunds.money(f"TKC00002{number:02}", payer=PAYER)
        to_payment: dict[str, Any] = {"payment_id": payment["id"]}
        choice = to_payment if number % 2 else {"note": "paid in cash"}
        refund, allocated = await asyncio.gather(
            refunds.ask_for(money), call("POST", f"/v1/transactions/{money}/allocate", choice)
        )
        # Money that is marked as dealt with can be refunded.
        both = (201, 200) if choice != to_payment else None
        assert (refund.status, allocated.status) in {(201, 409), (409, 200), both}, (refund.body, allocated.body)
        assert await refunds.sums(money) == ((0, 50_000) if refund.status == 201 else (0, 0))


async def test_pending_refund_refuses_a_persons_allocation_and_a_completed_one_only_a_payment(
    refunds: TransactionRefundClient,
) -> None:
    call = refunds.harness.api.call
    payment = await refunds.cancelled_payment("a")
    money = await refunds.money(payer=PAYER)
    refund = (await refunds.ask_for(money, 200)).data
    path, note, to_payment = f"/v1/transactions/{money}/allocate", {"note": "kept"}, {"payment_id": payment["id"]}
    for body in (note, to_payment):
        refused = await call("POST", path, body)
        assert (refused.status, "refund of this money is pending" in refused.error["message"]) == (409, True)
    await refunds.succeed(refund)
    assert (await call("POST", path, to_payment)).status == 409
    assert (await call("POST", path, note)).status == 200
    # The rest of money that was dealt with can still be refunded.
    assert (await refunds.ask_for(money)).data["amount"] == "300.00"


async def test_success_after_a_failure_counts_unless_the_money_pays_something(
    refunds: TransactionRefundClient,
) -> None:
    payment = (await refunds.harness.api.pay("254700000020", 500, key="a")).data
    money, other = await refunds.money(), await refunds.money("TKC0000002")
    first, second = [(await refunds.ask_for(one)).data for one in (money, other)]
    for refund in (first, second):
        await refunds.result(refund, result(1, "no balance", transaction_id=REVERSAL))
    await receive(refunds.harness, "TKC0000002", source="pull", account_number=payment["reference"])
    await refunds.succeed(first)
    assert ((await refunds.refund(first))["status"], await refunds.sums(money)) == ("completed", (50_000, 0))
    await refunds.succeed(second, "TKN9REV002")
    held = await refunds.refund(second)
    assert (held["status"], "carried this refund out late" in held["attention"]) == ("failed", True)
    assert (await refunds.payment(payment["id"]))["status"] == "completed"


async def test_erasure_of_the_payer_waits_for_the_refund_and_reaches_its_reason(
    refunds: TransactionRefundClient,
) -> None:
    phone, later = "254711000777", copy(refunds.harness.gateway)
    later.clock = SetClock(datetime.now(UTC) + timedelta(days=3))
    money = await refunds.money(payer=phone)
    body = {"transaction_id": money, "reason": f"for {phone}"}
    refund = (await refunds.harness.api.call("POST", "/v1/refunds", body)).data
    assert (await Privacy(later).erase(Msisdn(phone), actor="a person")).cases == 0
    await refunds.succeed(refund)

    async def is_erased() -> bool:
        # Erasure yields to the delivery of the webhook.
        return (await Privacy(later).erase(Msisdn(phone), actor="a person")).cases == 1

    assert await eventually(is_erased)
    db = refunds.harness.gateway.db
    row = await db.fetchrow("SELECT reason, payer FROM refund JOIN transaction USING (transaction_id)")
    assert row is not None
    assert (phone in row["reason"], row["payer"]) == (False, "erased")
    assert await refunds.sums(money) == (50_000, 0)
