"""Refunds: money goes back once or not at all, and what M-Pesa says of it, in whatever order, ends each rightly."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import asyncpg
import pytest

from mpesa_gateway.db.engine import ExternalCallInTransaction
from mpesa_gateway.security.scopes import ADMIN, AUDIT_READ, Caller
from mpesa_gateway.testing.serving import INITIATED, Answer, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_callbacks.verifier import CallbackVerifier
from mpesa_gateway_refunds.result_codes import REVERSAL_RESULTS
from mpesa_gateway_refunds.schemas import CreateRefund
from mpesa_gateway_refunds.service import RefundService
from mpesa_gateway_refunds.status_queries import RefundStatusQueries
from tests.conftest import Town
from tests.daraja import Daraja, ack, fault, result, stk_callback
from tests.stored import WIPE, change_credentials, move_to

RECEIPT = "TKN4A1B2C3"
REVERSAL = "TKN9REV001"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Nothing is asked about but on demand."""
    return values | {"daraja": {"sandbox_url": daraja.base}, "refunds": {"query_after": [3600, 3600, 3600]}}


class Desk:
    """A shop's refunds: asks for them, posts what M-Pesa says of them, and looks at what became of them."""

    def __init__(self, town: Town, daraja: Daraja) -> None:
        self.town = town
        self.daraja = daraja
        self.merchant_id = ""
        self.keys = 0

    async def paid(self, amount: int = 500, receipt: str = RECEIPT, key: str = "a") -> str:
        """A payment that has been completed; gives its id."""
        made = (await self.town.api.pay("254711000001", amount, key=key)).data
        self.merchant_id = made["merchant_id"]
        body = stk_callback(made["provider_ref"], amount=amount, receipt=receipt)
        assert (await self.post("stk", made["id"], body)).status == 200
        assert (await self.payment(made["id"]))["status"] == "completed"
        return str(made["id"])

    async def ask(self, payment_id: str, amount: Any = None, key: str | None = None) -> Answer:
        """Ask for a refund."""
        body = {"payment_id": payment_id} | ({} if amount is None else {"amount": amount})
        if amount is not None and key is None:
            self.keys += 1
            key = f"refund-{self.keys}"
        return await self.town.api.call("POST", "/v1/refunds", body, headers={"Idempotency-Key": key} if key else {})

    async def result(self, refund: Any, body: dict[str, Any], kind: str = "reversal") -> Answer:
        """What M-Pesa says of a reversal, to the address that was made for it."""
        return await self.post(kind, refund["id"], body)

    async def done(self, refund: Any, receipt: str = REVERSAL, amount: str | None = None) -> Answer:
        """M-Pesa says that it carried the reversal out."""
        says = {"OriginalTransactionID": RECEIPT, "Amount": amount or refund["amount"]}
        return await self.result(refund, result(0, transaction_id=receipt, says=says))

    async def questioned(self, refund: Any) -> dict[str, Any]:
        """Have M-Pesa asked about a refund now; gives the question that it was asked."""
        before = len(self.daraja.of("transactionstatus"))
        assert (await self.town.api.call("POST", f"/v1/refunds/{refund['id']}/query")).status == 200
        asked = self.daraja.of("transactionstatus")
        assert len(asked) == before + 1
        return asked[-1]

    async def answer(self, question: dict[str, Any], body: dict[str, Any], *, times_out: bool = False) -> Answer:
        """M-Pesa's answer to that question, where it wants it."""
        url: str = question["QueueTimeOutURL" if times_out else "ResultURL"]
        return await self.town.api.call("POST", url.removeprefix(self.town.base), body)

    async def refund(self, refund: Any) -> Any:
        """The refund as it is."""
        return (await self.town.api.call("GET", f"/v1/refunds/{refund['id']}")).data

    async def payment(self, payment_id: str) -> Any:
        """The payment as it is."""
        return (await self.town.api.call("GET", f"/v1/payments/{payment_id}")).data

    async def books(self, payment_id: str) -> tuple[str, int, int]:
        """The payment's status, what has gone back, and what is set aside."""
        row = await self.town.gateway.db.fetchrow(
            "SELECT status, refunded, refund_reserved FROM payment WHERE payment_id = $1", payment_id
        )
        assert row is not None
        return row["status"], row["refunded"], row["refund_reserved"]

    async def told(self, *kinds: str) -> None:
        """The shop has heard of exactly these events besides the payments' completion."""
        heard = await self.town.told(len(kinds) + 1)
        assert [kind for kind in heard if kind != "payment.completed"] == sorted(kinds)

    async def post(self, kind: str, subject_id: str, body: dict[str, Any]) -> Answer:
        url = self.town.gateway.services.get(Callbacks).url_for(
            kind, env="sandbox", merchant_id=self.merchant_id, subject_id=subject_id
        )
        return await self.town.api.call("POST", url.removeprefix(self.town.base), body)


@pytest.fixture
async def desk(town: Town, daraja: Daraja) -> Desk:
    """The shop's refunds, with an initiator stored."""
    assert (await town.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return Desk(town, daraja)


ADDRESSES: dict[str, str] = {"ResultURL": "reversal", "QueueTimeOutURL": "reversal-timeout"}

# -- asking for one -----------------------------------------------------------------------------------------------


async def test_what_is_sent_is_what_daraja_wants(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id, 120)).data
    (sent,) = desk.daraja.of("reversal")
    callbacks = desk.town.gateway.services.get(Callbacks)
    for field, kind in ADDRESSES.items():
        url = callbacks.url_for(kind, env="sandbox", merchant_id=desk.merchant_id, subject_id=refund["id"])
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
    assert await desk.books(payment_id) == ("completed", 0, 120)


