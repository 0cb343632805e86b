"""Protects status queries: each answer, late, repeated or contradictory, changes the right payment once, or none."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import INITIATED, Answer, shop
from mpesa_gateway_callbacks.api import Callbacks
from tests.conftest import Harness
from tests.daraja import Daraja, ack, fault, list_loopback, result, stk_callback
from tests.stored import change_credentials

CHECK = "/v1/payments/mpesa/check-status/"
RECEIPT = "TKN4A1B2C3"
PHONE = "254711000001"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """STK queries are sent on demand only."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
    }


@pytest.fixture
async def harness(harness: Harness) -> Harness:
    """The shop's credentials have an initiator."""
    assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return harness


async def create_payment(harness: Harness, amount: int = 500, key: str = "a", **more: Any) -> Any:
    """Create a payment whose prompt was acknowledged."""
    return (await harness.api.pay(PHONE, amount, key=key, **more)).data


async def call_back(harness: Harness, payment: Any, code: Any = 0, **fields: Any) -> None:
    """Post a callback to the payment's own address."""
    url = harness.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    body = stk_callback(payment["provider_ref"], code, **fields)
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200


async def query_status(harness: Harness, what: str) -> Any:
    """Send a status query about a payment or a receipt."""
    return (await harness.api.call("POST", CHECK + what)).data


async def post_result(
    harness: Harness, question: dict[str, Any], body: dict[str, Any], *, times_out: bool = False
) -> Answer:
    """Post M-Pesa's result to the address of that status query."""
    url: str = question["QueueTimeOutURL" if times_out else "ResultURL"]
    return await harness.api.call("POST", url.removeprefix(harness.base), body)


def status_result(status: str, **more: Any) -> dict[str, Any]:
    """A result with this TransactionStatus, about KES 500 of the payer."""
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


