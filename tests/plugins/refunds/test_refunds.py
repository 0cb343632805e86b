"""Protects refunds: money goes back once or not at all, and results in any order end each refund correctly."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.db.engine import ExternalCallInTransaction
from mpesa_gateway.security.scopes import ADMIN, AUDIT_READ, Caller
from mpesa_gateway.testing.serving import INITIATED, Answer, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_refunds.result_codes import REVERSAL_RESULTS
from mpesa_gateway_refunds.schemas import CreateRefund
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from tests.conftest import Harness
from tests.daraja import Daraja, ack, fault, list_loopback, result, stk_callback
from tests.stored import WIPE_SHORTCODES, change_credentials, move_to

RECEIPT = "TKN4A1B2C3"
REVERSAL = "TKN9REV001"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only."""
    return values | {"daraja": {"sandbox_url": daraja.base}, "refunds": {"query_after": [3600, 3600, 3600]}}


class RefundClient:
    """Creates a shop's refunds, posts M-Pesa's results about them and reads their state."""

    def __init__(self, harness: Harness, daraja: Daraja) -> None:
        self.harness = harness
        self.daraja = daraja
        self.merchant_id = ""
        self.keys = 0

    async def complete_payment(self, amount: int = 500, receipt: str = RECEIPT, key: str = "a") -> str:
        """Create and complete a payment; returns its id."""
        made = (await self.harness.api.pay("254711000001", amount, key=key)).data
        self.merchant_id = made["merchant_id"]
        body = stk_callback(made["provider_ref"], amount=amount, receipt=receipt)
        assert (await self.post("stk", made["id"], body)).status == 200
        assert (await self.payment(made["id"]))["status"] == "completed"
        return str(made["id"])

    async def ask(self, payment_id: str, amount: Any = None, key: str | None = None) -> Answer:
        body = {"payment_id": payment_id} | ({} if amount is None else {"amount": amount})
        if amount is not None and key is None:
            self.keys += 1
            key = f"refund-{self.keys}"
        return await self.harness.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": key} if key else {})

    async def result(self, refund: Any, body: dict[str, Any], kind: str = "reversal") -> Answer:
        """Post a result to the address of this refund's reversal."""
        return await self.post(kind, refund["id"], body)

    async def done(self, refund: Any, receipt: str = REVERSAL, amount: str | None = None) -> Answer:
        """Post M-Pesa's result that the reversal succeeded."""
        says = {"OriginalTransactionID": RECEIPT, "Amount": amount or refund["amount"]}
        return await self.result(refund, result(0, transaction_id=receipt, says=says))

    async def send_query(self, refund: Any) -> dict[str, Any]:
        """Send a status query about a refund; returns the request that Daraja got."""
        before = len(self.daraja.requests_of("transactionstatus"))
        assert (await self.harness.api.call("POST", f"/v1/refunds/{refund['id']}/query")).status == 200
        queries = self.daraja.requests_of("transactionstatus")
        assert len(queries) == before + 1
        return queries[-1]

    async def answer(self, question: dict[str, Any], body: dict[str, Any], *, times_out: bool = False) -> Answer:
        """Post M-Pesa's result to the address of that status query."""
        url: str = question["QueueTimeOutURL" if times_out else "ResultURL"]
        return await self.harness.api.call("POST", url.removeprefix(self.harness.base), body)

    async def refund(self, refund: Any) -> Any:
        return (await self.harness.api.call("GET", f"/v1/refunds/{refund['id']}")).data

    async def payment(self, payment_id: str) -> Any:
        return (await self.harness.api.call("GET", f"/v1/payments/{payment_id}")).data

    async def amounts(self, payment_id: str) -> tuple[str, int, int]:
        """The payment's status, refunded amount and reserved amount."""
        row = await self.harness.gateway.db.fetchrow(
            "SELECT status, refunded, refund_reserved FROM payment WHERE payment_id = $1", payment_id
        )
        assert row is not None
        return row["status"], row["refunded"], row["refund_reserved"]

    async def await_events(self, *kinds: str) -> None:
        """Wait until the shop has received exactly these events, apart from the payments' completion."""
        received = await self.harness.delivered(len(kinds) + 1)
        assert [kind for kind in received if kind != "payment.completed"] == sorted(kinds)

    async def post(self, kind: str, subject_id: str, body: dict[str, Any]) -> Answer:
        url = self.harness.gateway.services.get(Callbacks).url_for(
            kind, env="sandbox", merchant_id=self.merchant_id, subject_id=subject_id
        )
        return await self.harness.api.call("POST", url.removeprefix(self.harness.base), body)


@pytest.fixture
async def refunds(harness: Harness, daraja: Daraja) -> RefundClient:
    """The shop's refunds, with an initiator stored."""
    assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return RefundClient(harness, daraja)


ADDRESSES: dict[str, str] = {"ResultURL": "reversal", "QueueTimeOutURL": "reversal-timeout"}

# -- the request ----------------------------------------------------------------------------------------------------


async def test_refund_sends_darajas_fields(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id, 120)).data
    (sent,) = refunds.daraja.requests_of("reversal")
    callbacks = refunds.harness.gateway.services.get(Callbacks)
    for field, kind in ADDRESSES.items():
        url = callbacks.url_for(kind, env="sandbox", merchant_id=refunds.merchant_id, subject_id=refund["id"])
        assert sent.pop(field) == url
    assert 2 <= len(sent.pop("Remarks")) <= 100
    assert sent == {
        "Initiator": "testapi",
        "SecurityCredential": INITIATED["mpesa"]["security_credential"],
        "CommandID": "TransactionReversal",
        "TransactionID": RECEIPT,
        "Amount": 120,
        "ReceiverParty": "174379",
        "RecieverIdentifierType": "11",
        "Occasion": "",
    }
    assert (refund["status"], refund["amount"], refund["outcome"]) == ("pending", "120.00", None)
    assert await refunds.amounts(payment_id) == ("completed", 0, 120)