async def test_the_same_refund_twice_with_a_key_is_one_and_without_a_key_what_is_left_decides(desk: Desk) -> None:
    payment_id = await desk.paid()
    first = await desk.ask(payment_id, 300, key="r")
    again = await desk.ask(payment_id, "300.00", key="r")
    assert (first.status, again.status, again.data["id"]) == (201, 200, first.data["id"])
    assert again.headers["Idempotent-Replayed"] == "true"
    other = await desk.ask(payment_id, 100, key="r")
    assert (other.status, other.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    refused = await desk.ask(payment_id, 300)
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    assert "KES 200 of this payment can still be refunded" in refused.error["message"]
    assert len(desk.daraja.of("reversal")) == 1
    whole = await desk.ask(payment_id)
    assert (whole.status, whole.data["amount"]) == (201, "200.00")
    for key_of_another in (None, "another"):
        same = await desk.ask(payment_id, key=key_of_another)
        assert (same.status, same.data["id"], same.headers["Idempotent-Replayed"]) == (200, whole.data["id"], "true")
    assert len(desk.daraja.of("reversal")) == 2


async def test_part_without_a_key_is_refused_and_nothing_is_sent(desk: Desk) -> None:
    payment_id = await desk.paid()
    body = {"payment_id": payment_id, "amount": 100}
    answer = await desk.town.api.call("POST", "/v1/refunds", body)
    assert (answer.status, answer.error["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    # Also where the amount is all there is.
    whole = await desk.town.api.call("POST", "/v1/refunds", body | {"amount": 500})
    assert (whole.status, whole.error["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")
    assert desk.daraja.of("reversal") == []
    assert await desk.books(payment_id) == ("completed", 0, 0)


async def test_refund_of_the_whole_rest_is_one_however_often_it_is_asked_for(desk: Desk) -> None:
    payment_id = await desk.paid()
    answers = await asyncio.gather(*(desk.ask(payment_id) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    (refund_id,) = {answer.data["id"] for answer in answers}
    assert len(desk.daraja.of("reversal")) == 1
    await desk.done(answers[0].data)
    again = await desk.ask(payment_id)
    assert (again.status, again.data["id"], again.data["status"]) == (200, refund_id, "completed")
    assert await desk.books(payment_id) == ("reversed", 500, 0)


async def test_refund_of_the_whole_rest_that_failed_can_be_asked_for_again(desk: Desk) -> None:
    payment_id = await desk.paid()
    first = (await desk.ask(payment_id)).data
    await desk.result(first, result(1, "balance too low"))
    assert (await desk.refund(first))["status"] == "failed"
    second = await desk.ask(payment_id)
    assert (second.status, second.data["id"] == first["id"]) == (201, False)


async def test_keyed_refund_of_all_that_is_left_answers_a_call_without_amount(desk: Desk) -> None:
    payment_id = await desk.paid()
    whole = (await desk.ask(payment_id, 500, key="all")).data
    again = await desk.ask(payment_id)
    assert (again.status, again.data["id"]) == (200, whole["id"])
    assert len(desk.daraja.of("reversal")) == 1


async def test_part_that_becomes_free_beside_a_refund_of_the_rest_goes_back_with_a_key(desk: Desk) -> None:
    payment_id = await desk.paid()
    part = (await desk.ask(payment_id, 200)).data
    rest = (await desk.ask(payment_id)).data
    assert rest["amount"] == "300.00"
    await desk.result(part, result(1, "balance too low"))
    assert (await desk.ask(payment_id)).data["id"] == rest["id"]
    other = await desk.ask(payment_id, 200)
    assert (other.status, other.data["amount"]) == (201, "200.00")


async def test_ack_of_a_reversal_that_cannot_be_written_is_answered_and_written_later(
    desk: Desk, database_url: str
) -> None:
    payment_id = await desk.paid()
    answer = desk.daraja.hold("reversal")
    task = asyncio.create_task(desk.ask(payment_id))
    await desk.daraja.asked_about("reversal")
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("SELECT 1 FROM refund FOR UPDATE")
        answer.set()
        made = await task
        assert (made.status, made.data["status"]) == (201, "pending")
        assert desk.town.gateway.outcomes.kept == 1
    await other.close()

    async def is_written() -> bool:
        return bool(await desk.town.gateway.db.fetchval("SELECT reversal = 'accepted' FROM refund"))

    await eventually(is_written)
    assert (await desk.refund(made.data))["provider_ref"] == made.data["provider_ref"] is not None
    await desk.done(made.data)
    assert await desk.books(payment_id) == ("reversed", 500, 0)


async def test_reversal_that_was_cut_off_before_it_was_sent_frees_its_money(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id, 200, key="r")).data
    db, queries = desk.town.gateway.db, desk.town.gateway.services.get(RefundStatusQueries)
    # As a crash after the first commit leaves it.
    await db.execute(
        "UPDATE refund SET reversal = 'ready', originator_conversation_id = NULL, conversation_id = NULL, "
        "due_at = now()"
    )
    await db.execute("UPDATE idempotency_key SET state = 'in_flight', leased_until = now() WHERE key = 'r'")
    # The cron may be the one that asks.
    await queries.ask(refund["id"])

    async def has_failed() -> bool:
        return bool((await desk.refund(refund))["status"] == "failed")

    assert await eventually(has_failed)
    assert (await desk.refund(refund))["result_code"] == "unsent"
    assert await desk.books(payment_id) == ("completed", 0, 0)
    assert await db.fetchval("SELECT state FROM idempotency_key WHERE key = 'r'") == "settled"
    await desk.told("refund.failed")
    again = await desk.ask(payment_id, 200, key="r")
    assert (again.status, again.data["status"]) == (200, "failed")
    assert len(desk.daraja.of("reversal")) == 1


async def test_refund_is_refused_inside_a_transaction_of_the_host(desk: Desk) -> None:
    payment_id = await desk.paid()
    gateway = desk.town.gateway
    service = gateway.services.get(RefundService)
    caller = Caller(desk.merchant_id, "", frozenset(), "sandbox", by="host")
    body = CreateRefund(payment_id=payment_id)

    async def inside() -> None:
        async with gateway.db.transaction():
            # Before anything is written: the client's own refusal would come after the intent.
            with pytest.raises(ExternalCallInTransaction, match="asking for a refund"):
                await service.request(caller, body, None)
            raise RuntimeError("the host's own")

    with pytest.raises(RuntimeError, match="the host's own"):
        await inside()
    assert desk.daraja.of("reversal") == []
    assert await desk.books(payment_id) == ("completed", 0, 0)


@pytest.mark.parametrize("amount", [0, -1, "1.5", 501, True, "all"])
async def test_amounts_that_cannot_go_back_are_refused_and_nothing_is_sent(desk: Desk, amount: Any) -> None:
    payment_id = await desk.paid()
    answer = await desk.ask(payment_id, amount, key="bad")
    assert answer.status == (409 if amount == 501 else 422)
    assert desk.daraja.of("reversal") == []
    assert await desk.books(payment_id) == ("completed", 0, 0)
    # The key is as free as the money.
    assert (await desk.ask(payment_id, 10, key="bad")).status == 201


async def test_what_is_not_paid_or_not_yours_or_has_no_receipt_cannot_go_back(desk: Desk) -> None:
    payment_id = await desk.paid()
    pending = (await desk.town.api.pay("254711000002", 60, key="open")).data
    answer = await desk.ask(pending["id"])
    assert (answer.status, answer.error["message"].startswith("this payment is pending")) == (409, True)
    await desk.post("stk", pending["id"], stk_callback(pending["provider_ref"], has_metadata=False))
    answer = await desk.ask(pending["id"])
    assert (answer.status, "receipt" in answer.error["message"]) == (409, True)
    assert (await desk.ask("pay_" + "0" * 26)).status == 404
    async with shop(desk.town.gateway, desk.town.base) as other:
        await other.call("PUT", "/v1/merchant/providers", INITIATED)
        answer = await other.call("POST", "/v1/refunds", {"payment_id": payment_id})
        assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
        made = (await desk.ask(payment_id)).data
        assert (await other.call("GET", f"/v1/refunds/{made['id']}")).status == 404
        assert (await other.call("POST", f"/v1/refunds/{made['id']}/query")).status == 404
    assert len(desk.daraja.of("reversal")) == 1


async def test_a_payment_is_reversed_with_its_own_shortcode_whatever_the_default_is_now(desk: Desk) -> None:
    payment_id = await desk.paid()
    await move_to(desk.town.api, "600001")
    assert (await desk.ask(payment_id, key="r")).status == 201
    (sent,) = desk.daraja.of("reversal")
    assert sent["ReceiverParty"] == "174379"


async def test_a_payment_of_the_other_environment_is_not_found(desk: Desk) -> None:
    payment_id = await desk.paid()
    _, secret = await desk.town.gateway.api_keys.create(
        desk.merchant_id, name="live", scopes=desk.town.gateway.scopes.of_merchants, env="live", actor="test"
    )
    live = Api(desk.town.base, secret.reveal())
    answer = await live.call("POST", "/v1/refunds", {"payment_id": payment_id})
    await live.close()
    assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
    assert desk.daraja.of("reversal") == []
    assert await desk.books(payment_id) == ("completed", 0, 0)


async def test_a_payment_whose_credentials_were_erased_is_refunded_once_they_are_stored_again(desk: Desk) -> None:
    payment_id = await desk.paid()
    await desk.town.gateway.db.execute(WIPE)
    answer = await desk.ask(payment_id, key="r")
    assert (answer.status, answer.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")
    assert "174379" in answer.error["message"]
    assert await desk.books(payment_id) == ("completed", 0, 0)
    assert (await desk.town.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    assert (await desk.ask(payment_id, key="r")).status == 201


async def test_without_an_initiator_the_missing_field_is_named(town: Town, daraja: Daraja) -> None:
    desk = Desk(town, daraja)
    payment_id = await desk.paid()
    answer = await desk.ask(payment_id, key="r")
    assert (answer.status, answer.error["code"], answer.error["field"]) == (
        422,
        "PROVIDER_NOT_CONFIGURED",
        "mpesa.initiator",
    )
    assert await desk.books(payment_id) == ("completed", 0, 0)


# -- how it can end -----------------------------------------------------------------------------------------------

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


def test_the_table_of_results_is_complete() -> None:
    assert {*WORDS, "R000001"} >= set(REVERSAL_RESULTS)


@pytest.mark.parametrize("is_text", [False, True])
async def test_every_result_code_has_its_outcome_and_its_advice(desk: Desk, is_text: bool) -> None:
    for number, (code, word) in enumerate(WORDS.items()):
        receipt = f"TKN0000{number:03}"
        payment_id = await desk.paid(receipt=receipt, key=f"k{number}")
        refund = (await desk.ask(payment_id)).data
        said = result(
            int(code) if code.isdigit() and not is_text else code,
            "said",
            transaction_id=f"REV0000{number:03}",
            says={"OriginalTransactionID": receipt} if code == "0" else None,
        )
        assert (await desk.result(refund, said)).status == 200
        after = await desk.refund(refund)
        assert (after["outcome"], after["result_code"], after["result_desc"]) == (word, code, "said")
        if code == "0":
            assert (after["status"], after["reversal_receipt"], after["advice"]) == ("completed", "REV0000000", None)
            assert await desk.books(payment_id) == ("reversed", 500, 0)
        else:
            assert (after["status"], after["reversal_receipt"]) == ("failed", None)
            assert after["advice"]
            assert await desk.books(payment_id) == ("completed", 0, 0)
    failed = await desk.town.receiver.wait_for(len(WORDS) - 1, kind="refund.failed")
    for event in failed:
        data = event.json["data"]
        assert (data["outcome"], bool(data["advice"]), data["status"]) == (WORDS[data["result_code"]], True, "failed")
    (reversed_,) = await desk.town.receiver.wait_for(1, kind="payment.reversed")
    assert reversed_.json["data"]["refund_amount"] == "500.00"


@pytest.mark.parametrize("code", UNKNOWN_RESULTS)
async def test_take_result_unknown_code_keeps_the_money_reserved_for_review(desk: Desk, code: str) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    said = result(int(code) if code.isdigit() else code, "Duplicate Detected 254711000001")
    assert (await desk.result(refund, said)).status == 200
    after = await desk.refund(refund)
    assert (after["status"], after["outcome"]) == ("pending", None)
    assert code in after["attention"]
    assert "254711000001" not in after["attention"]
    assert await desk.books(payment_id) == ("completed", 0, 500)
    # No second reversal is possible meanwhile, and M-Pesa's own proof still ends this one.
    again = await desk.ask(payment_id, key="again")
    assert (again.status, again.data["id"]) == (200, refund["id"])
    assert len(desk.daraja.of("reversal")) == 1
    await desk.done(refund)
    assert await desk.books(payment_id) == ("reversed", 500, 0)


@pytest.mark.parametrize("code", [0.0, "00000000", "0.0"])
async def test_reversal_acknowledged_with_any_zero_is_sent_once(desk: Desk, code: Any) -> None:
    payment_id = await desk.paid()
    status, content = ack(9)
    desk.daraja.say("reversal", (status, content | {"ResponseCode": code}))
    refund = (await desk.ask(payment_id)).data
    assert refund["status"] == "pending"
    assert await desk.books(payment_id) == ("completed", 0, 500)
    says = {"OriginalTransactionID": RECEIPT, "Amount": refund["amount"]}
    assert (await desk.result(refund, result(code, transaction_id=REVERSAL, says=says))).status == 200
    assert await desk.books(payment_id) == ("reversed", 500, 0)


SPIKE = {"fault": {"faultstring": "spike arrest", "detail": {"errorcode": "policies.ratelimit.SpikeArrestViolation"}}}


@pytest.mark.parametrize("said", [(429, SPIKE), (500, SPIKE), (429, b""), (429, b"<html></html>")])
async def test_reversal_refused_by_the_proxy_frees_the_money(desk: Desk, said: Any) -> None:
    payment_id = await desk.paid()
    desk.daraja.say("reversal", said)
    answer = await desk.ask(payment_id, key="r")
    assert (answer.status, answer.error["retryable"]) == (503, True)
    assert await desk.books(payment_id) == ("completed", 0, 0)
    assert (await desk.ask(payment_id, key="r")).data["status"] == "pending"
    assert len(desk.daraja.of("reversal")) == 2


async def test_a_part_goes_back_and_then_the_rest(desk: Desk) -> None:
    payment_id = await desk.paid()
    part = (await desk.ask(payment_id, 120)).data
    await desk.done(part)
    assert await desk.books(payment_id) == ("partially_reversed", 120, 0)
    assert (await desk.payment(payment_id))["refunded_amount"] == "120.00"
    rest = (await desk.ask(payment_id)).data
    assert rest["amount"] == "380.00"
    await desk.done(rest, receipt="TKN9REV002")
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    await desk.told("payment.reversed", "payment.reversed")
    sent = [one.json["data"] for one in desk.town.receiver.of("payment.reversed")]
    assert sorted((data["refund_amount"], data["refunded_amount"], data["status"]) for data in sent) == [
        ("120.00", "120.00", "partially_reversed"),
        ("380.00", "500.00", "reversed"),
    ]


async def test_safaricom_refuses_a_part_and_the_refund_says_what_it_said(desk: Desk) -> None:
    payment_id = await desk.paid()
    desk.daraja.say("reversal", fault("400.002.02", "Bad Request - Invalid Amount", 400))
    answer = await desk.ask(payment_id, 120, key="r")
    assert (answer.status, answer.error["code"]) == (502, "PROVIDER_REJECTED")
    assert answer.error["provider"]["errorMessage"] == "Bad Request - Invalid Amount"
    assert "Bad Request - Invalid Amount" in answer.error["message"]
    (refund,) = (await desk.town.api.call("GET", f"/v1/refunds?payment_id={payment_id}")).data
    assert (refund["status"], refund["outcome"], refund["result_code"]) == (
        "failed",
        "rejected_by_provider",
        "400.002.02",
    )
    assert refund["advice"] == "correct the field that M-Pesa's message names"
    assert answer.error["id"] == refund["id"]
    assert await desk.books(payment_id) == ("completed", 0, 0)
    again = await desk.ask(payment_id, 120, key="r")
    assert (again.status, again.data["id"], again.data["status"]) == (200, refund["id"], "failed")
    assert len(desk.daraja.of("reversal")) == 1
    await desk.told("refund.failed")


async def test_an_amount_that_mpesa_did_not_get_from_us_waits_for_a_person(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id, 120)).data
    await desk.done(refund, amount="100.00")
    after = await desk.refund(refund)
    assert (after["status"], "KES 100.00" in after["attention"]) == ("pending", True)
    assert await desk.books(payment_id) == ("completed", 0, 120)
    # Neither a late timeout nor a sweep takes that away.
    await desk.result(refund, result(1), "reversal-timeout")
    assert (await desk.refund(refund))["attention"] == after["attention"]


# -- order, repetition, contradiction -----------------------------------------------------------------------------


async def test_a_result_may_come_before_its_ack(desk: Desk) -> None:
    payment_id = await desk.paid()
    go = desk.daraja.hold("reversal")
    asking = asyncio.create_task(desk.ask(payment_id, key="r"))
    await desk.daraja.asked_about("reversal")
    (refund,) = (await desk.town.api.call("GET", "/v1/refunds")).data
    assert refund["status"] == "pending"
    await desk.done(refund, receipt=REVERSAL)
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    go.set()
    answer = await asking
    assert (answer.status, answer.data["status"], answer.data["outcome"]) == (201, "completed", "reversed")
    assert (await desk.refund(refund))["provider_ref"] is not None
    await desk.told("payment.reversed")


async def test_a_result_without_a_token_waits_for_the_ack_that_names_it(desk: Desk) -> None:
    """The specification's own address carries no token: Daraja's ids are all there is."""
    payment_id = await desk.paid()
    url = f"{desk.town.base}/v1/webhooks/mpesa/reversal/result"
    await change_credentials(desk.town.gateway, result_url=url)
    verifier: Any = desk.town.gateway.services.get(CallbackVerifier)
    verifier._allowlist = (*verifier._allowlist, *_loopback())
    desk.daraja.say("reversal", ack(77))
    go = desk.daraja.hold("reversal")
    asking = asyncio.create_task(desk.ask(payment_id))
    (sent,) = await desk.daraja.asked_about("reversal")
    assert sent["ResultURL"] == url
    says = {"OriginalTransactionID": RECEIPT}
    body = result(0, originator="o-77", conversation="AG_77", transaction_id=REVERSAL, says=says)
    assert (await desk.town.api.call("POST", "/v1/webhooks/mpesa/reversal/result", body)).status == 200
    assert await desk.books(payment_id) == ("completed", 0, 500)
    go.set()
    assert (await asking).data["status"] == "completed"
    assert await desk.books(payment_id) == ("reversed", 500, 0)


SPECIFIED = "/v1/webhooks/mpesa/"


async def test_reversal_result_without_a_token_is_taken_at_every_result_address(desk: Desk) -> None:
    """The specification's one result_url is that of status queries, and Daraja posts reversals' results there too."""
    verifier: Any = desk.town.gateway.services.get(CallbackVerifier)
    verifier._allowlist = (*verifier._allowlist, *_loopback())
    url = f"{desk.town.base}{SPECIFIED}transactionstatus/result"
    await change_credentials(desk.town.gateway, result_url=url, timeout_url=url.replace("result", "timeout"))
    for number, where in enumerate(("transactionstatus/result", "reversal/result", "")):
        receipt, reversal = f"TKN000000{number}", f"REV000000{number}"
        payment_id = await desk.paid(receipt=receipt, key=f"k{number}")
        desk.daraja.say("reversal", ack(80 + number))
        refund = (await desk.ask(payment_id)).data
        assert desk.daraja.of("reversal")[-1]["ResultURL"] == url
        # A timeout, likewise, asks.
        late = result(1, kind=1, originator=f"o-{80 + number}", conversation=f"AG_{80 + number}")
        assert (await desk.town.api.call("POST", f"{SPECIFIED}transactionstatus/timeout", late)).status == 200
        due = "SELECT due_at <= now() FROM refund WHERE refund_id = $1"
        assert await desk.town.gateway.db.fetchval(due, refund["id"])
        assert await desk.books(payment_id) == ("completed", 0, 500)
        # Ids that we do not know wait, whatever their result says.
        strange = result(0, originator=f"x-{number}", conversation=f"AGX_{number}", transaction_id=reversal)
        path = f"{SPECIFIED}{where}".rstrip("/")
        assert (await desk.town.api.call("POST", path, strange)).status == 200
        assert await desk.books(payment_id) == ("completed", 0, 500)
        says = {"OriginalTransactionID": receipt, "Amount": 5e2}
        done = result(
            0.0,
            originator=f"o-{80 + number}",
            conversation=f"AG_{80 + number}",
            transaction_id=reversal,
            says=says,
        )
        assert (await desk.town.api.call("POST", path, done)).status == 200
        assert await desk.books(payment_id) == ("reversed", 500, 0), where
        assert (await desk.refund(refund))["reversal_receipt"] == reversal
    verdicts = await desk.town.gateway.db.fetch("SELECT verdict, count(*) FROM callback GROUP BY 1")
    assert {row["verdict"]: row["count"] for row in verdicts} == {"applied": 9, "waiting": 3}


async def test_reversal_result_without_a_token_needs_a_listed_source(values: dict[str, Any], daraja: Daraja) -> None:
    values["callbacks"] = {"enforce_allowlist": "never"}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        done = result(0, originator="o-1", conversation="AG_1", transaction_id=REVERSAL)
        for where in ("transactionstatus/result", "reversal/result", "reversal/timeout", ""):
            assert (await api.call("POST", f"{SPECIFIED}{where}".rstrip("/"), done)).status == 403, where
        assert daraja.of("reversal") == []
        reasons = {row["reason"] for row in await gateway.db.fetch("SELECT reason FROM refused_callback")}
        assert reasons == {"source"}


async def test_reversal_result_with_a_token_is_taken_at_every_result_address(desk: Desk) -> None:
    callbacks = desk.town.gateway.services.get(Callbacks)
    for number, path in enumerate(("/v1/cb/status/", f"{SPECIFIED}transactionstatus/result/", "/v1/cb/reversal/")):
        receipt = f"TKN000000{number}"
        payment_id = await desk.paid(receipt=receipt, key=f"k{number}")
        refund = (await desk.ask(payment_id)).data
        url = callbacks.url_for("reversal", env="sandbox", merchant_id=desk.merchant_id, subject_id=refund["id"])
        token = url.rpartition("/")[2]
        # At a timeout address it says nothing of the money, whatever is in it, also nothing at all.
        for raw in (b"", b"\xff", b"<html>gone</html>", json.dumps(result(1)).encode()):
            answer = await desk.town.api.call("POST", f"/v1/cb/status-timeout/{token}", raw=raw)
            assert (answer.status, await desk.books(payment_id)) == (200, ("completed", 0, 500)), raw
        done = result(0, transaction_id=f"REV000000{number}", says={"OriginalTransactionID": receipt})
        assert (await desk.town.api.call("POST", path + token, done)).status == 200
        assert await desk.books(payment_id) == ("reversed", 500, 0), path


def _loopback() -> tuple[Any, ...]:
    from mpesa_gateway.client_ip import read_networks  # noqa: PLC0415

    return read_networks(("127.0.0.0/8",), "test")


@asynccontextmanager
async def _without_refunds(values: dict[str, Any], allowlist: list[str]) -> AsyncGenerator[Api]:
    """A process of the same gateway in which the plugin is not enabled, and a caller of it."""
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


async def test_reversal_result_while_the_plugin_is_off_is_kept_and_completes_the_refund_once_it_is_on(
    desk: Desk, values: dict[str, Any]
) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    url = desk.town.gateway.port(Callbacks).url_for(
        "reversal", env="sandbox", merchant_id=desk.merchant_id, subject_id=refund["id"]
    )
    path = url.removeprefix(desk.town.base)
    body = result(0, transaction_id=REVERSAL, says={"OriginalTransactionID": RECEIPT, "Amount": refund["amount"]})
    async with _without_refunds(values, ["192.0.2.1"]) as off:
        strange = path[:-1] + ("0" if path[-1] != "0" else "1")
        for where in (strange, "/v1/cb/nothing/x", f"{SPECIFIED}reversal/result", f"{SPECIFIED}nothing/here"):
            assert (await off.call("POST", where, body)).status == 404
        assert await desk.town.gateway.db.fetch(_KEPT) == []
        assert (await off.call("POST", path, body)).status == 404
    assert [tuple(row) for row in await desk.town.gateway.db.fetch(_KEPT)] == [("reversal", "kind", True, refund["id"])]
    operators = desk.town.gateway.services.get(CallbackOperatorService)
    assert await operators.count_unread("sandbox", timedelta(hours=1)) == 1
    refused_id = await desk.town.gateway.db.fetchval("SELECT refused_id FROM refused_callback")
    assert (await operators.replay(refused_id, actor="a person")).verdict == "applied"
    assert (await desk.refund(refund))["status"] == "completed"
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    assert await operators.count_unread("sandbox", timedelta(hours=1)) == 0


async def test_results_without_a_token_while_the_plugin_is_off_are_offered_to_the_kinds_that_are_on(
    desk: Desk, values: dict[str, Any]
) -> None:
    """One result_url is that of status queries and reversals; an answer about a payment must not depend on refunds."""
    made = (await desk.town.api.pay("254711000001", 500, key="b")).data
    url = f"{desk.town.base}{SPECIFIED}reversal/result"
    await change_credentials(desk.town.gateway, result_url=url, timeout_url=url.replace("result", "timeout"))
    desk.daraja.say("transactionstatus", ack(91))
    assert (await desk.town.api.call("POST", f"/v1/payments/mpesa/check-status/{made['id']}")).status == 200
    answer = result(0, originator="o-91", conversation="AG_91", transaction_id="TKN0000091")
    async with _without_refunds(values, ["127.0.0.0/8"]) as off:
        assert (await off.call("POST", f"{SPECIFIED}reversal/result", answer)).status == 200
        assert (await off.call("POST", f"{SPECIFIED}nothing/here", answer)).status == 404
    taken = await desk.town.gateway.db.fetch("SELECT kind, handle FROM callback WHERE kind <> 'stk'")
    assert [tuple(row) for row in taken] == [("status", "o-91")]
    # Nothing takes an address that ends in another word: it is Safaricom's all the same, and kept.
    assert [tuple(row) for row in await desk.town.gateway.db.fetch(_KEPT)] == [("nothing/here", "kind", True, None)]


async def test_a_result_that_comes_again_or_changes_its_mind_moves_nothing_twice(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    await desk.result(refund, result(0, kind=1))
    assert (await desk.refund(refund))["status"] == "pending"
    for _ in range(3):
        await desk.done(refund)
    await desk.done(refund, receipt="TKN9REV002")
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    await desk.result(refund, result(1, "The balance is insufficient"))
    after = await desk.refund(refund)
    assert (after["status"], after["outcome"], after["reversal_receipt"]) == ("completed", "reversed", REVERSAL)
    # The books stay, and somebody is told that M-Pesa contradicts itself.
    assert "The balance is insufficient" in after["attention"]
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    await desk.told("payment.reversed")


async def test_second_receipt_for_a_refund_that_is_completed_is_left_to_a_person(desk: Desk) -> None:
    """Two reversals of one refund may have sent its money back twice."""
    payment_id = await desk.paid()
    part = (await desk.ask(payment_id, 200)).data
    for _ in range(2):
        await desk.done(part)
        assert (await desk.refund(part))["attention"] is None
    await desk.done(part, receipt="TKN9REV002")
    after = await desk.refund(part)
    assert (after["status"], after["reversal_receipt"]) == ("completed", REVERSAL)
    assert "TKN9REV002" in after["attention"]
    assert await desk.books(payment_id) == ("partially_reversed", 200, 0)
    await desk.told("payment.reversed")


async def test_a_refund_that_failed_and_that_mpesa_carried_out_after_all_is_completed(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id, 200)).data
    await desk.result(refund, result(1))
    assert await desk.books(payment_id) == ("completed", 0, 0)
    await desk.done(refund)
    after = await desk.refund(refund)
    assert (after["status"], after["outcome"], after["attention"]) == ("completed", "reversed", None)
    assert await desk.books(payment_id) == ("partially_reversed", 200, 0)
    await desk.told("refund.failed", "payment.reversed")


async def test_a_late_reversal_finds_its_money_promised_to_another_refund_and_waits_for_it(desk: Desk) -> None:
    payment_id = await desk.paid()
    first = (await desk.ask(payment_id)).data
    await desk.result(first, result(1))
    second = (await desk.ask(payment_id)).data
    await desk.done(first)
    after = await desk.refund(first)
    assert (after["status"], "carried this refund out" in after["attention"]) == ("failed", True)
    assert await desk.books(payment_id) == ("completed", 0, 500)
    # M-Pesa refuses the second one, of course; then the first gets what is its own.
    await desk.result(second, result("R000002"))
    await desk.town.gateway.db.execute("UPDATE callback SET due_at = now() WHERE verdict = 'waiting'")
    await desk.town.gateway.services.get(CallbackDispatcher).sweep()
    assert ((await desk.refund(first))["status"], (await desk.refund(second))["status"]) == ("completed", "failed")
    assert (await desk.refund(first))["attention"] is None
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    await desk.told("refund.failed", "refund.failed", "payment.reversed")


async def test_one_reversal_receipt_ends_one_refund(desk: Desk) -> None:
    payment_id = await desk.paid()
    first, second = (await desk.ask(payment_id, 100)).data, (await desk.ask(payment_id, 100)).data
    await desk.done(first)
    await desk.done(second)
    after = await desk.refund(second)
    assert (after["status"], REVERSAL in after["attention"]) == ("pending", True)
    assert await desk.books(payment_id) == ("partially_reversed", 100, 100)


async def test_a_result_about_another_payment_or_another_conversation_is_refused(desk: Desk) -> None:
    payment_id = await desk.paid()
    desk.daraja.say("reversal", ack(5))
    refund = (await desk.ask(payment_id)).data
    for body in (
        result(0, transaction_id=REVERSAL, says={"OriginalTransactionID": "TKN0000000"}),
        result(0, originator="o-6", transaction_id=REVERSAL),
        result(0, originator="o-6", conversation="AG_6"),
    ):
        answer = await desk.result(refund, body)
        assert (answer.status, answer.error["code"]) == (403, "CALLBACK_REFUSED")
    assert await desk.books(payment_id) == ("completed", 0, 500)
    reasons = await desk.town.gateway.db.fetch("SELECT reason FROM refused_callback")
    assert [row["reason"] for row in reasons] == ["subject"] * 3


# -- R000001 ------------------------------------------------------------------------------------------------------


async def test_already_reversed_is_verified_and_then_settles_the_refund(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    await desk.result(refund, result("R000001"))
    assert (await desk.refund(refund))["status"] == "pending"
    question = await desk.questioned(refund)
    assert (question["TransactionID"], question.get("OriginalConversationID")) == (RECEIPT, None)
    await desk.answer(question, result(2032, "The transaction does not exist"))
    await desk.answer(question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Pending"}))
    await desk.answer(question, result(0, says={"ReceiptNo": "TKN0000000", "TransactionStatus": "Completed"}))
    assert (await desk.refund(refund))["status"] == "pending"
    await desk.answer(
        question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Completed", "Amount": "500.00"})
    )
    after = await desk.refund(refund)
    assert (after["status"], after["outcome"], after["result_code"]) == ("completed", "already_reversed", "R000001")
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    await desk.told("payment.reversed")


@pytest.mark.parametrize(
    "said",
    [
        {"TransactionStatus": "Cancelled"},
        {"TransactionStatus": "Completed", "Amount": "40.00"},
    ],
)
async def test_already_reversed_of_a_payment_that_mpesa_knows_otherwise_waits_for_a_person(
    desk: Desk, said: dict[str, str]
) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    await desk.result(refund, result("R000001"))
    await desk.answer(await desk.questioned(refund), result(0, says={"ReceiptNo": RECEIPT, **said}))
    after = await desk.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await desk.books(payment_id) == ("completed", 0, 500)


@pytest.mark.parametrize("is_verified", [True, False])
@pytest.mark.parametrize("said", [{}, {"ReceiptNo": RECEIPT, "Amount": "40.00"}, {"ReceiptNo": RECEIPT, "Amount": "x"}])
async def test_answer_about_the_payment_that_states_no_receipt_or_another_amount_proves_no_reversal(
    desk: Desk, said: dict[str, str], *, is_verified: bool
) -> None:
    payment_id = await desk.paid()
    if is_verified:
        refund = (await desk.ask(payment_id)).data
        await desk.result(refund, result("R000001"))
    else:
        desk.daraja.say("reversal", (500, b"<html>"))
        refund = (await desk.ask(payment_id)).data
    await desk.answer(await desk.questioned(refund), result(0, says={"TransactionStatus": "Reversed", **said}))
    after = await desk.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await desk.books(payment_id) == ("completed", 0, 500)


async def test_already_reversed_does_not_say_how_much_so_a_part_waits_for_a_person(desk: Desk) -> None:
    """KES 100 went back before; that is what M-Pesa speaks of, and not of these 400."""
    payment_id = await desk.paid()
    first = (await desk.ask(payment_id, 100)).data
    await desk.done(first)
    second = (await desk.ask(payment_id)).data
    await desk.result(second, result("R000001"))
    after = await desk.refund(second)
    assert (after["status"], "not how much" in after["attention"]) == ("pending", True)
    assert await desk.books(payment_id) == ("partially_reversed", 100, 400)
    question = await desk.questioned(second)
    await desk.answer(
        question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Reversed", "Amount": "500"})
    )
    assert (await desk.refund(second))["status"] == "pending"
    assert await desk.books(payment_id) == ("partially_reversed", 100, 400)


async def test_already_reversed_after_a_part_that_may_have_gone_back_waits_for_a_person(desk: Desk) -> None:
    payment_id = await desk.paid()
    part = (await desk.ask(payment_id, 100)).data
    await desk.result(part, result(1, "balance too low"))
    whole = (await desk.ask(payment_id)).data
    assert whole["amount"] == "500.00"
    await desk.result(whole, result("R000001"))
    assert "not how much" in (await desk.refund(whole))["attention"]


# -- unknown outcomes ---------------------------------------------------------------------------------------------

UNKNOWN: tuple[tuple[int, Any], ...] = (
    fault("500.003.1001", "Internal Server Error"),
    fault("500.002.1001", "Duplicate OriginatorConversationID"),
    (500, b"<html>"),
    (200, b"<html>We are improving our services</html>"),
    (200, b""),
    (503, {}),
    (200, {"ResponseDescription": "no code"}),
)


async def test_an_unknown_outcome_is_asked_about_and_never_sent_again(desk: Desk) -> None:
    for number, unknown in enumerate(UNKNOWN):
        receipt = f"TKN0000{number:03}"
        payment_id = await desk.paid(receipt=receipt, key=f"k{number}")
        desk.daraja.say("reversal", unknown)
        answer = await desk.ask(payment_id, key=f"r{number}")
        assert (answer.status, answer.data["status"]) == (201, "pending"), unknown
        again = await desk.ask(payment_id, key=f"r{number}")
        assert (again.status, again.data["id"]) == (200, answer.data["id"])
        unkeyed = await desk.ask(payment_id)
        assert (unkeyed.status, unkeyed.data["id"]) == (200, answer.data["id"])
        assert len(desk.daraja.of("reversal")) == number + 1
        question = await desk.questioned(answer.data)
        assert (question["TransactionID"], question.get("OriginalConversationID")) == (receipt, None)
        # Completed: the payment itself, as it always was. That says nothing of a reversal.
        for said in ({"ReceiptNo": receipt, "TransactionStatus": "Completed"}, {"TransactionStatus": "Completed"}):
            await desk.answer(question, result(0, says=said))
            assert await desk.books(payment_id) == ("completed", 0, 500)
        await desk.answer(question, result(0, says={"ReceiptNo": receipt, "TransactionStatus": "Reversed"}))
        assert (await desk.refund(answer.data))["status"] == "completed"
        assert await desk.books(payment_id) == ("reversed", 500, 0)


async def test_a_payment_that_is_reversed_proves_nothing_about_a_part(desk: Desk) -> None:
    payment_id = await desk.paid()
    desk.daraja.say("reversal", (500, b""))
    refund = (await desk.ask(payment_id, 100)).data
    question = await desk.questioned(refund)
    await desk.answer(question, result(0, says={"ReceiptNo": RECEIPT, "TransactionStatus": "Reversed"}))
    after = await desk.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await desk.books(payment_id) == ("completed", 0, 100)


async def test_what_was_never_sent_frees_the_money_and_the_key_may_try_again(desk: Desk) -> None:
    payment_id = await desk.paid()
    desk.daraja.say("reversal", fault("500.003.02", "Error Occurred: Spike Arrest Violation"))
    answer = await desk.ask(payment_id, key="r")
    assert (answer.status, answer.error["code"], "Retry-After" in answer.headers) == (503, "PROVIDER_UNAVAILABLE", True)
    assert await desk.books(payment_id) == ("completed", 0, 0)
    (unsent,) = (await desk.town.api.call("GET", "/v1/refunds")).data
    assert (unsent["status"], unsent["result_code"]) == ("failed", "unsent")
    answer = await desk.ask(payment_id, key="r")
    assert (answer.status, answer.data["id"], answer.data["status"]) == (201, unsent["id"], "pending")
    await desk.done(answer.data)
    assert await desk.books(payment_id) == ("reversed", 500, 0)
    await desk.told("payment.reversed")


async def test_a_crash_while_sending_is_asked_about_and_ends_with_a_person_at_last(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id, key="r")).data
    db, queries = desk.town.gateway.db, desk.town.gateway.services.get(RefundStatusQueries)
    # As a crash between the reversal and its record leaves it.
    await db.execute(
        "UPDATE refund SET reversal = 'sending', originator_conversation_id = NULL, conversation_id = NULL, "
        "due_at = now() + interval '150 seconds'"
    )
    await db.execute("UPDATE idempotency_key SET state = 'in_flight', leased_until = now() - interval '1 second'")
    again = await desk.ask(payment_id, key="r")
    assert (again.status, again.data["id"]) == (200, refund["id"])

    async def asks(number: int) -> list[Any]:
        found = desk.daraja.of("transactionstatus")
        return found if len(found) >= number else []

    for number in range(1, 4):
        await db.execute("UPDATE refund SET due_at = now()")
        # The cron may be the one that asks: then there is nothing left to do here.
        await queries.ask(refund["id"])
        found = await eventually(partial(asks, number))
        assert (len(found), found[-1]["TransactionID"]) == (number, RECEIPT)
    await db.execute("UPDATE refund SET due_at = now()")
    await queries.ask(refund["id"])

    async def is_noticed() -> bool:
        after = await desk.refund(refund)
        return (after["status"], bool(after["attention"])) == ("pending", True)

    assert await eventually(is_noticed)
    assert len(desk.daraja.of("transactionstatus")) == 3
    assert await queries.wake_due() == 0
    assert len(desk.daraja.of("reversal")) == 1
    assert await desk.books(payment_id) == ("completed", 0, 500)
    (waiting,) = (await desk.town.api.call("GET", "/v1/refunds?needs_attention=true")).data
    assert waiting["id"] == refund["id"]
    assert (await desk.town.api.call("GET", "/v1/refunds?needs_attention=false")).data == []


async def test_a_timeout_says_nothing_of_the_money_and_asks_at_once(desk: Desk) -> None:
    payment_id = await desk.paid()
    desk.daraja.say("reversal", ack(5))
    refund = (await desk.ask(payment_id)).data
    await desk.result(refund, result(1, originator="o-5"), "reversal-timeout")
    assert await desk.books(payment_id) == ("completed", 0, 500)
    assert await desk.town.gateway.db.fetchval("SELECT due_at <= now() FROM refund")
    question = await desk.questioned(refund)
    # By the reversal's own conversation, since we know it.
    assert (question.get("TransactionID"), question["OriginalConversationID"]) == (None, "o-5")
    await desk.answer(question, result(1), times_out=True)
    assert (await desk.refund(refund))["status"] == "pending"
    await desk.answer(
        question, result(0, says={"ReceiptNo": REVERSAL, "TransactionStatus": "Completed", "Amount": "500.00"})
    )
    after = await desk.refund(refund)
    assert (after["status"], after["reversal_receipt"]) == ("completed", REVERSAL)
    await desk.told("payment.reversed")


@pytest.mark.parametrize(
    ("said", "status", "books"),
    [
        # It names no transaction: it may be about any.
        ({"TransactionStatus": "Completed"}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "Amount": "500"}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "ReceiptNo": REVERSAL}, "completed", ("reversed", 500, 0)),
        ({"TransactionStatus": "Declined"}, "failed", ("completed", 0, 0)),
        ({"TransactionStatus": "Pending"}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "ReceiptNo": RECEIPT}, "pending", ("completed", 0, 500)),
        ({"TransactionStatus": "Completed", "ReceiptNo": REVERSAL, "Amount": "1.00"}, "pending", ("completed", 0, 500)),
    ],
)
async def test_the_answer_about_a_reversals_own_conversation_ends_it(
    desk: Desk, said: dict[str, str], status: str, books: tuple[str, int, int]
) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    await desk.answer(await desk.questioned(refund), result(0, says=said))
    assert (await desk.refund(refund))["status"] == status
    assert await desk.books(payment_id) == books


PAYOUT = {
    "TransactionReceipt": REVERSAL,
    "TransactionAmount": 500,
    "ReceiverPartyPublicName": "254799000001 - SOMEBODY",
}
BALANCE = {"AccountBalance": "Working Account|KES|500.00|500.00|0.00|0.00", "BOCompletedTime": "20261129143005"}


@pytest.mark.parametrize("says", [PAYOUT, BALANCE, {"Amount": 500}, {}])
async def test_a_result_that_names_no_reversed_payment_is_left_to_a_person(desk: Desk, says: dict[str, Any]) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    await desk.result(refund, result(0, transaction_id=REVERSAL, says=says))
    after = await desk.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await desk.books(payment_id) == ("completed", 0, 500)


@pytest.mark.parametrize("by", ["status", "result"])
async def test_the_receipt_of_money_that_came_in_is_no_reversals(desk: Desk, by: str) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    other = (await desk.town.api.pay("254711000002", 500, key="other")).data
    await desk.post("stk", other["id"], stk_callback(other["provider_ref"], receipt="OTHER00001"))
    if by == "result":
        await desk.done(refund, receipt="OTHER00001")
    else:
        says = {"TransactionStatus": "Completed", "ReceiptNo": "OTHER00001"}
        await desk.answer(await desk.questioned(refund), result(0, says=says))
    after = await desk.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await desk.books(payment_id) == ("completed", 0, 500)


@pytest.mark.parametrize("debtor", [{}, {"DebitPartyName": "254711000001 - JANE"}])
async def test_the_answer_about_a_reversal_that_names_us_as_the_creditor_is_left_to_a_person(
    desk: Desk, debtor: dict[str, str]
) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    says = {"TransactionStatus": "Completed", "ReceiptNo": REVERSAL, "CreditPartyName": "174379 - SHOP"} | debtor
    await desk.answer(await desk.questioned(refund), result(0, says=says))
    after = await desk.refund(refund)
    assert (after["status"], bool(after["attention"])) == ("pending", True)
    assert await desk.books(payment_id) == ("completed", 0, 500)


async def test_refund_of_the_rest_asked_for_twice_at_once_while_a_part_is_pending_is_one(desk: Desk) -> None:
    payment_id = await desk.paid()
    assert (await desk.ask(payment_id, amount=200, key="part")).status == 201
    answers = await asyncio.gather(*(desk.ask(payment_id) for _ in range(4)))
    assert len({one.data["id"] for one in answers}) == 1
    assert sorted(one.status for one in answers) == [200, 200, 200, 201]
    assert answers[0].data["amount"] == "300.00"
    assert len(desk.daraja.of("reversal")) == 2


async def test_a_late_answer_about_the_payment_is_not_taken_for_one_about_the_reversal(desk: Desk) -> None:
    """The question was put while no ack was known; the answer, without a receipt, comes after the ack."""
    payment_id = await desk.paid()
    go = desk.daraja.hold("reversal")
    asking = asyncio.create_task(desk.ask(payment_id))
    await desk.daraja.asked_about("reversal")
    (refund,) = (await desk.town.api.call("GET", "/v1/refunds")).data
    question = await desk.questioned(refund)
    assert question["TransactionID"] == RECEIPT
    go.set()
    assert (await asking).status == 201
    await desk.answer(question, result(0, says={"TransactionStatus": "Completed"}))
    assert (await desk.refund(refund))["status"] == "pending"
    assert await desk.books(payment_id) == ("completed", 0, 500)


async def test_asking_takes_no_attention_away_that_a_result_has_called_for_meanwhile(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    go = desk.daraja.hold("transactionstatus")
    asking = asyncio.create_task(desk.town.api.call("POST", f"/v1/refunds/{refund['id']}/query"))
    await desk.daraja.asked_about("transactionstatus")
    await desk.done(refund, amount="1.00")
    go.set()
    assert (await asking).data["attention"]


async def test_a_refund_is_asked_about_with_its_own_shortcode_after_that_was_retired(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    assert await move_to(desk.town.api, "600001") == {"payments": 0, "refunds": 1}
    answer = await desk.town.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert answer.status == 200
    await desk.town.gateway.db.execute("UPDATE refund SET due_at = now()")
    await desk.town.gateway.services.get(RefundStatusQueries).ask(refund["id"])
    await desk.daraja.asked_about("transactionstatus", 2)
    assert [asked["PartyA"] for asked in desk.daraja.of("transactionstatus")] == ["174379", "174379"]


async def test_who_asks_by_hand_hears_why_m_pesa_was_not_asked(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id)).data
    desk.daraja.say("transactionstatus", fault("500.003.02", "Error Occurred: Spike Arrest Violation"))
    answer = await desk.town.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert (answer.status, answer.error["code"], "Retry-After" in answer.headers) == (503, "PROVIDER_UNAVAILABLE", True)
    desk.daraja.say("transactionstatus", fault("500.001.1001", "Wrong credentials"))
    answer = await desk.town.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert (answer.status, answer.error["code"]) == (502, "PROVIDER_REJECTED")
    await desk.done(refund)
    answer = await desk.town.api.call("POST", f"/v1/refunds/{refund['id']}/query")
    assert (answer.status, answer.error["code"]) == (409, "CONFLICT")


# -- a person decides ---------------------------------------------------------------------------------------------


async def test_a_person_decides_what_mpesa_never_answered_for(desk: Desk) -> None:
    payment_id = await desk.paid()
    lost, gone = (await desk.ask(payment_id, 100)).data, (await desk.ask(payment_id, 200)).data
    scopes = (ADMIN, AUDIT_READ)
    async with shop(desk.town.gateway, desk.town.base, scopes=scopes, is_configured=False) as admin:

        async def resolve(refund: Any, outcome: str, confirm: str | None = None) -> Answer:
            body = {"outcome": outcome, "confirm": confirm or refund["id"], "note": "seen on the portal"}
            return await admin.call("POST", f"/v1/admin/refunds/{refund['id']}/resolve", body)

        assert (await resolve(lost, "failed")).status == 409
        await desk.town.gateway.db.execute("UPDATE refund SET attention = 'look', due_at = NULL")
        assert (await resolve(lost, "failed", confirm="yes")).status == 422
        assert (await desk.town.api.call("POST", f"/v1/admin/refunds/{lost['id']}/resolve", {})).status == 403
        assert (await resolve(lost, "failed")).data["status"] == "failed"
        assert (await resolve(gone, "completed")).data["status"] == "completed"
        assert (await resolve(gone, "failed")).status == 409
        assert await desk.books(payment_id) == ("partially_reversed", 200, 0)
        # And M-Pesa does answer for one of them, after all.
        await desk.done(lost, receipt="TKN9REV007")
        assert await desk.books(payment_id) == ("partially_reversed", 300, 0)
        await desk.result(gone, result(1, "no balance"))
        assert "no balance" in (await desk.refund(gone))["attention"]
        # The person has looked: the books were right.
        assert (await resolve(gone, "completed")).data["attention"] is None
        assert await desk.books(payment_id) == ("partially_reversed", 300, 0)
        entries = (await admin.call("GET", "/v1/audit/logs?action=refund.resolved")).data
        assert [entry["detail"]["outcome"] for entry in entries] == ["completed", "completed", "failed"]
        assert {entry["subject_id"] for entry in entries} == {lost["id"], gone["id"]}
    await desk.told("refund.failed", "payment.reversed", "payment.reversed")


# -- concurrency --------------------------------------------------------------------------------------------------


class Watch:
    """Remembers what Postgres complained about."""

    DEADLOCKS: ClassVar[str] = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


async def test_results_refunds_and_decisions_at_once_never_wait_for_each_other_in_a_circle(desk: Desk) -> None:
    """A late reversal of a refund whose key is asked for again, while another refund of the payment is decided."""
    payment_id = await desk.paid()
    spike = fault("500.003.02", "Error Occurred: Spike Arrest Violation")
    desk.daraja.say("reversal", spike)
    assert (await desk.ask(payment_id, 10, key="again")).status == 503
    (unsent,) = (await desk.town.api.call("GET", "/v1/refunds")).data
    db = desk.town.gateway.db
    pool: Any = db.engine.pool
    async with pool.acquire() as one, pool.acquire() as two:
        await one.execute("BEGIN")
        await one.fetch("SELECT 1 FROM refund WHERE refund_id = $1 FOR UPDATE", unsent["id"])
        # The request has to wait for the refund's row, and must hold nothing meanwhile that the other side wants.
        asking = asyncio.create_task(desk.ask(payment_id, 10, key="again"))

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


async def test_a_decision_writes_its_audit_entry_last_so_that_nobody_waits_for_it_with_money_locked(desk: Desk) -> None:
    payment_id = await desk.paid()
    refund = (await desk.ask(payment_id, 100)).data
    db = desk.town.gateway.db
    await db.execute("UPDATE refund SET attention = 'look', due_at = NULL")
    async with shop(desk.town.gateway, desk.town.base, scopes=(ADMIN,), is_configured=False) as admin:
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
