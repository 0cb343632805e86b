"""Status checks: what M-Pesa answers, late, twice, wrongly or never, moves the right payment once, or none."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.client_ip import read_networks
from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import INITIATED, Answer, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.verifier import CallbackVerifier
from tests.conftest import Town
from tests.daraja import Daraja, ack, fault, result, stk_callback
from tests.stored import change_credentials

CHECK = "/v1/payments/mpesa/check-status/"
RECEIPT = "TKN4A1B2C3"
PHONE = "254711000001"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Nothing is asked about but on demand."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
    }


@pytest.fixture
async def town(town: Town) -> Town:
    """The shop's credentials have an initiator."""
    assert (await town.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return town


async def asked(town: Town, amount: int = 500, key: str = "a", **more: Any) -> Any:
    """A payment whose prompt is on the phone."""
    return (await town.api.pay(PHONE, amount, key=key, **more)).data


async def call_back(town: Town, payment: Any, code: Any = 0, **said: Any) -> None:
    """M-Pesa's callback about a payment."""
    url = town.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    body = stk_callback(payment["provider_ref"], code, **said)
    assert (await town.api.call("POST", url.removeprefix(town.base), body)).status == 200


async def check(town: Town, what: str) -> Any:
    """Ask M-Pesa about it."""
    return (await town.api.call("POST", CHECK + what)).data


async def answer(town: Town, question: dict[str, Any], body: dict[str, Any], *, times_out: bool = False) -> Answer:
    """M-Pesa's answer to that question, where it wants it."""
    url: str = question["QueueTimeOutURL" if times_out else "ResultURL"]
    return await town.api.call("POST", url.removeprefix(town.base), body)


def says(status: str, **more: Any) -> dict[str, Any]:
    """An answer with this TransactionStatus, about KES 500 of our payer."""
    now = datetime.now(UTC).astimezone(EAT)
    values = {
        "ReceiptNo": RECEIPT,
        "TransactionStatus": status,
        "Amount": "500.00",
        "DebitPartyName": f"{PHONE} - JANE DOE",
        "CreditPartyName": "174379 - SHOP",
        "FinalisedTime": f"{now:%Y%m%d%H%M%S}",
    }
    return result(0, says={name: value for name, value in (values | more).items() if value is not None})


async def look(town: Town, payment: Any) -> Any:
    """The payment as it is."""
    return (await town.api.call("GET", f"/v1/payments/{payment['id']}")).data


async def found(town: Town, started: Any) -> tuple[str, str | None]:
    """The check's state, and what its answer meant."""
    one = (await town.api.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).data
    return one["state"], one["finding"]


async def told(town: Town, *kinds: str) -> None:
    """The shop has heard of exactly these events."""
    assert await town.told(len(kinds)) == sorted(kinds)


# -- asking -------------------------------------------------------------------------------------------------------


async def test_the_answer_is_daratjas_ack_and_what_is_sent_is_what_it_wants(town: Town, daraja: Daraja) -> None:
    daraja.say("transactionstatus", ack(7))
    started = await check(town, RECEIPT.lower())
    assert {name: started[name] for name in ("OriginatorConversationID", "ConversationID", "ResponseCode")} == {
        "OriginatorConversationID": "o-7",
        "ConversationID": "AG_7",
        "ResponseCode": "0",
    }
    assert started["ResponseDescription"]
    (sent,) = daraja.of("transactionstatus")
    assert "/v1/cb/status/" in sent.pop("ResultURL")
    assert "/v1/cb/status-timeout/" in sent.pop("QueueTimeOutURL")
    assert 2 <= len(sent.pop("Remarks")) <= 100
    assert sent == {
        "Initiator": "testapi",
        "SecurityCredential": INITIATED["mpesa"]["security_credential"],
        "CommandID": "TransactionStatusQuery",
        "TransactionID": RECEIPT,
        "PartyA": "174379",
        "IdentifierType": "4",
        "Occasion": "",
    }
    assert await found(town, started) == ("asked", None)


async def test_a_payment_without_a_receipt_is_asked_about_by_its_conversation(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    started = await check(town, payment["id"])
    assert started["payment_id"] == payment["id"]
    (sent,) = daraja.of("transactionstatus")
    handle = await town.gateway.db.fetchval("SELECT merchant_request_id FROM payment")
    assert (sent["OriginalConversationID"], sent.get("TransactionID")) == (handle, None)
    daraja.say("stkpush", (500, b"<html>"))
    lost = await asked(town, key="lost")
    refused = await town.api.call("POST", CHECK + lost["id"])
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    for nonsense, status in (("no", 422), ("pay_" + "0" * 26, 404), ("a%20b%20c%20d", 422)):
        assert (await town.api.call("POST", CHECK + nonsense)).status == status
    async with shop(town.gateway, town.base) as other:
        await other.call("PUT", "/v1/merchant/providers", INITIATED)
        assert (await other.call("POST", CHECK + payment["id"])).status == 404
        assert (await other.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).status == 404
    assert len(daraja.of("transactionstatus")) == 1


async def test_what_daraja_does_not_take_is_said_and_kept(town: Town, daraja: Daraja) -> None:
    for said, status, state in (
        (fault("500.003.02", "Spike Arrest"), 503, "unsent"),
        (fault("400.002.02", "Bad Request - Invalid Initiator", 400), 502, "refused"),
        (fault("500.003.1001", "Internal Server Error"), 503, "unknown"),
        ((200, {"ResponseCode": "1", "ResponseDescription": "no"}), 502, "refused"),
        ((200, b"<html>"), 503, "unknown"),
    ):
        daraja.say("transactionstatus", said)
        assert (await town.api.call("POST", CHECK + RECEIPT)).status == status, said
        row = await town.gateway.db.fetchval("SELECT state FROM status_check ORDER BY created_at DESC LIMIT 1")
        assert row == state, said
    await change_credentials(town.gateway, initiator=None, security_credential=None)
    refused = await town.api.call("POST", CHECK + RECEIPT)
    assert (refused.status, refused.error["field"]) == (422, "mpesa.initiator")


# -- what the answer means ----------------------------------------------------------------------------------------


STATUSES: tuple[tuple[str | None, str, str], ...] = (
    ("Completed", "completed", "recovered"),
    ("completed", "completed", "recovered"),
    ("Cancelled", "failed", "failed"),
    ("Declined", "failed", "failed"),
    ("Expired", "failed", "failed"),
    ("Failed", "failed", "failed"),
    ("Pending", "pending", "pending"),
    ("Authorized", "pending", "pending"),
    ("", "pending", "pending"),
    (None, "pending", "pending"),
    ("Reversed", "reversed", "reversed"),
)
"""What M-Pesa calls a transaction, what a pending payment becomes, and the check's finding."""


async def test_code_zero_says_that_the_question_was_answered_and_the_status_decides(town: Town, daraja: Daraja) -> None:
    for number, (status, after, finding) in enumerate(STATUSES):
        payment = await asked(town, key=f"k{number}")
        started = await check(town, payment["id"])
        said = says("x", TransactionStatus=status, ReceiptNo=f"TKN0000{number:03}")
        await answer(town, daraja.of("transactionstatus")[number], said)
        assert (await look(town, payment))["status"] == after, status
        assert await found(town, started) == ("answered", finding), status


async def test_money_that_did_move_completes_what_had_failed(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    await call_back(town, payment, 1037)
    started = await check(town, payment["id"])
    await answer(town, daraja.of("transactionstatus")[0], says("Completed"))
    after = await look(town, payment)
    assert (after["status"], after["receipt"], after["timeline"][-1]["cause"]) == ("completed", RECEIPT, "status_query")
    assert await found(town, started) == ("answered", "recovered")
    await told(town, "payment.failed", "payment.completed")


async def test_without_a_receipt_a_failed_payment_stays_failed_and_somebody_hears_of_it(
    town: Town, daraja: Daraja
) -> None:
    payment = await asked(town)
    await call_back(town, payment, 1037)
    started = await check(town, payment["id"])
    await answer(town, daraja.of("transactionstatus")[0], says("Completed", ReceiptNo=None))
    after = await look(town, payment)
    assert (after["status"], after["mismatch"]["of"]) == ("failed", "unconfirmed")
    assert await found(town, started) == ("answered", "mismatched")
    await told(town, "payment.failed", "payment.mismatched")


async def test_another_amount_or_another_receipt_is_held_and_told(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    await check(town, payment["id"])
    await answer(town, daraja.of("transactionstatus")[0], says("Completed", Amount="50.00"))
    after = await look(town, payment)
    assert (after["status"], after["mismatch"]["received_amount"]) == ("pending", "50.00")
    paid = await asked(town, key="paid")
    await call_back(town, paid, receipt="PAID000001")
    started = await check(town, "PAID000001")
    await answer(town, daraja.of("transactionstatus")[1], says("Completed", ReceiptNo="OTHER00001"))
    assert await found(town, started) == ("answered", "contradicted")
    assert (await look(town, paid))["receipt"] == "PAID000001"
    await told(town, "payment.mismatched", "payment.completed")


async def test_a_paid_payment_that_mpesa_calls_failed_stays_paid(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    await call_back(town, payment, receipt=RECEIPT)
    started = await check(town, RECEIPT)
    assert started["payment_id"] == payment["id"]
    await answer(town, daraja.of("transactionstatus")[0], says("Failed"))
    assert (await look(town, payment))["status"] == "completed"
    assert await found(town, started) == ("answered", "contradicted")
    await told(town, "payment.completed")


async def test_a_payer_who_is_named_twice_and_a_parameter_that_stands_alone_are_read(
    town: Town, daraja: Daraja
) -> None:
    payment = await asked(town)
    await check(town, payment["id"])
    parameters = [
        {"Key": "TransactionStatus", "Value": "Completed"},
        {"Key": "ReceiptNo", "Value": RECEIPT},
        {"Key": "Amount", "Value": 500},
        {"Key": "DebitPartyName", "Value": "174379 - SHOP"},
        {"Key": "DebitPartyName", "Value": f"{PHONE} - JANE DOE"},
        {"Key": "CreditPartyName", "Value": "174379 - SHOP"},
        {"Key": "FinalisedTime", "Value": int(f"{datetime.now(EAT):%Y%m%d%H%M%S}")},
        {"Key": "TransactionReason"},
    ]
    body = result(0)
    body["Result"] |= {"ResultParameters": {"ResultParameter": parameters}, "ReferenceData": {"ReferenceItem": []}}
    await answer(town, daraja.of("transactionstatus")[0], body)
    after = await look(town, payment)
    assert (after["status"], after["receipt"], after["mismatch"]) == ("completed", RECEIPT, None)
    alone = await asked(town, key="alone")
    started = await check(town, alone["id"])
    single = result("0")
    single["Result"]["ResultParameters"] = {"ResultParameter": {"Key": "TransactionStatus", "Value": "Completed"}}
    await answer(town, daraja.of("transactionstatus")[1], single)
    # The status is read, and states nothing that proves whose money it is.
    assert (await found(town, started), (await look(town, alone))["status"]) == (("answered", "ambiguous"), "pending")


LACKS: dict[str, dict[str, Any]] = {
    "no credit party": {"CreditPartyName": None},
    "no parties": {"CreditPartyName": None, "DebitPartyName": None},
    "a hidden payer": {"DebitPartyName": "SOMEBODY"},
    "a shop that paid": {"DebitPartyName": "555555 - OTHER SHOP"},
    "no amount": {"Amount": None},
    "no receipt": {"ReceiptNo": None},
    "no time": {"FinalisedTime": None},
}
DIFFERS: dict[str, dict[str, Any]] = {
    "another shop was paid": {"CreditPartyName": "555555 - OTHER SHOP"},
    "our shop paid": {"DebitPartyName": "174379 - SHOP", "CreditPartyName": f"{PHONE} - JANE DOE"},
    "another payer": {"DebitPartyName": "254799999999 - SOMEBODY ELSE"},
    "years ago": {"FinalisedTime": "20191219114550"},
    "years ahead": {"FinalisedTime": "20991219114550"},
    "an hour before the payment": {"FinalisedTime": f"{datetime.now(EAT) - timedelta(hours=1):%Y%m%d%H%M%S}"},
    "money that went out": {"Amount": "-500.00"},
}


@pytest.mark.parametrize("status", ["Completed", "Failed", "Reversed"])
async def test_answer_about_a_conversation_that_lacks_something_or_differs_changes_no_payment(
    town: Town, daraja: Daraja, status: str
) -> None:
    payment = await asked(town)
    for number, (name, more) in enumerate((LACKS | DIFFERS).items()):
        started = await check(town, payment["id"])
        is_lacking = name in LACKS
        if status == "Failed" and is_lacking:
            continue
        said = says(status, **{"ReceiptNo": f"STRANGE{number:03}"} | more)
        await answer(town, daraja.of("transactionstatus")[-1], said)
        after = await look(town, payment)
        assert (after["status"], after["receipt"], after["mismatch"]) == ("pending", None, None), name
        finding = "ambiguous" if is_lacking and status == "Completed" else "not_ours"
        assert await found(town, started) == ("answered", finding), name
    assert town.receiver.received == []
    # The true answer still counts.
    await check(town, payment["id"])
    await answer(town, daraja.of("transactionstatus")[-1], says("Completed"))
    assert (await look(town, payment))["receipt"] == RECEIPT


async def test_failure_by_an_answer_that_states_no_party_or_amount_is_not_final(town: Town, daraja: Daraja) -> None:
    cases: tuple[tuple[dict[str, Any], bool], ...] = (
        ({}, True),
        ({"CreditPartyName": None}, False),
        ({"Amount": None}, False),
    )
    for number, (more, is_final) in enumerate(cases):
        payment = await asked(town, key=f"k{number}")
        await check(town, payment["id"])
        await answer(town, daraja.of("transactionstatus")[-1], says("Failed", ReceiptNo=None, **more))
        row = await town.gateway.db.fetchrow("SELECT * FROM payment WHERE payment_id = $1", payment["id"])
        assert row is not None
        assert (row["status"], row["outcome_is_final"]) == ("failed", is_final), more


async def test_answer_about_a_receipt_that_does_not_state_it_completes_nothing_by_the_rule(
    town: Town, daraja: Daraja
) -> None:
    payment = await asked(town)
    started = await check(town, RECEIPT)
    await answer(town, daraja.of("transactionstatus")[-1], says("Completed", ReceiptNo=None))
    assert ((await look(town, payment))["status"], await found(town, started)) == ("pending", ("answered", "ambiguous"))


async def test_answers_about_a_paid_payment_that_name_other_money_reverse_nothing(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    await check(town, payment["id"])
    (by_conversation,) = daraja.of("transactionstatus")
    await call_back(town, payment, receipt=RECEIPT)
    await answer(town, by_conversation, says("Reversed", ReceiptNo="OTHER00001"))
    after = await look(town, payment)
    assert (after["status"], after["mismatch"]["of"]) == ("completed", "receipt")
    await check(town, RECEIPT)
    await answer(town, daraja.of("transactionstatus")[-1], says("Reversed", Amount="5.00"))
    assert (await look(town, payment))["status"] == "completed"
    assert await town.gateway.db.fetchval("SELECT count(*) FROM event WHERE kind = 'payment.reversed'") == 0


# -- not ours -----------------------------------------------------------------------------------------------------


async def test_a_receipt_that_is_not_ours_is_answered_and_changes_nothing(town: Town, daraja: Daraja) -> None:
    bystander = await asked(town, 700)
    for body, finding in (
        (says("Completed"), "not_ours"),
        (says("Failed"), "not_ours"),
        (result(2032, "The transaction does not exist"), "not_found"),
        (result(1, "error"), "unanswered"),
        (says("Completed", ReceiptNo="OTHER00001"), "contradicted"),
    ):
        started = await check(town, RECEIPT)
        assert started["payment_id"] is None
        await answer(town, daraja.of("transactionstatus")[-1], body)
        assert await found(town, started) == ("answered", finding)
    assert (await look(town, bystander))["status"] == "pending"
    assert town.receiver.received == []


async def test_a_receipt_that_fits_one_lost_payment_recovers_it_and_two_are_not_guessed_between(
    town: Town, daraja: Daraja
) -> None:
    payment = await asked(town)
    started = await check(town, RECEIPT)
    await answer(town, daraja.of("transactionstatus")[0], says("Completed"))
    assert (await look(town, payment))["receipt"] == RECEIPT
    assert await found(town, started) == ("answered", "recovered")
    twins = [await asked(town, 60, key=f"twin{number}") for number in range(2)]
    started = await check(town, "TWIN000001")
    await answer(town, daraja.of("transactionstatus")[1], says("Completed", ReceiptNo="TWIN000001", Amount="60"))
    assert await found(town, started) == ("answered", "ambiguous")
    for twin in twins:
        assert (await look(town, twin))["status"] == "pending"


async def test_receipt_of_a_success_that_was_held_unconfirmed_is_asked_about_and_completes_the_payment(
    town: Town, daraja: Daraja
) -> None:
    payment, other = await asked(town), await asked(town, key="b")
    await town.gateway.db.execute(
        "UPDATE payment SET mismatch = 'unconfirmed', received_amount = 500, due_at = NULL, "
        "received_receipt = CASE payment_id WHEN $1 THEN $2 ELSE 'OTHER00001' END",
        payment["id"],
        RECEIPT,
    )
    started = await check(town, RECEIPT)
    await answer(town, daraja.of("transactionstatus")[0], says("Completed"))
    assert await found(town, started) == ("answered", "recovered")
    after = await look(town, payment)
    assert (after["status"], after["receipt"]) == ("completed", RECEIPT)
    assert (await look(town, other))["status"] == "pending"


async def test_a_try_of_the_payers_that_came_to_nothing_does_not_fail_the_payment_that_it_resembles(
    town: Town, daraja: Daraja
) -> None:
    payment = await asked(town)
    started = await check(town, RECEIPT)
    await answer(town, daraja.of("transactionstatus")[0], says("Declined"))
    assert (await look(town, payment))["status"] == "pending"
    assert await found(town, started) == ("answered", "not_ours")


async def test_an_answer_to_another_question_or_of_another_merchant_is_refused(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    daraja.say("transactionstatus", ack(7))
    started = await check(town, payment["id"])
    (question,) = daraja.of("transactionstatus")
    strange = says("Completed")
    strange["Result"] |= {"OriginatorConversationID": "o-8", "ConversationID": "AG_8"}
    refused = await answer(town, question, strange)
    assert (refused.status, refused.error["code"]) == (403, "CALLBACK_REFUSED")
    # One id that fits is enough: Daraja has been seen to change the other.
    half = says("Completed")
    half["Result"] |= {"OriginatorConversationID": "o-8", "ConversationID": "AG_7"}
    assert (await answer(town, question, half)).status == 200
    assert (await look(town, payment))["status"] == "completed"
    assert await found(town, started) == ("answered", "recovered")


# -- late, early, never -------------------------------------------------------------------------------------------


async def test_an_intermediate_answer_a_timeout_and_a_late_answer(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    started = await check(town, payment["id"])
    (question,) = daraja.of("transactionstatus")
    early = says("Completed")
    early["Result"]["ResultType"] = 1
    await answer(town, question, early)
    assert (await look(town, payment))["status"] == "pending"
    assert await found(town, started) == ("asked", None)
    await answer(town, question, result(1, "timed out"), times_out=True)
    assert (await look(town, payment))["status"] == "pending"
    assert await found(town, started) == ("timed_out", None)
    await answer(town, question, says("Completed"))
    assert (await look(town, payment))["status"] == "completed"
    assert await found(town, started) == ("answered", "recovered")
    # A timeout after the answer is late, and nothing more.
    await answer(town, question, {"anything": True}, times_out=True)
    assert await found(town, started) == ("answered", "recovered")
    await told(town, "payment.completed")


async def test_answers_that_contradict_each_other_go_through_the_same_moves(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    await check(town, payment["id"])
    (question,) = daraja.of("transactionstatus")
    await answer(town, question, says("Failed"))
    assert (await look(town, payment))["status"] == "failed"
    for _ in range(3):
        await answer(town, question, says("Completed"))
    await answer(town, question, says("Cancelled"))
    after = await look(town, payment)
    assert (after["status"], after["receipt"]) == ("completed", RECEIPT)
    await told(town, "payment.failed", "payment.completed")


async def test_an_answer_may_come_before_the_ack_with_a_token_and_without(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    go = daraja.hold("transactionstatus")
    asking = asyncio.create_task(check(town, payment["id"]))
    (question,) = await daraja.asked_about("transactionstatus")
    await answer(town, question, says("Completed"))
    assert (await look(town, payment))["status"] == "completed"
    go.set()
    assert await found(town, await asking) == ("answered", "recovered")
    # Without a token: the specification's address, where only Daraja's ids say what it is about.
    url = f"{town.base}/v1/webhooks/mpesa/transactionstatus/result"
    await change_credentials(town.gateway, result_url=url)
    verifier: Any = town.gateway.services.get(CallbackVerifier)
    verifier._allowlist = (*verifier._allowlist, *read_networks(("127.0.0.0/8",), "test"))
    other = await asked(town, key="other")
    daraja.say("transactionstatus", ack(77))
    go = daraja.hold("transactionstatus")
    asking = asyncio.create_task(check(town, other["id"]))
    question = (await daraja.asked_about("transactionstatus", 2))[1]
    assert question["ResultURL"] == url
    body = says("Completed", ReceiptNo="OTHER00001")
    body["Result"] |= {"OriginatorConversationID": "o-77", "ConversationID": "AG_77"}
    assert (await answer(town, question, body)).status == 200
    assert (await look(town, other))["status"] == "pending"
    go.set()
    assert await found(town, await asking) == ("answered", "recovered")
    assert (await look(town, other))["status"] == "completed"


async def test_status_result_is_taken_at_every_result_address(town: Town, daraja: Daraja) -> None:
    verifier: Any = town.gateway.services.get(CallbackVerifier)
    verifier._allowlist = (*verifier._allowlist, *read_networks(("127.0.0.0/8",), "test"))
    specified = "/v1/webhooks/mpesa/reversal/"
    for number, path in enumerate(("{specified}result", "/v1/cb/reversal/{token}", "{specified}result/{token}")):
        payment = await asked(town, key=f"k{number}")
        daraja.say("transactionstatus", ack(70 + number))
        started = await check(town, payment["id"])
        token = daraja.of("transactionstatus")[-1]["ResultURL"].rpartition("/")[2]
        ids = {"OriginatorConversationID": f"o-{70 + number}", "ConversationID": f"AG_{70 + number}"}
        late = result(1)
        late["Result"] |= ids
        assert (await town.api.call("POST", f"{specified}timeout", late)).status == 200
        assert await found(town, started) == ("timed_out", None)
        said = says("Completed", ReceiptNo=f"OTHER0000{number}")
        said["Result"] |= ids
        # Its parameters without the object that is usual around them.
        said["Result"]["ResultParameters"] = said["Result"]["ResultParameters"]["ResultParameter"]
        where = path.format(specified=specified, token=token)
        assert (await town.api.call("POST", where, said)).status == 200
        assert await found(town, started) == ("answered", "recovered"), where
        assert (await look(town, payment))["status"] == "completed"


async def test_without_any_ids_nothing_can_be_known_and_nothing_is(town: Town, daraja: Daraja) -> None:
    """No token, no ids: an answer to nobody."""
    payment = await asked(town)
    daraja.say("transactionstatus", (200, {"ConversationID": "AG_1", "ResponseCode": "0"}))
    await check(town, payment["id"])
    verifier: Any = town.gateway.services.get(CallbackVerifier)
    verifier._allowlist = (*verifier._allowlist, *read_networks(("127.0.0.0/8",), "test"))
    path = "/v1/webhooks/mpesa/transactionstatus/result"
    assert (await town.api.call("POST", path, says("Completed"))).status == 200
    assert (await look(town, payment))["status"] == "pending"
    one = says("Completed")
    one["Result"]["ConversationID"] = "AG_1"
    assert (await town.api.call("POST", path, one)).status == 200
    assert (await look(town, payment))["status"] == "completed"