async def get_payment(harness: Harness, payment: Any) -> Any:
    return (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data


async def state_and_finding(harness: Harness, started: Any) -> tuple[str, str | None]:
    """The status query's state and finding."""
    one = (await harness.api.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).data
    return one["state"], one["finding"]


async def await_events(harness: Harness, *kinds: str) -> None:
    """Wait until the shop has received exactly these events."""
    assert await harness.delivered(len(kinds)) == sorted(kinds)


# -- the request ----------------------------------------------------------------------------------------------------


async def test_status_query_sends_darajas_fields_and_returns_its_acknowledgement(
    harness: Harness, daraja: Daraja
) -> None:
    daraja.add_answers("transactionstatus", ack(7))
    started = await query_status(harness, RECEIPT.lower())
    assert {name: started[name] for name in ("OriginatorConversationID", "ConversationID", "ResponseCode")} == {
        "OriginatorConversationID": "o-7",
        "ConversationID": "AG_7",
        "ResponseCode": "0",
    }
    assert started["ResponseDescription"]
    (sent,) = daraja.requests_of("transactionstatus")
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
    assert await state_and_finding(harness, started) == ("asked", None)


async def test_status_query_without_receipt_names_the_conversation_of_the_push(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness)
    started = await query_status(harness, payment["id"])
    assert started["payment_id"] == payment["id"]
    (sent,) = daraja.requests_of("transactionstatus")
    handle = await harness.gateway.db.fetchval("SELECT merchant_request_id FROM payment")
    assert (sent["OriginalConversationID"], sent.get("TransactionID")) == (handle, None)
    daraja.add_answers("stkpush", (500, b"<html>"))
    lost = await create_payment(harness, key="lost")
    refused = await harness.api.call("POST", CHECK + lost["id"])
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    for nonsense, status in (("no", 422), ("pay_" + "0" * 26, 404), ("a%20b%20c%20d", 422)):
        assert (await harness.api.call("POST", CHECK + nonsense)).status == status
    async with shop(harness.gateway, harness.base) as other:
        await other.call("PUT", "/v1/merchant/providers", INITIATED)
        assert (await other.call("POST", CHECK + payment["id"])).status == 404
        assert (await other.call("GET", f"/v1/payments/mpesa/checks/{started['check_id']}")).status == 404
    assert len(daraja.requests_of("transactionstatus")) == 1


async def test_status_query_refused_by_daraja_is_reported_and_stored(harness: Harness, daraja: Daraja) -> None:
    for reply, status, state in (
        (fault("500.003.02", "Spike Arrest"), 503, "unsent"),
        (fault("400.002.02", "Bad Request - Invalid Initiator", 400), 502, "refused"),
        (fault("500.003.1001", "Internal Server Error"), 503, "unknown"),
        ((200, {"ResponseCode": "1", "ResponseDescription": "no"}), 502, "refused"),
        ((200, b"<html>"), 503, "unknown"),
    ):
        daraja.add_answers("transactionstatus", reply)
        assert (await harness.api.call("POST", CHECK + RECEIPT)).status == status, reply
        row = await harness.gateway.db.fetchval("SELECT state FROM status_check ORDER BY created_at DESC LIMIT 1")
        assert row == state, reply
    await change_credentials(harness.gateway, initiator=None, security_credential=None)
    refused = await harness.api.call("POST", CHECK + RECEIPT)
    assert (refused.status, refused.error["field"]) == (422, "mpesa.initiator")


# -- the result -----------------------------------------------------------------------------------------------------


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
"""M-Pesa's TransactionStatus, the status of a pending payment after it, and the finding."""


async def test_status_result_of_code_zero_is_decided_by_transaction_status(harness: Harness, daraja: Daraja) -> None:
    for number, (status, after, finding) in enumerate(STATUSES):
        payment = await create_payment(harness, key=f"k{number}")
        started = await query_status(harness, payment["id"])
        body = status_result("x", TransactionStatus=status, ReceiptNo=f"TKN0000{number:03}")
        await post_result(harness, daraja.requests_of("transactionstatus")[number], body)
        assert (await get_payment(harness, payment))["status"] == after, status
        assert await state_and_finding(harness, started) == ("answered", finding), status


async def test_status_result_completed_completes_a_failed_payment(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, 1037)
    started = await query_status(harness, payment["id"])
    await post_result(harness, daraja.requests_of("transactionstatus")[0], status_result("Completed"))
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"], after["timeline"][-1]["cause"]) == ("completed", RECEIPT, "status_query")
    assert await state_and_finding(harness, started) == ("answered", "recovered")
    await await_events(harness, "payment.failed", "payment.completed")


async def test_status_result_without_receipt_of_a_failed_payment_is_a_mismatch(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, 1037)
    started = await query_status(harness, payment["id"])
    await post_result(harness, daraja.requests_of("transactionstatus")[0], status_result("Completed", ReceiptNo=None))
    after = await get_payment(harness, payment)
    assert (after["status"], after["mismatch"]["of"]) == ("failed", "unconfirmed")
    assert await state_and_finding(harness, started) == ("answered", "mismatched")
    await await_events(harness, "payment.failed", "payment.mismatched")


async def test_status_result_with_other_amount_or_receipt_is_a_mismatch(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await query_status(harness, payment["id"])
    await post_result(harness, daraja.requests_of("transactionstatus")[0], status_result("Completed", Amount="50.00"))
    after = await get_payment(harness, payment)
    assert (after["status"], after["mismatch"]["received_amount"]) == ("pending", "50.00")
    paid = await create_payment(harness, key="paid")
    await call_back(harness, paid, receipt="PAID000001")
    started = await query_status(harness, "PAID000001")
    await post_result(
        harness, daraja.requests_of("transactionstatus")[1], status_result("Completed", ReceiptNo="OTHER00001")
    )
    assert await state_and_finding(harness, started) == ("answered", "contradicted")
    assert (await get_payment(harness, paid))["receipt"] == "PAID000001"
    await await_events(harness, "payment.mismatched", "payment.completed")


async def test_status_result_failed_leaves_a_completed_payment_completed(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, receipt=RECEIPT)
    started = await query_status(harness, RECEIPT)
    assert started["payment_id"] == payment["id"]
    await post_result(harness, daraja.requests_of("transactionstatus")[0], status_result("Failed"))
    assert (await get_payment(harness, payment))["status"] == "completed"
    assert await state_and_finding(harness, started) == ("answered", "contradicted")
    await await_events(harness, "payment.completed")


async def test_status_result_with_repeated_or_single_parameter_is_read(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await query_status(harness, payment["id"])
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
    await post_result(harness, daraja.requests_of("transactionstatus")[0], body)
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"], after["mismatch"]) == ("completed", RECEIPT, None)
    alone = await create_payment(harness, key="alone")
    started = await query_status(harness, alone["id"])
    single = result("0")
    single["Result"]["ResultParameters"] = {"ResultParameter": {"Key": "TransactionStatus", "Value": "Completed"}}
    await post_result(harness, daraja.requests_of("transactionstatus")[1], single)
    # The status is read, but does not prove that the money is this payment's.
    assert (await state_and_finding(harness, started), (await get_payment(harness, alone))["status"]) == (
        ("answered", "ambiguous"),
        "pending",
    )


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
async def test_status_result_incomplete_or_different_changes_no_payment(
    harness: Harness, daraja: Daraja, status: str
) -> None:
    payment = await create_payment(harness)
    for number, (name, more) in enumerate((LACKS | DIFFERS).items()):
        started = await query_status(harness, payment["id"])
        is_lacking = name in LACKS
        if status == "Failed" and is_lacking:
            continue
        body = status_result(status, **{"ReceiptNo": f"STRANGE{number:03}"} | more)
        await post_result(harness, daraja.requests_of("transactionstatus")[-1], body)
        after = await get_payment(harness, payment)
        assert (after["status"], after["receipt"], after["mismatch"]) == ("pending", None, None), name
        finding = "ambiguous" if is_lacking and status == "Completed" else "not_ours"
        assert await state_and_finding(harness, started) == ("answered", finding), name
    assert harness.receiver.received == []
    # The true result still counts.
    await query_status(harness, payment["id"])
    await post_result(harness, daraja.requests_of("transactionstatus")[-1], status_result("Completed"))
    assert (await get_payment(harness, payment))["receipt"] == RECEIPT


async def test_status_result_failed_without_party_or_amount_is_not_final(harness: Harness, daraja: Daraja) -> None:
    cases: tuple[tuple[dict[str, Any], bool], ...] = (
        ({}, True),
        ({"CreditPartyName": None}, False),
        ({"Amount": None}, False),
    )
    for number, (more, is_final) in enumerate(cases):
        payment = await create_payment(harness, key=f"k{number}")
        await query_status(harness, payment["id"])
        await post_result(
            harness, daraja.requests_of("transactionstatus")[-1], status_result("Failed", ReceiptNo=None, **more)
        )
        row = await harness.gateway.db.fetchrow("SELECT * FROM payment WHERE payment_id = $1", payment["id"])
        assert row is not None
        assert (row["status"], row["outcome_is_final"]) == ("failed", is_final), more


async def test_status_result_without_its_receipt_is_ambiguous(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    started = await query_status(harness, RECEIPT)
    await post_result(harness, daraja.requests_of("transactionstatus")[-1], status_result("Completed", ReceiptNo=None))
    assert ((await get_payment(harness, payment))["status"], await state_and_finding(harness, started)) == (
        "pending",
        ("answered", "ambiguous"),
    )


async def test_status_result_reversed_of_other_money_reverses_no_payment(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await query_status(harness, payment["id"])
    (by_conversation,) = daraja.requests_of("transactionstatus")
    await call_back(harness, payment, receipt=RECEIPT)
    await post_result(harness, by_conversation, status_result("Reversed", ReceiptNo="OTHER00001"))
    after = await get_payment(harness, payment)
    assert (after["status"], after["mismatch"]["of"]) == ("completed", "receipt")
    await query_status(harness, RECEIPT)
    await post_result(harness, daraja.requests_of("transactionstatus")[-1], status_result("Reversed", Amount="5.00"))
    assert (await get_payment(harness, payment))["status"] == "completed"
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM event WHERE kind = 'payment.reversed'") == 0


# -- receipts of other transactions ---------------------------------------------------------------------------------


async def test_status_result_of_an_unknown_receipt_changes_no_payment(harness: Harness, daraja: Daraja) -> None:
    bystander = await create_payment(harness, 700)
    for body, finding in (
        (status_result("Completed"), "not_ours"),
        (status_result("Failed"), "not_ours"),
        (result(2032, "The transaction does not exist"), "not_found"),
        (result(1, "error"), "unanswered"),
        (status_result("Completed", ReceiptNo="OTHER00001"), "contradicted"),
    ):
        started = await query_status(harness, RECEIPT)
        assert started["payment_id"] is None
        await post_result(harness, daraja.requests_of("transactionstatus")[-1], body)
        assert await state_and_finding(harness, started) == ("answered", finding)
    assert (await get_payment(harness, bystander))["status"] == "pending"
    assert await harness.delivered(1) == ["transaction.received"]


async def test_status_result_fitting_one_payment_recovers_it_and_two_is_ambiguous(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness)
    started = await query_status(harness, RECEIPT)
    await post_result(harness, daraja.requests_of("transactionstatus")[0], status_result("Completed"))
    assert (await get_payment(harness, payment))["receipt"] == RECEIPT
    assert await state_and_finding(harness, started) == ("answered", "recovered")
    twins = [await create_payment(harness, 60, key=f"twin{number}") for number in range(2)]
    started = await query_status(harness, "TWIN000001")
    await post_result(
        harness,
        daraja.requests_of("transactionstatus")[1],
        status_result("Completed", ReceiptNo="TWIN000001", Amount="60"),
    )
    assert await state_and_finding(harness, started) == ("answered", "ambiguous")
    for twin in twins:
        assert (await get_payment(harness, twin))["status"] == "pending"


async def test_status_result_of_an_unconfirmed_receipt_completes_its_payment(harness: Harness, daraja: Daraja) -> None:
    payment, other = await create_payment(harness), await create_payment(harness, key="b")
    await harness.gateway.db.execute(
        "UPDATE payment SET mismatch = 'unconfirmed', received_amount = 500, due_at = NULL, "
        "received_receipt = CASE payment_id WHEN $1 THEN $2 ELSE 'OTHER00001' END",
        payment["id"],
        RECEIPT,
    )
    started = await query_status(harness, RECEIPT)
    await post_result(harness, daraja.requests_of("transactionstatus")[0], status_result("Completed"))
    assert await state_and_finding(harness, started) == ("answered", "recovered")
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"]) == ("completed", RECEIPT)
    assert (await get_payment(harness, other))["status"] == "pending"


async def test_status_result_declined_by_receipt_fails_no_similar_payment(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    started = await query_status(harness, RECEIPT)
    await post_result(harness, daraja.requests_of("transactionstatus")[0], status_result("Declined"))
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert await state_and_finding(harness, started) == ("answered", "not_ours")


async def test_status_result_with_ids_of_another_query_is_refused(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    daraja.add_answers("transactionstatus", ack(7))
    started = await query_status(harness, payment["id"])
    (question,) = daraja.requests_of("transactionstatus")
    other = status_result("Completed")
    other["Result"] |= {"OriginatorConversationID": "o-8", "ConversationID": "AG_8"}
    refused = await post_result(harness, question, other)
    assert (refused.status, refused.error["code"]) == (403, "CALLBACK_REFUSED")
    # One matching id is enough: Daraja sometimes changes the other.
    half = status_result("Completed")
    half["Result"] |= {"OriginatorConversationID": "o-8", "ConversationID": "AG_7"}
    assert (await post_result(harness, question, half)).status == 200
    assert (await get_payment(harness, payment))["status"] == "completed"
    assert await state_and_finding(harness, started) == ("answered", "recovered")


# -- late, early and missing results --------------------------------------------------------------------------------


async def test_status_result_after_intermediate_and_timeout_still_counts(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    started = await query_status(harness, payment["id"])
    (question,) = daraja.requests_of("transactionstatus")
    early = status_result("Completed")
    early["Result"]["ResultType"] = 1
    await post_result(harness, question, early)
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert await state_and_finding(harness, started) == ("asked", None)
    await post_result(harness, question, result(1, "timed out"), times_out=True)
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert await state_and_finding(harness, started) == ("timed_out", None)
    await post_result(harness, question, status_result("Completed"))
    assert (await get_payment(harness, payment))["status"] == "completed"
    assert await state_and_finding(harness, started) == ("answered", "recovered")
    # A timeout after the result changes nothing.
    await post_result(harness, question, {"anything": True}, times_out=True)
    assert await state_and_finding(harness, started) == ("answered", "recovered")
    await await_events(harness, "payment.completed")


async def test_status_result_contradicting_earlier_ones_follows_the_allowed_moves(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness)
    await query_status(harness, payment["id"])
    (question,) = daraja.requests_of("transactionstatus")
    await post_result(harness, question, status_result("Failed"))
    assert (await get_payment(harness, payment))["status"] == "failed"
    for _ in range(3):
        await post_result(harness, question, status_result("Completed"))
    await post_result(harness, question, status_result("Cancelled"))
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"]) == ("completed", RECEIPT)
    await await_events(harness, "payment.failed", "payment.completed")


async def test_status_result_before_the_acknowledgement_counts_with_and_without_token(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness)
    go = daraja.hold("transactionstatus")
    asking = asyncio.create_task(query_status(harness, payment["id"]))
    (question,) = await daraja.wait_for_requests("transactionstatus")
    await post_result(harness, question, status_result("Completed"))
    assert (await get_payment(harness, payment))["status"] == "completed"
    go.set()
    assert await state_and_finding(harness, await asking) == ("answered", "recovered")
    # Without a token: the address of the specification, where only Daraja's ids identify the query.
    url = f"{harness.base}/v1/webhooks/mpesa/transactionstatus/result"
    await change_credentials(harness.gateway, result_url=url)
    list_loopback(harness.gateway)
    other = await create_payment(harness, key="other")
    daraja.add_answers("transactionstatus", ack(77))
    go = daraja.hold("transactionstatus")
    asking = asyncio.create_task(query_status(harness, other["id"]))
    question = (await daraja.wait_for_requests("transactionstatus", 2))[1]
    assert question["ResultURL"] == url
    body = status_result("Completed", ReceiptNo="OTHER00001")
    body["Result"] |= {"OriginatorConversationID": "o-77", "ConversationID": "AG_77"}
    assert (await post_result(harness, question, body)).status == 200
    assert (await get_payment(harness, other))["status"] == "pending"
    go.set()
    assert await state_and_finding(harness, await asking) == ("answered", "recovered")
    assert (await get_payment(harness, other))["status"] == "completed"


async def test_status_result_counts_at_every_result_address(harness: Harness, daraja: Daraja) -> None:
    list_loopback(harness.gateway)
    specified = "/v1/webhooks/mpesa/reversal/"
    for number, path in enumerate(("{specified}result", "/v1/cb/reversal/{token}", "{specified}result/{token}")):
        payment = await create_payment(harness, key=f"k{number}")
        daraja.add_answers("transactionstatus", ack(70 + number))
        started = await query_status(harness, payment["id"])
        token = daraja.requests_of("transactionstatus")[-1]["ResultURL"].rpartition("/")[2]
        ids = {"OriginatorConversationID": f"o-{70 + number}", "ConversationID": f"AG_{70 + number}"}
        late = result(1)
        late["Result"] |= ids
        assert (await harness.api.call("POST", f"{specified}timeout", late)).status == 200
        assert await state_and_finding(harness, started) == ("timed_out", None)
        body = status_result("Completed", ReceiptNo=f"OTHER0000{number}")
        body["Result"] |= ids
        # Parameters without the object that usually contains them.
        body["Result"]["ResultParameters"] = body["Result"]["ResultParameters"]["ResultParameter"]
        address = path.format(specified=specified, token=token)
        assert (await harness.api.call("POST", address, body)).status == 200
        assert await state_and_finding(harness, started) == ("answered", "recovered"), address
        assert (await get_payment(harness, payment))["status"] == "completed"


async def test_status_result_without_token_and_ids_changes_nothing(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    daraja.add_answers("transactionstatus", (200, {"ConversationID": "AG_1", "ResponseCode": "0"}))
    await query_status(harness, payment["id"])
    list_loopback(harness.gateway)
    path = "/v1/webhooks/mpesa/transactionstatus/result"
    assert (await harness.api.call("POST", path, status_result("Completed"))).status == 200
    assert (await get_payment(harness, payment))["status"] == "pending"
    one = status_result("Completed")
    one["Result"]["ConversationID"] = "AG_1"
    assert (await harness.api.call("POST", path, one)).status == 200
    assert (await get_payment(harness, payment))["status"] == "completed"