async def test_refund_repeated_with_a_key_is_a_replay_and_without_one_is_the_rest(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    first = await refunds.ask(payment_id, 300, key="r")
    again = await refunds.ask(payment_id, "300.00", key="r")
    assert (first.status, again.status, again.data["id"]) == (201, 200, first.data["id"])
    assert again.headers["Idempotent-Replayed"] == "true"
    other = await refunds.ask(payment_id, 100, key="r")
    assert (other.status, other.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    refused = await refunds.ask(payment_id, 300)
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert "KES 200 of this payment can still be refunded" in refused.error["message"]
    assert len(refunds.daraja.requests_of("reversal")) == 1
    whole = await refunds.ask(payment_id)
    assert (whole.status, whole.data["amount"]) == (201, "200.00")
    for key_of_another in (None, "another"):
        same = await refunds.ask(payment_id, key=key_of_another)
        assert (same.status, same.data["id"], same.headers["Idempotent-Replayed"]) == (200, whole.data["id"], "true")
    assert len(refunds.daraja.requests_of("reversal")) == 2


async def test_refund_with_an_amount_and_no_key_is_refused(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    body = {"payment_id": payment_id, "amount": 100}
    answer = await refunds.harness.api.call("POST", "/v1/refunds", body)
    assert (answer.status, answer.error["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    # Also if the amount is the whole payment.
    whole = await refunds.harness.api.call("POST", "/v1/refunds", body | {"amount": 500})
    assert (whole.status, whole.error["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    assert refunds.daraja.requests_of("reversal") == []
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)


async def test_refund_of_the_rest_repeated_is_one(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    answers = await asyncio.gather(*(refunds.ask(payment_id) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    (refund_id,) = {answer.data["id"] for answer in answers}
    assert len(refunds.daraja.requests_of("reversal")) == 1
    await refunds.done(answers[0].data)
    again = await refunds.ask(payment_id)
    assert (again.status, again.data["id"], again.data["status"]) == (200, refund_id, "completed")
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)


async def test_refund_of_the_rest_after_a_failed_one_is_new(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    first = (await refunds.ask(payment_id)).data
    await refunds.result(first, result(1, "balance too low"))
    assert (await refunds.refund(first))["status"] == "failed"
    second = await refunds.ask(payment_id)
    assert (second.status, second.data["id"] == first["id"]) == (201, False)


async def test_refund_without_amount_after_a_keyed_one_of_all_is_a_replay(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    whole = (await refunds.ask(payment_id, 500, key="all")).data
    again = await refunds.ask(payment_id)
    assert (again.status, again.data["id"]) == (200, whole["id"])
    assert len(refunds.daraja.requests_of("reversal")) == 1


async def test_refund_of_a_freed_part_during_one_of_the_rest_needs_a_key(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    part = (await refunds.ask(payment_id, 200)).data
    rest = (await refunds.ask(payment_id)).data
    assert rest["amount"] == "300.00"
    await refunds.result(part, result(1, "balance too low"))
    assert (await refunds.ask(payment_id)).data["id"] == rest["id"]
    other = await refunds.ask(payment_id, 200)
    assert (other.status, other.data["amount"]) == (201, "200.00")


async def test_ack_of_a_locked_refund_is_answered_and_written_later(refunds: RefundClient, database_url: str) -> None:
    payment_id = await refunds.complete_payment()
    answer = refunds.daraja.hold("reversal")
    task = asyncio.create_task(refunds.ask(payment_id))
    await refunds.daraja.wait_for_requests("reversal")
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("SELECT 1 FROM refund FOR UPDATE")
        answer.set()
        made = await task
        assert (made.status, made.data["status"]) == (201, "pending")
        assert refunds.harness.gateway.outcomes.kept == 1
    await other.close()

    async def is_written() -> bool:
        return bool(await refunds.harness.gateway.db.fetchval("SELECT reversal = 'accepted' FROM refund"))

    await eventually(is_written)
    assert (await refunds.refund(made.data))["provider_ref"] == made.data["provider_ref"] is not None
    await refunds.done(made.data)
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)


async def test_refund_interrupted_before_sending_fails_and_frees_its_money(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id, 200, key="r")).data
    db, queries = refunds.harness.gateway.db, refunds.harness.gateway.services.get(RefundStatusQueries)
    # The state after a crash following the first commit.
    await db.execute(
        "UPDATE refund SET reversal = 'ready', originator_conversation_id = NULL, conversation_id = NULL, "
        "due_at = now()"
    )
    await db.execute(
        "UPDATE idempotency_key SET state = 'in_flight', leased_until = now() WHERE subject_id = $1", refund["id"]
    )
    # The cron may send the query first.
    await queries.ask(refund["id"])

    async def has_failed() -> bool:
        return bool((await refunds.refund(refund))["status"] == "failed")

    assert await eventually(has_failed)
    assert (await refunds.refund(refund))["result_code"] == "unsent"
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    assert await db.fetchval("SELECT state FROM idempotency_key WHERE subject_id = $1", refund["id"]) == "settled"
    await refunds.await_events("refund.failed")
    again = await refunds.ask(payment_id, 200, key="r")
    assert (again.status, again.data["status"]) == (200, "failed")
    assert len(refunds.daraja.requests_of("reversal")) == 1


async def test_refund_inside_a_transaction_raises(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    gateway = refunds.harness.gateway
    service = gateway.services.get(RefundService)
    caller = Caller(refunds.merchant_id, "", frozenset(), "sandbox", by="host")
    body = CreateRefund(payment_id=payment_id)

    async def inside() -> None:
        async with gateway.db.transaction():
            # Raised before anything is written: the Daraja client would refuse only after the intent is stored.
            with pytest.raises(ExternalCallInTransaction, match="asking for a refund"):
                await service.request(caller, body, None)
            raise RuntimeError("the host's own")

    with pytest.raises(RuntimeError, match="the host's own"):
        await inside()
    assert refunds.daraja.requests_of("reversal") == []
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)


@pytest.mark.parametrize("amount", [0, -1, "1.5", 501, True, "all"])
async def test_refund_of_an_impossible_amount_is_refused_and_not_sent(refunds: RefundClient, amount: Any) -> None:
    payment_id = await refunds.complete_payment()
    answer = await refunds.ask(payment_id, amount, key="bad")
    assert answer.status == (409 if amount == 501 else 422)
    assert refunds.daraja.requests_of("reversal") == []
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    # The key and the money stay free.
    assert (await refunds.ask(payment_id, 10, key="bad")).status == 201


async def test_refund_of_an_unpaid_foreign_or_unreceipted_payment_is_refused(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    pending = (await refunds.harness.api.pay("254711000002", 60, key="open")).data
    answer = await refunds.ask(pending["id"])
    assert (answer.status, answer.error["message"].startswith("this payment is pending")) == (409, True)
    await refunds.post("stk", pending["id"], stk_callback(pending["provider_ref"], has_metadata=False))
    answer = await refunds.ask(pending["id"])
    assert (answer.status, "receipt" in answer.error["message"]) == (409, True)
    assert (await refunds.ask("pay_" + "0" * 26)).status == 404
    async with shop(refunds.harness.gateway, refunds.harness.base) as other:
        await other.call("PUT", "/v1/merchant/providers", INITIATED)
        answer = await other.call("POST", "/v1/refunds", {"payment_id": payment_id})
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
        made = (await refunds.ask(payment_id)).data
        assert (await other.call("GET", f"/v1/refunds/{made['id']}")).status == 404
        assert (await other.call("POST", f"/v1/refunds/{made['id']}/query")).status == 404
    assert len(refunds.daraja.requests_of("reversal")) == 1


async def test_refund_uses_the_payments_own_shortcode(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    await move_to(refunds.harness.api, "600001")
    assert (await refunds.ask(payment_id, key="r")).status == 201
    (sent,) = refunds.daraja.requests_of("reversal")
    assert sent["ReceiverParty"] == "174379"


async def test_refund_of_a_payment_of_the_other_env_is_not_found(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    _, secret = await refunds.harness.gateway.api_keys.create(
        refunds.merchant_id, name="live", scopes=refunds.harness.gateway.scopes.of_merchants, env="live", actor="test"
    )
    live = Api(refunds.harness.base, secret.reveal())
    answer = await live.call("POST", "/v1/refunds", {"payment_id": payment_id})
    await live.close()
    assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
    assert refunds.daraja.requests_of("reversal") == []
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)


async def test_refund_with_erased_credentials_is_refused_until_they_are_stored(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    await refunds.harness.gateway.db.execute(WIPE_SHORTCODES)
    answer = await refunds.ask(payment_id, key="r")
    assert (answer.status, answer.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")
    assert "174379" in answer.error["message"]
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    assert (await refunds.harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    assert (await refunds.ask(payment_id, key="r")).status == 201


async def test_refund_without_an_initiator_names_the_field(harness: Harness, daraja: Daraja) -> None:
    refunds = RefundClient(harness, daraja)
    payment_id = await refunds.complete_payment()
    answer = await refunds.ask(payment_id, key="r")
    assert (answer.status, answer.error["code"], answer.error["field"]) == (
        422,
        "PROVIDER_NOT_CONFIGURED",
        "mpesa.initiator",
    )
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)


# -- results --------------------------------------------------------------------------------------------------------

WORDS = {
    "0": "reversed",
    "R000002": "invalid_transaction",
    "1": "insufficient_merchant_balance",
    "11": "account_inactive",
    "2006": "account_inactive",
    "21": "initiator_not_allowed",
    "2001": "initiator_invalid",
    "2028": "not_permitted",
    "8006": "initiator_locked",
}
UNKNOWN_RESULTS = ("15", "100000100", "100000000", "26", "4242", "SFC_IC0003", "R000003")


def test_table_of_results_is_complete() -> None:
    assert {*WORDS, "R000001"} >= set(REVERSAL_RESULTS)


@pytest.mark.parametrize("is_text", [False, True])
async def test_reversal_result_of_each_code_has_outcome_and_advice(refunds: RefundClient, is_text: bool) -> None:
    for number, (code, word) in enumerate(WORDS.items()):
        receipt = f"TKN0000{number:03}"
        payment_id = await refunds.complete_payment(receipt=receipt, key=f"k{number}")
        refund = (await refunds.ask(payment_id)).data
        body = result(
            int(code) if code.isdigit() and not is_text else code,
            "said",
            transaction_id=f"REV0000{number:03}",
            says={"OriginalTransactionID": receipt} if code == "0" else None,
        )
        assert (await refunds.result(refund, body)).status == 200
        after = await refunds.refund(refund)
        assert (after["outcome"], after["result_code"], after["result_desc"]) == (word, code, "said")
        if code == "0":
            assert (after["status"], after["reversal_receipt"], after["advice"]) == ("completed", "REV0000000", None)
            assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
        else:
            assert (after["status"], after["reversal_receipt"]) == ("failed", None)
            assert after["advice"]
            assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    failed = await refunds.harness.receiver.wait_for(len(WORDS) - 1, kind="refund.failed")
    for event in failed:
        data = event.json["data"]
        assert (data["outcome"], bool(data["advice"]), data["status"]) == (WORDS[data["result_code"]], True, "failed")
    (reversed_,) = await refunds.harness.receiver.wait_for(1, kind="payment.reversed")
    assert reversed_.json["data"]["refund_amount"] == "500.00"


@pytest.mark.parametrize("code", UNKNOWN_RESULTS)
async def test_reversal_result_of_an_unknown_code_keeps_the_money_reserved(refunds: RefundClient, code: str) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    body = result(int(code) if code.isdigit() else code, "Duplicate Detected 254711000001")
    assert (await refunds.result(refund, body)).status == 200
    after = await refunds.refund(refund)
    assert (after["status"], after["outcome"]) == ("pending", None)
    assert code in after["attention"]
    assert "254711000001" not in after["attention"]
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)
    # A second reversal is impossible until review, and M-Pesa's own proof still ends this one.
    again = await refunds.ask(payment_id, key="again")
    assert (again.status, again.data["id"]) == (200, refund["id"])
    assert len(refunds.daraja.requests_of("reversal")) == 1
    await refunds.done(refund)
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)


@pytest.mark.parametrize("code", [0.0, "00000000", "0.0"])
async def test_reversal_acknowledged_with_any_zero_is_sent_once(refunds: RefundClient, code: Any) -> None:
    payment_id = await refunds.complete_payment()
    status, content = ack(9)
    refunds.daraja.add_answers("reversal", (status, content | {"ResponseCode": code}))
    refund = (await refunds.ask(payment_id)).data
    assert refund["status"] == "pending"
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)
    says = {"OriginalTransactionID": RECEIPT, "Amount": refund["amount"]}
    assert (await refunds.result(refund, result(code, transaction_id=REVERSAL, says=says))).status == 200
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)


SPIKE = {"fault": {"faultstring": "spike arrest", "detail": {"errorcode": "policies.ratelimit.SpikeArrestViolation"}}}


@pytest.mark.parametrize("reply", [(429, SPIKE), (500, SPIKE), (429, b""), (429, b"<html></html>")])
async def test_reversal_refused_by_the_proxy_frees_the_money(refunds: RefundClient, reply: Any) -> None:
    payment_id = await refunds.complete_payment()
    refunds.daraja.add_answers("reversal", reply)
    answer = await refunds.ask(payment_id, key="r")
    assert (answer.status, answer.error["retryable"]) == (503, True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    assert (await refunds.ask(payment_id, key="r")).data["status"] == "pending"
    assert len(refunds.daraja.requests_of("reversal")) == 2


async def test_refund_of_a_part_and_then_of_the_rest_reverses_the_payment(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    part = (await refunds.ask(payment_id, 120)).data
    await refunds.done(part)
    assert await refunds.amounts(payment_id) == ("partially_reversed", 120, 0)
    assert (await refunds.payment(payment_id))["refunded_amount"] == "120.00"
    rest = (await refunds.ask(payment_id)).data
    assert rest["amount"] == "380.00"
    await refunds.done(rest, receipt="TKN9REV002")
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    await refunds.await_events("payment.reversed", "payment.reversed")
    sent = [one.json["data"] for one in refunds.harness.receiver.of("payment.reversed")]
    assert sorted((data["refund_amount"], data["refunded_amount"], data["status"]) for data in sent) == [
        ("120.00", "120.00", "partially_reversed"),
        ("380.00", "500.00", "reversed"),
    ]


async def test_reversal_refused_by_daraja_fails_the_refund_with_its_message(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refunds.daraja.add_answers("reversal", fault("400.002.02", "Bad Request - Invalid Amount", 400))
    answer = await refunds.ask(payment_id, 120, key="r")
    assert (answer.status, answer.error["code"]) == (502, "PROVIDER_REJECTED")
    assert answer.error["provider"]["errorMessage"] == "Bad Request - Invalid Amount"
    assert "Bad Request - Invalid Amount" in answer.error["message"]
    (refund,) = (await refunds.harness.api.call("GET", f"/v1/refunds?payment_id={payment_id}")).data
    assert (refund["status"], refund["outcome"], refund["result_code"]) == (
        "failed",
        "rejected_by_provider",
        "400.002.02",
    )
    assert refund["advice"] == "correct the field that M-Pesa's message names"
    assert answer.error["id"] == refund["id"]
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    again = await refunds.ask(payment_id, 120, key="r")
    assert (again.status, again.data["id"], again.data["status"]) == (200, refund["id"], "failed")
    assert len(refunds.daraja.requests_of("reversal")) == 1
    await refunds.await_events("refund.failed")


async def test_reversal_result_of_another_amount_needs_review(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id, 120)).data
    await refunds.done(refund, amount="100.00")
    after = await refunds.refund(refund)
    assert (after["status"], "KES 100.00" in after["attention"]) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 120)
    # Neither a late timeout nor a sweep clears it.
    await refunds.result(refund, result(1), "reversal-timeout")
    assert (await refunds.refund(refund))["attention"] == after["attention"]


# -- order, repetition, contradiction -------------------------------------------------------------------------------


async def test_reversal_result_before_the_ack_completes_the_refund(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    go = refunds.daraja.hold("reversal")
    asking = asyncio.create_task(refunds.ask(payment_id, key="r"))
    await refunds.daraja.wait_for_requests("reversal")
    (refund,) = (await refunds.harness.api.call("GET", "/v1/refunds")).data
    assert refund["status"] == "pending"
    await refunds.done(refund, receipt=REVERSAL)
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    go.set()
    answer = await asking
    assert (answer.status, answer.data["status"], answer.data["outcome"]) == (201, "completed", "reversed")
    assert (await refunds.refund(refund))["provider_ref"] is not None
    await refunds.await_events("payment.reversed")


async def test_reversal_result_without_a_token_waits_for_its_ack(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    url = f"{refunds.harness.base}/v1/webhooks/mpesa/reversal/result"
    await change_credentials(refunds.harness.gateway, result_url=url)
    list_loopback(refunds.harness.gateway)
    refunds.daraja.add_answers("reversal", ack(77))
    go = refunds.daraja.hold("reversal")
    asking = asyncio.create_task(refunds.ask(payment_id))
    (sent,) = await refunds.daraja.wait_for_requests("reversal")
    assert sent["ResultURL"] == url
    says = {"OriginalTransactionID": RECEIPT}
    body = result(0, originator="o-77", conversation="AG_77", transaction_id=REVERSAL, says=says)
    assert (await refunds.harness.api.call("POST", "/v1/webhooks/mpesa/reversal/result", body)).status == 200
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)
    go.set()
    assert (await asking).data["status"] == "completed"
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)


SPECIFIED = "/v1/webhooks/mpesa/"


async def test_reversal_result_without_a_token_counts_at_every_result_address(refunds: RefundClient) -> None:
    """The specification has one result_url, that of status queries, and Daraja posts reversals' results to it too."""
    list_loopback(refunds.harness.gateway)
    url = f"{refunds.harness.base}{SPECIFIED}transactionstatus/result"
    await change_credentials(refunds.harness.gateway, result_url=url, timeout_url=url.replace("result", "timeout"))
    for number, address in enumerate(("transactionstatus/result", "reversal/result", "")):
        receipt, reversal = f"TKN000000{number}", f"REV000000{number}"
        payment_id = await refunds.complete_payment(receipt=receipt, key=f"k{number}")
        refunds.daraja.add_answers("reversal", ack(80 + number))
        refund = (await refunds.ask(payment_id)).data
        assert refunds.daraja.requests_of("reversal")[-1]["ResultURL"] == url
        # A timeout makes the query due.
        late = result(1, kind=1, originator=f"o-{80 + number}", conversation=f"AG_{80 + number}")
        assert (await refunds.harness.api.call("POST", f"{SPECIFIED}transactionstatus/timeout", late)).status == 200
        due = "SELECT due_at <= now() FROM refund WHERE refund_id = $1"
        assert await refunds.harness.gateway.db.fetchval(due, refund["id"])
        assert await refunds.amounts(payment_id) == ("completed", 0, 500)
        # A result with unknown ids waits for its acknowledgement.
        unknown = result(0, originator=f"x-{number}", conversation=f"AGX_{number}", transaction_id=reversal)
        path = f"{SPECIFIED}{address}".rstrip("/")
        assert (await refunds.harness.api.call("POST", path, unknown)).status == 200
        assert await refunds.amounts(payment_id) == ("completed", 0, 500)
        says = {"OriginalTransactionID": receipt, "Amount": 5e2}
        done = result(
            0.0,
            originator=f"o-{80 + number}",
            conversation=f"AG_{80 + number}",
            transaction_id=reversal,
            says=says,
        )
        assert (await refunds.harness.api.call("POST", path, done)).status == 200
        assert await refunds.amounts(payment_id) == ("reversed", 500, 0), address
        assert (await refunds.refund(refund))["reversal_receipt"] == reversal
    verdicts = await refunds.harness.gateway.db.fetch("SELECT verdict, count(*) FROM callback GROUP BY 1")
    assert {row["verdict"]: row["count"] for row in verdicts} == {"applied": 9, "waiting": 3}


async def test_reversal_result_without_a_token_needs_a_listed_source(values: dict[str, Any], daraja: Daraja) -> None:
    values["callbacks"] = {"enforce_allowlist": "never"}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        done = result(0, originator="o-1", conversation="AG_1", transaction_id=REVERSAL)
        for address in ("transactionstatus/result", "reversal/result", "reversal/timeout", ""):
            assert (await api.call("POST", f"{SPECIFIED}{address}".rstrip("/"), done)).status == 403, address
        assert daraja.requests_of("reversal") == []
        reasons = {row["reason"] for row in await gateway.db.fetch("SELECT reason FROM refused_callback")}
        assert reasons == {"source"}


async def test_reversal_result_with_a_token_counts_at_every_result_address(refunds: RefundClient) -> None:
    callbacks = refunds.harness.gateway.services.get(Callbacks)
    for number, path in enumerate(("/v1/cb/status/", f"{SPECIFIED}transactionstatus/result/", "/v1/cb/reversal/")):
        receipt = f"TKN000000{number}"
        payment_id = await refunds.complete_payment(receipt=receipt, key=f"k{number}")
        refund = (await refunds.ask(payment_id)).data
        url = callbacks.url_for("reversal", env="sandbox", merchant_id=refunds.merchant_id, subject_id=refund["id"])
        token = url.rpartition("/")[2]
        # A body at a timeout address proves nothing, also if it is empty or unreadable.
        for raw in (b"", b"\xff", b"<html>gone</html>", json.dumps(result(1)).encode()):
            answer = await refunds.harness.api.call("POST", f"/v1/cb/status-timeout/{token}", raw=raw)
            assert (answer.status, await refunds.amounts(payment_id)) == (200, ("completed", 0, 500)), raw
        done = result(0, transaction_id=f"REV000000{number}", says={"OriginalTransactionID": receipt})
        assert (await refunds.harness.api.call("POST", path + token, done)).status == 200
        assert await refunds.amounts(payment_id) == ("reversed", 500, 0), path


@asynccontextmanager
async def _without_refunds(values: dict[str, Any], allowlist: list[str]) -> AsyncGenerator[Api]:
    """The API client of a second process of this gateway, without the refunds plugin."""
    changes: dict[str, Any] = {
        "plugins": [name for name in values["plugins"] if name != "refunds"],
        "callbacks": values.get("callbacks", {}) | {"allowlist": allowlist},
        "worker": {"in_process": False},
    }
    kept = {name: value for name, value in values.items() if name != "refunds"}
    async with running_gateway(kept | changes) as (_, base):
        api = Api(base, "")
        yield api
        await api.close()


_KEPT = "SELECT kind, reason, is_trusted, subject_id FROM refused_callback ORDER BY refused_id"


async def test_reversal_result_while_the_plugin_is_off_is_stored_and_applied_later(
    refunds: RefundClient, values: dict[str, Any]
) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    url = refunds.harness.gateway.port(Callbacks).url_for(
        "reversal", env="sandbox", merchant_id=refunds.merchant_id, subject_id=refund["id"]
    )
    path = url.removeprefix(refunds.harness.base)
    body = result(0, transaction_id=REVERSAL, says={"OriginalTransactionID": RECEIPT, "Amount": refund["amount"]})
    async with _without_refunds(values, ["192.0.2.1"]) as off:
        changed = path[:-1] + ("0" if path[-1] != "0" else "1")
        for address in (changed, "/v1/cb/nothing/x", f"{SPECIFIED}reversal/result", f"{SPECIFIED}nothing/here"):
            assert (await off.call("POST", address, body)).status == 404
        assert await refunds.harness.gateway.db.fetch(_KEPT) == []
        assert (await off.call("POST", path, body)).status == 404
    assert [tuple(row) for row in await refunds.harness.gateway.db.fetch(_KEPT)] == [
        ("reversal", "kind", True, refund["id"])
    ]
    operators = refunds.harness.gateway.services.get(CallbackOperatorService)
    assert await operators.count_unread("sandbox", timedelta(hours=1)) == 1
    refused_id = await refunds.harness.gateway.db.fetchval("SELECT refused_id FROM refused_callback")
    assert (await operators.replay(refused_id, actor="a person")).verdict == "applied"
    assert (await refunds.refund(refund))["status"] == "completed"
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    assert await operators.count_unread("sandbox", timedelta(hours=1)) == 0


async def test_result_without_a_token_while_the_plugin_is_off_reaches_other_kinds(
    refunds: RefundClient, values: dict[str, Any]
) -> None:
    """Status queries and reversals share one result_url: a result about a payment must not depend on refunds."""
    made = (await refunds.harness.api.pay("254711000001", 500, key="b")).data
    url = f"{refunds.harness.base}{SPECIFIED}reversal/result"
    await change_credentials(refunds.harness.gateway, result_url=url, timeout_url=url.replace("result", "timeout"))
    refunds.daraja.add_answers("transactionstatus", ack(91))
    assert (await refunds.harness.api.call("POST", f"/v1/payments/mpesa/check-status/{made['id']}")).status == 200
    answer = result(0, originator="o-91", conversation="AG_91", transaction_id="TKN0000091")
    async with _without_refunds(values, ["127.0.0.0/8"]) as off:
        assert (await off.call("POST", f"{SPECIFIED}reversal/result", answer)).status == 200
        assert (await off.call("POST", f"{SPECIFIED}nothing/here", answer)).status == 404
    taken = await refunds.harness.gateway.db.fetch("SELECT kind, handle FROM callback WHERE kind <> 'stk'")
    assert [tuple(row) for row in taken] == [("status", "o-91")]
    # No kind accepts an address with another last word: its callback is Safaricom's too, and is stored.
    assert [tuple(row) for row in await refunds.harness.gateway.db.fetch(_KEPT)] == [
        ("nothing/here", "kind", True, None)
    ]


async def test_reversal_result_repeated_or_contradicted_moves_money_once(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    await refunds.result(refund, result(0, kind=1))
    assert (await refunds.refund(refund))["status"] == "pending"
    for _ in range(3):
        await refunds.done(refund)
    await refunds.done(refund, receipt="TKN9REV002")
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    await refunds.result(refund, result(1, "The balance is insufficient"))
    after = await refunds.refund(refund)
    assert (after["status"], after["outcome"], after["reversal_receipt"]) == ("completed", "reversed", REVERSAL)
    # The amounts stay, and the contradiction needs attention.
    assert "The balance is insufficient" in after["attention"]
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    await refunds.await_events("payment.reversed")


async def test_reversal_result_with_a_second_receipt_needs_review(refunds: RefundClient) -> None:
    """Two reversals of one refund may have moved its money twice."""
    payment_id = await refunds.complete_payment()
    part = (await refunds.ask(payment_id, 200)).data
    for _ in range(2):
        await refunds.done(part)
        assert (await refunds.refund(part))["attention"] is None
    await refunds.done(part, receipt="TKN9REV002")
    after = await refunds.refund(part)
    assert (after["status"], after["reversal_receipt"]) == ("completed", REVERSAL)
    assert "TKN9REV002" in after["attention"]
    assert await refunds.amounts(payment_id) == ("partially_reversed", 200, 0)
    await refunds.await_events("payment.reversed")


async def test_reversal_result_success_after_a_failure_completes_the_refund(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id, 200)).data
    await refunds.result(refund, result(1))
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    await refunds.done(refund)
    after = await refunds.refund(refund)
    assert (after["status"], after["outcome"], after["attention"]) == ("completed", "reversed", None)
    assert await refunds.amounts(payment_id) == ("partially_reversed", 200, 0)
    await refunds.await_events("refund.failed", "payment.reversed")


async def test_reversal_result_for_money_reserved_by_another_refund_waits(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    first = (await refunds.ask(payment_id)).data
    await refunds.result(first, result(1))
    second = (await refunds.ask(payment_id)).data
    await refunds.done(first)
    after = await refunds.refund(first)
    assert (after["status"], "carried this refund out" in after["attention"]) == ("failed", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)
    # M-Pesa refuses the second reversal; then the first is applied.
    await refunds.result(second, result("R000002"))
    await refunds.harness.gateway.db.execute("UPDATE callback SET due_at = now() WHERE verdict = 'waiting'")
    await refunds.harness.gateway.services.get(CallbackDispatcher).sweep()
    assert ((await refunds.refund(first))["status"], (await refunds.refund(second))["status"]) == (
        "completed",
        "failed",
    )
    assert (await refunds.refund(first))["attention"] is None
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    await refunds.await_events("refund.failed", "refund.failed", "payment.reversed")


async def test_reversal_receipt_completes_one_refund_only(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    first, second = (await refunds.ask(payment_id, 100)).data, (await refunds.ask(payment_id, 100)).data
    await refunds.done(first)
    await refunds.done(second)
    after = await refunds.refund(second)
    assert (after["status"], REVERSAL in after["attention"]) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("partially_reversed", 100, 100)


async def test_reversal_result_of_another_payment_or_conversation_is_refused(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refunds.daraja.add_answers("reversal", ack(5))
    refund = (await refunds.ask(payment_id)).data
    for body in (
        result(0, transaction_id=REVERSAL, says={"OriginalTransactionID": "TKN0000000"}),
        result(0, originator="o-6", transaction_id=REVERSAL),
        result(0, originator="o-6", conversation="AG_6"),
    ):
        answer = await refunds.result(refund, body)
        assert (answer.status, answer.error["code"]) == (403, "CALLBACK_REFUSED")
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)
    reasons = await refunds.harness.gateway.db.fetch("SELECT reason FROM refused_callback")
    assert [row["reason"] for row in reasons] == ["subject"] * 3


# -- R000001 --------------------------------------------------------------------------------------------------------


async def test_already_reversed_completes_the_refund_once_verified(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    await refunds.result(refund, result("R000001"))
    assert (await refunds.refund(refund))["status"] == "pending"
    question = await refunds.send_query(refund)
    assert (question["TransactionID"], question.get("OriginalConversationID")) == (RECEIPT, None)
    await refunds.answer(question, result(2032, "The transaction does not exist"))
    await refunds.answer(question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Pending"}))
    await refunds.answer(question, result(0, says={"ReceiptNo": "TKN0000000", "TransactionStatus": "Completed"}))
    assert (await refunds.refund(refund))["status"] == "pending"
    await refunds.answer(
        question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Completed", "Amount": "500.00"})
    )
    after = await refunds.refund(refund)
    assert (after["status"], after["outcome"], after["result_code"]) == ("completed", "already_reversed", "R000001")
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    await refunds.await_events("payment.reversed")


@pytest.mark.parametrize(
    "fields",
    [
        {"TransactionStatus": "Cancelled"},
        {"TransactionStatus": "Completed", "Amount": "40.00"},
    ],
)
async def test_already_reversed_contradicted_by_the_status_query_needs_review(
    refunds: RefundClient, fields: dict[str, str]
) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    await refunds.result(refund, result("R000001"))
    await refunds.answer(await refunds.send_query(refund), result(0, says={"ReceiptNo": RECEIPT, **fields}))
    after = await refunds.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)


@pytest.mark.parametrize("is_verified", [True, False])
@pytest.mark.parametrize(
    "fields", [{}, {"ReceiptNo": RECEIPT, "Amount": "40.00"}, {"ReceiptNo": RECEIPT, "Amount": "x"}]
)
async def test_status_result_without_receipt_or_with_other_amount_proves_no_reversal(
    refunds: RefundClient, fields: dict[str, str], *, is_verified: bool
) -> None:
    payment_id = await refunds.complete_payment()
    if is_verified:
        refund = (await refunds.ask(payment_id)).data
        await refunds.result(refund, result("R000001"))
    else:
        refunds.daraja.add_answers("reversal", (500, b"<html>"))
        refund = (await refunds.ask(payment_id)).data
    await refunds.answer(await refunds.send_query(refund), result(0, says={"TransactionStatus": "Reversed", **fields}))
    after = await refunds.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)


async def test_already_reversed_of_a_part_needs_review(refunds: RefundClient) -> None:
    """KES 100 were refunded before. M-Pesa's code is about those, and not about these 400."""
    payment_id = await refunds.complete_payment()
    first = (await refunds.ask(payment_id, 100)).data
    await refunds.done(first)
    second = (await refunds.ask(payment_id)).data
    await refunds.result(second, result("R000001"))
    after = await refunds.refund(second)
    assert (after["status"], "not how much" in after["attention"]) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("partially_reversed", 100, 400)
    question = await refunds.send_query(second)
    await refunds.answer(
        question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Reversed", "Amount": "500"})
    )
    assert (await refunds.refund(second))["status"] == "pending"
    assert await refunds.amounts(payment_id) == ("partially_reversed", 100, 400)


async def test_already_reversed_after_a_failed_part_needs_review(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    part = (await refunds.ask(payment_id, 100)).data
    await refunds.result(part, result(1, "balance too low"))
    whole = (await refunds.ask(payment_id)).data
    assert whole["amount"] == "500.00"
    await refunds.result(whole, result("R000001"))
    assert "not how much" in (await refunds.refund(whole))["attention"]


# -- unknown outcomes -----------------------------------------------------------------------------------------------

UNKNOWN: tuple[tuple[int, Any], ...] = (
    fault("500.003.1001", "Internal Server Error"),
    fault("500.002.1001", "Duplicate OriginatorConversationID"),
    (500, b"<html>"),
    (200, b"<html>We are improving our services</html>"),
    (200, b""),
    (503, {}),
    (200, {"ResponseDescription": "no code"}),
)


async def test_reversal_with_an_unknown_outcome_is_queried_and_never_resent(refunds: RefundClient) -> None:
    for number, unknown in enumerate(UNKNOWN):
        receipt = f"TKN0000{number:03}"
        payment_id = await refunds.complete_payment(receipt=receipt, key=f"k{number}")
        refunds.daraja.add_answers("reversal", unknown)
        answer = await refunds.ask(payment_id, key=f"r{number}")
        assert (answer.status, answer.data["status"]) == (201, "pending"), unknown
        again = await refunds.ask(payment_id, key=f"r{number}")
        assert (again.status, again.data["id"]) == (200, answer.data["id"])
        unkeyed = await refunds.ask(payment_id)
        assert (unkeyed.status, unkeyed.data["id"]) == (200, answer.data["id"])
        assert len(refunds.daraja.requests_of("reversal")) == number + 1
        question = await refunds.send_query(answer.data)
        assert (question["TransactionID"], question.get("OriginalConversationID")) == (receipt, None)
        # Completed is the status of the payment itself and says nothing about a reversal.
        for fields in ({"ReceiptNo": receipt, "TransactionStatus": "Completed"}, {"TransactionStatus": "Completed"}):
            await refunds.answer(question, result(0, says=fields))
            assert await refunds.amounts(payment_id) == ("completed", 0, 500)
        await refunds.answer(question, result(0, says={"ReceiptNo": receipt, "TransactionStatus": "Reversed"}))
        assert (await refunds.refund(answer.data))["status"] == "completed"
        assert await refunds.amounts(payment_id) == ("reversed", 500, 0)


async def test_status_result_reversed_proves_nothing_about_a_part(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refunds.daraja.add_answers("reversal", (500, b""))
    refund = (await refunds.ask(payment_id, 100)).data
    question = await refunds.send_query(refund)
    await refunds.answer(question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Reversed"}))
    after = await refunds.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 100)


async def test_reversal_not_sent_frees_the_money_and_the_key(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refunds.daraja.add_answers("reversal", fault("500.003.02", "Error Occurred: Spike Arrest Violation"))
    answer = await refunds.ask(payment_id, key="r")
    assert (answer.status, answer.error["code"], "Retry-After" in answer.headers) == (503, "PROVIDER_UNAVAILABLE", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 0)
    (unsent,) = (await refunds.harness.api.call("GET", "/v1/refunds")).data
    assert (unsent["status"], unsent["result_code"]) == ("failed", "unsent")
    answer = await refunds.ask(payment_id, key="r")
    assert (answer.status, answer.data["id"], answer.data["status"]) == (201, unsent["id"], "pending")
    await refunds.done(answer.data)
    assert await refunds.amounts(payment_id) == ("reversed", 500, 0)
    await refunds.await_events("payment.reversed")


async def test_refund_interrupted_while_sending_is_queried_and_then_needs_review(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id, key="r")).data
    db, queries = refunds.harness.gateway.db, refunds.harness.gateway.services.get(RefundStatusQueries)
    # The state after a crash between the reversal and its record.
    await db.execute(
        "UPDATE refund SET reversal = 'sending', originator_conversation_id = NULL, conversation_id = NULL, "
        "due_at = now() + interval '150 seconds'"
    )
    await db.execute("UPDATE idempotency_key SET state = 'in_flight', leased_until = now() - interval '1 second'")
    again = await refunds.ask(payment_id, key="r")
    assert (again.status, again.data["id"]) == (200, refund["id"])

    async def sent_queries(number: int) -> list[Any]:
        found = refunds.daraja.requests_of("transactionstatus")
        return found if len(found) >= number else []

    for number in range(1, 4):
        await db.execute("UPDATE refund SET due_at = now()")
        # The cron may send the query first.
        await queries.ask(refund["id"])
        found = await eventually(partial(sent_queries, number))
        assert (len(found), found[-1]["TransactionID"]) == (number, RECEIPT)
    await db.execute("UPDATE refund SET due_at = now()")
    await queries.ask(refund["id"])

    async def is_noticed() -> bool:
        after = await refunds.refund(refund)
        return (after["status"], bool(after["attention"])) == ("pending", True)

    assert await eventually(is_noticed)
    assert len(refunds.daraja.requests_of("transactionstatus")) == 3
    assert await queries.wake_due() == 0
    assert len(refunds.daraja.requests_of("reversal")) == 1
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)
    (waiting,) = (await refunds.harness.api.call("GET", "/v1/refunds?needs_attention=true")).data
    assert waiting["id"] == refund["id"]
    assert (await refunds.harness.api.call("GET", "/v1/refunds?needs_attention=false")).data == []


async def test_reversal_timeout_makes_the_query_due_and_moves_no_money(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refunds.daraja.add_answers("reversal", ack(5))
    refund = (await refunds.ask(payment_id)).data
    await refunds.result(refund, result(1, originator="o-5"), "reversal-timeout")
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)
    assert await refunds.harness.gateway.db.fetchval("SELECT due_at <= now() FROM refund")
    question = await refunds.send_query(refund)
    # By the reversal's own conversation, which is known.
    assert (question.get("TransactionID"), question["OriginalConversationID"]) == (None, "o-5")
    await refunds.answer(question, result(1), times_out=True)
    assert (await refunds.refund(refund))["status"] == "pending"
    await refunds.answer(
        question, result(0, says={"ReceiptNo": REVERSAL, "TransactionStatus": "Completed", "Amount": "500.00"})
    )
    after = await refunds.refund(refund)
    assert (after["status"], after["reversal_receipt"]) == ("completed", REVERSAL)
    await refunds.await_events("payment.reversed")


@pytest.mark.parametrize(
    ("fields", "status", "amounts"),
    [
        # It states no transaction, so it could be about any.
        ({"TransactionStatus": "Completed"}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "Amount": "500"}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "ReceiptNo": REVERSAL}, "completed", ("reversed", 500, 0)),
        ({"TransactionStatus": "Declined"}, "failed", ("completed", 0, 0)),
        ({"TransactionStatus": "Pending"}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "ReceiptNo": RECEIPT}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "ReceiptNo": REVERSAL, "Amount": "1.00"}, "pending", ("completed", 0, 500)),
    ],
)
async def test_status_result_of_the_reversals_conversation_ends_the_refund(
    refunds: RefundClient, fields: dict[str, str], status: str, amounts: tuple[str, int, int]
) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    await refunds.answer(await refunds.send_query(refund), result(0, says=fields))
    assert (await refunds.refund(refund))["status"] == status
    assert await refunds.amounts(payment_id) == amounts


PAYOUT = {
    "TransactionReceipt": REVERSAL,
    "TransactionAmount": 500,
    "ReceiverPartyPublicName": "254799000001 - SOMEBODY",
}
BALANCE = {"AccountBalance": "Working Account|KES|500.00|500.00|0.00|0.00", "BOCompletedTime": "20261129143005"}


@pytest.mark.parametrize("says", [PAYOUT, BALANCE, {"Amount": 500}, {}])
async def test_reversal_result_without_its_payment_needs_review(refunds: RefundClient, says: dict[str, Any]) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    await refunds.result(refund, result(0, transaction_id=REVERSAL, says=says))
    after = await refunds.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)


@pytest.mark.parametrize("by", ["status", "result"])
async def test_reversal_result_with_an_incoming_receipt_needs_review(refunds: RefundClient, by: str) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    other = (await refunds.harness.api.pay("254711000002", 500, key="other")).data
    await refunds.post("stk", other["id"], stk_callback(other["provider_ref"], receipt="OTHER00001"))
    if by == "result":
        await refunds.done(refund, receipt="OTHER00001")
    else:
        says = {"TransactionStatus": "Completed", "ReceiptNo": "OTHER00001"}
        await refunds.answer(await refunds.send_query(refund), result(0, says=says))
    after = await refunds.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)


@pytest.mark.parametrize("debtor", [{}, {"DebitPartyName": "254711000001 - JANE"}])
async def test_status_result_of_a_reversal_with_us_as_creditor_needs_review(
    refunds: RefundClient, debtor: dict[str, str]
) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    says = {"TransactionStatus": "Completed", "ReceiptNo": REVERSAL, "CreditPartyName": "174379 - SHOP"} | debtor
    await refunds.answer(await refunds.send_query(refund), result(0, says=says))
    after = await refunds.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)


async def test_refund_of_the_rest_by_requests_at_once_is_one(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    assert (await refunds.ask(payment_id, amount=200, key="part")).status == 201
    answers = await asyncio.gather(*(refunds.ask(payment_id) for _ in range(4)))
    assert len({one.data["id"] for one in answers}) == 1
    assert sorted(one.status for one in answers) == [200, 200, 200, 201]
    assert answers[0].data["amount"] == "300.00"
    assert len(refunds.daraja.requests_of("reversal")) == 2


async def test_status_answer_of_the_payment_arriving_late_does_not_end_the_refund(refunds: RefundClient) -> None:
    """The query was sent before the acknowledgement; its result, without a receipt, is posted after it."""
    payment_id = await refunds.complete_payment()
    go = refunds.daraja.hold("reversal")
    asking = asyncio.create_task(refunds.ask(payment_id))
    await refunds.daraja.wait_for_requests("reversal")
    (refund,) = (await refunds.harness.api.call("GET", "/v1/refunds")).data
    question = await refunds.send_query(refund)
    assert question["TransactionID"] == RECEIPT
    go.set()
    assert (await asking).status == 201
    await refunds.answer(question, result(0, says={"TransactionStatus": "Completed"}))
    assert (await refunds.refund(refund))["status"] == "pending"
    assert await refunds.amounts(payment_id) == ("completed", 0, 500)


async def test_query_keeps_attention_set_by_a_result_during_it(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    go = refunds.daraja.hold("transactionstatus")
    asking = asyncio.create_task(refunds.harness.api.call("POST", f"/v1/refunds/{refund['id']}/query"))
    await refunds.daraja.wait_for_requests("transactionstatus")
    await refunds.done(refund, amount="1.00")
    go.set()
    assert (await asking).data["attention"]


async def test_query_of_a_retired_shortcode_uses_the_refunds_own(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    assert await move_to(refunds.harness.api, "600001") == {"payments": 0, "refunds": 1}
    answer = await refunds.harness.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert answer.status == 200
    await refunds.harness.gateway.db.execute("UPDATE refund SET due_at = now()")
    await refunds.harness.gateway.services.get(RefundStatusQueries).ask(refund["id"])
    await refunds.daraja.wait_for_requests("transactionstatus", 2)
    assert [query["PartyA"] for query in refunds.daraja.requests_of("transactionstatus")] == ["174379", "174379"]


async def test_query_not_sent_returns_the_reason(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id)).data
    refunds.daraja.add_answers("transactionstatus", fault("500.003.02", "Error Occurred: Spike Arrest Violation"))
    answer = await refunds.harness.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert (answer.status, answer.error["code"], "Retry-After" in answer.headers) == (503, "PROVIDER_UNAVAILABLE", True)
    refunds.daraja.add_answers("transactionstatus", fault("500.001.1001", "Wrong credentials"))
    answer = await refunds.harness.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert (answer.status, answer.error["code"]) == (502, "PROVIDER_REJECTED")
    await refunds.done(refund)
    answer = await refunds.harness.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert (answer.status, answer.error["code"]) == (409, "CONFLICT")


# -- an operator decides --------------------------------------------------------------------------------------------


async def test_resolve_ends_refunds_without_a_result(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    lost, gone = (await refunds.ask(payment_id, 100)).data, (await refunds.ask(payment_id, 200)).data
    scopes = (ADMIN, AUDIT_READ)
    async with shop(refunds.harness.gateway, refunds.harness.base, scopes=scopes, is_configured=False) as admin:

        async def resolve(refund: Any, outcome: str, confirm: str | None = None) -> Answer:
            body = {"outcome": outcome, "confirm": confirm or refund["id"], "note": "seen on the portal"}
            return await admin.call("POST", f"/v1/admin/refunds/{refund['id']}/resolve", body)

        assert (await resolve(lost, "failed")).status == 409
        await refunds.harness.gateway.db.execute("UPDATE refund SET attention = 'look', due_at = NULL")
        assert (await resolve(lost, "failed", confirm="yes")).status == 422
        assert (await refunds.harness.api.call("POST", f"/v1/admin/refunds/{lost['id']}/resolve", {})).status == 403
        assert (await resolve(lost, "failed")).data["status"] == "failed"
        assert (await resolve(gone, "completed")).data["status"] == "completed"
        assert (await resolve(gone, "failed")).status == 409
        assert await refunds.amounts(payment_id) == ("partially_reversed", 200, 0)
        # M-Pesa's result for one of them arrives after the decision.
        await refunds.done(lost, receipt="TKN9REV007")
        assert await refunds.amounts(payment_id) == ("partially_reversed", 300, 0)
        await refunds.result(gone, result(1, "no balance"))
        assert "no balance" in (await refunds.refund(gone))["attention"]
        # The operator confirms the decision.
        assert (await resolve(gone, "completed")).data["attention"] is None
        assert await refunds.amounts(payment_id) == ("partially_reversed", 300, 0)
        entries = (await admin.call("GET", "/v1/audit/logs?action=refund.resolved")).data
        assert [entry["detail"]["outcome"] for entry in entries] == ["completed", "completed", "failed"]
        assert {entry["subject_id"] for entry in entries} == {lost["id"], gone["id"]}
    await refunds.await_events("refund.failed", "payment.reversed", "payment.reversed")


# -- concurrency ----------------------------------------------------------------------------------------------------


async def test_refund_waiting_for_its_row_holds_no_lock_on_the_payment(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    spike = fault("500.003.02", "Error Occurred: Spike Arrest Violation")
    refunds.daraja.add_answers("reversal", spike)
    assert (await refunds.ask(payment_id, 10, key="again")).status == 503
    (unsent,) = (await refunds.harness.api.call("GET", "/v1/refunds")).data
    db = refunds.harness.gateway.db
    pool: Any = db.engine.pool
    async with pool.acquire() as one, pool.acquire() as two:
        await one.execute("BEGIN")
        await one.fetch("SELECT 1 FROM refund WHERE refund_id = $1 FOR UPDATE", unsent["id"])
        # The request waits for the refund's row and must hold no lock that the other transaction needs.
        asking = asyncio.create_task(refunds.ask(payment_id, 10, key="again"))

        async def is_waiting() -> bool:
            return bool(
                await two.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND datname = current_database()"
                )
            )

        await eventually(is_waiting)
        try:
            await one.execute("SET LOCAL lock_timeout = '2s'")
            await one.fetch("SELECT 1 FROM payment WHERE payment_id = $1 FOR UPDATE", payment_id)
        except asyncpg.LockNotAvailableError:
            pytest.fail("the request holds the payment while it waits for its refund")
        finally:
            await one.execute("ROLLBACK")
        assert (await asking).status == 201


async def test_resolve_takes_the_audit_lock_after_the_payments_lock(refunds: RefundClient) -> None:
    payment_id = await refunds.complete_payment()
    refund = (await refunds.ask(payment_id, 100)).data
    db = refunds.harness.gateway.db
    await db.execute("UPDATE refund SET attention = 'look', due_at = NULL")
    async with shop(refunds.harness.gateway, refunds.harness.base, scopes=(ADMIN,), is_configured=False) as admin:
        pool: Any = db.engine.pool
        async with pool.acquire() as one, pool.acquire() as two:
            await one.execute("BEGIN")
            await one.fetch("SELECT 1 FROM payment WHERE payment_id = $1 FOR UPDATE", payment_id)
            body = {"outcome": "completed", "confirm": refund["id"], "note": "seen"}
            resolving = asyncio.create_task(admin.call("POST", f"/v1/admin/refunds/{refund['id']}/resolve", body))

            async def is_waiting() -> bool:
                return bool(
                    await two.fetchval(
                        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                        "AND datname = current_database()"
                    )
                )

            await eventually(is_waiting)
            held = await two.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")
            await one.execute("ROLLBACK")
        assert held == 0
        assert (await resolving).data["status"] == "completed"
