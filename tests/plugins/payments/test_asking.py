"""Daraja is asked about what no callback has ended; whatever it says, late, twice or wrongly, moves money once."""

import asyncio
from base64 import b64decode
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import SetClock
from mpesa_gateway.testing.serving import INITIATED, Answer, Api, eventually
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_payments.stk_queries import StkQueries
from tests.conftest import Town
from tests.daraja import PROCESSING, Daraja, Said, fault, stk_callback, stk_result
from tests.stored import WIPE, move_to

PHONE = "254711000001"


@pytest.fixture
def confirm() -> str:
    """Which successes are confirmed before they count."""
    return "never"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja, confirm: str) -> dict[str, Any]:
    """Nothing is asked about but on demand."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200, "confirm": confirm},
    }


@pytest.fixture
def stopped_clock(town: Town, monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """The gateway's time, which stands from now on: a rest of seconds lasts until the test moves it."""
    clock = SetClock(town.gateway.clock.now())
    monkeypatch.setattr(town.gateway.clock, "now", clock.now)
    return clock


async def asked(town: Town, key: str = "a", **more: Any) -> Any:
    """A payment of KES 500 whose prompt is on the phone."""
    return (await town.api.pay(PHONE, 500, key=key, **more)).data


async def call_back(town: Town, payment: Any, code: Any = 0, **said: Any) -> Answer:
    """Post a callback about this payment to its own address."""
    url = town.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    handle = said.pop("handle", payment["provider_ref"])
    return await town.api.call("POST", url.removeprefix(town.base), stk_callback(handle, code, **said))


async def query(town: Town, payment: Any) -> Any:
    """Ask M-Pesa now, as the merchant does; gives the payment."""
    return (await town.api.call("POST", f"/v1/payments/{payment['id']}/query")).data


async def look(town: Town, payment: Any) -> Any:
    """The payment as it is."""
    return (await town.api.call("GET", f"/v1/payments/{payment['id']}")).data


async def told(town: Town, count: int) -> list[str]:
    """The events that the shop has heard of, once there are so many and no more are owed."""
    return await town.told(count)


# -- what the query says ------------------------------------------------------------------------------------------


NO_END: tuple[Said, ...] = (
    PROCESSING,
    (200, {"errorCode": "500.001.1001", "errorMessage": "The transaction is being processed"}),
    (200, {"ResponseCode": "0", "ResultCode": "4999", "ResultDesc": "The transaction is still under processing"}),
    (200, {"ResponseCode": "0", "ResultCode": 4999, "ResultDesc": ""}),
    (200, {"ResponseCode": "0", "ResultCode": "1", "ResultDesc": "The transaction is still under processing"}),
    fault("500.001.1001", "The transaction does not exist"),
    fault("500.003.1001", "Internal Server Error"),
    fault("500.001.1001", "Wrong credentials"),
    (503, b""),
    (200, b"<html>We are improving our services</html>"),
    (200, {"ResponseCode": "0"}),
    (200, []),
    (200, {"ResultCode": None}),
    (200, {"ResultCode": {"a": 1}}),
    # A success that names no push, another one, or contradicts itself.
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": None}),
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": ""}),
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": ["ws_CO_1"]}),
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": "ws_CO_OTHER"}),
    (200, {"ResponseCode": "1", "ResultCode": "0"}),
)
"""Answers to the question how a push stands that say neither yes nor no."""


async def test_what_is_no_end_leaves_a_payment_pending_and_it_is_asked_about_again(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    for answer in NO_END:
        daraja.say("stkquery", answer)
        after = await query(town, payment)
        assert (after["status"], after["failure_reason"]) == ("pending", None), answer
        assert await town.gateway.db.fetchval("SELECT due_at > now() AND due_at < expires_at FROM payment"), answer
    assert len(daraja.of("stkquery")) == len(NO_END)
    daraja.say("stkquery", stk_result("1032"))
    assert (await query(town, payment))["failure_reason"] == "cancelled_by_user"


NOT_PUT: tuple[tuple[Said, ...], ...] = (
    (fault("500.003.02", "Error Occurred: Spike Arrest Violation"),),
    (fault("500.003.03", "Error Occurred: Quota Violation"),),
    (fault("404.001.03", "Invalid Access Token", 404), fault("404.001.03", "Invalid Access Token", 404)),
)
"""Answers that say that the question was not even taken."""


@pytest.mark.parametrize("answers", NOT_PUT)
async def test_a_question_that_daraja_does_not_take_is_put_again_soon_and_not_at_once(
    town: Town, daraja: Daraja, stopped_clock: SetClock, answers: tuple[Said, ...]
) -> None:
    payment = await asked(town)
    daraja.say("stkquery", *answers)
    assert (await query(town, payment))["status"] == "pending"
    wait = await town.gateway.db.fetchval("SELECT due_at FROM payment") - stopped_clock.now()
    assert timedelta(seconds=5) <= wait <= timedelta(seconds=60), wait
    # While Daraja rests no question of this merchant is put, whoever wants it.
    assert await town.gateway.services.get(StkQueries).ask(payment["id"], is_forced=True)
    assert (await query(town, payment))["status"] == "pending"
    assert len(daraja.of("stkquery")) == len(answers)
    stopped_clock.advance(wait)
    assert await town.gateway.services.get(StkQueries).ask(payment["id"], is_forced=True)
    assert len(daraja.of("stkquery")) == len(answers) + 1


async def test_does_not_exist_is_young_ignorance_until_the_window_has_passed(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    for _ in range(3):
        daraja.say("stkquery", fault("500.001.1001", "The transaction does not exist"))
        assert (await query(town, payment))["status"] == "pending"
    await town.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
    daraja.say("stkquery", fault("500.001.1001", "The transaction does not exist"))
    await town.gateway.services.get(StkQueries).ask(payment["id"], is_forced=True)
    ended = await look(town, payment)
    assert (ended["status"], ended["failure_reason"], ended["timeline"][-1]["kind"]) == ("failed", "expired", "expired")
    assert await told(town, 1) == ["payment.failed"]


async def test_ask_schedules_the_last_question_before_the_end_of_the_window(town: Town) -> None:
    payment = await asked(town)
    await town.gateway.db.execute("UPDATE payment SET expires_at = now() + interval '200 seconds'")
    await query(town, payment)
    before = await town.gateway.db.fetchval("SELECT expires_at - due_at FROM payment")
    assert timedelta(seconds=10) < before < timedelta(seconds=60)


async def test_a_question_is_put_with_the_payments_own_shortcode_and_its_newest_credentials(
    town: Town, daraja: Daraja
) -> None:
    payment = await asked(town)
    newer = INITIATED["mpesa"] | {"passkey": "a-newer-passkey-of-the-same-shortcode"}
    await town.api.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": newer})
    assert await move_to(town.api, "600001") == {"payments": 1, "refunds": 0}
    assert await town.gateway.services.get(StkQueries).ask(payment["id"], is_forced=True)
    (sent,) = daraja.of("stkquery")
    assert sent["BusinessShortCode"] == "174379"
    signed = f"174379{newer['passkey']}{sent['Timestamp']}"
    assert b64decode(sent["Password"]).decode() == signed


async def test_credentials_that_were_erased_ask_nothing(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    await town.gateway.db.execute(WIPE)
    assert await town.gateway.services.get(StkQueries).ask(payment["id"], is_forced=True)
    assert (await look(town, payment))["status"] == "pending"
    assert daraja.of("stkquery") == []


# -- contradictions -----------------------------------------------------------------------------------------------


async def test_cancelled_says_the_query_and_then_a_receipt_comes(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    daraja.say("stkquery", stk_result("1032"))
    assert (await query(town, payment))["status"] == "failed"
    await call_back(town, payment, 0)
    after = await look(town, payment)
    assert (after["status"], after["receipt"], after["failure_reason"]) == ("completed", "TKN4A1B2C3", None)
    assert await told(town, 2) == ["payment.completed", "payment.failed"]


async def test_a_query_that_was_overtaken_by_the_callback_changes_nothing(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    daraja.say("stkquery", stk_result("1037"))
    go = daraja.hold("stkquery")
    asking = asyncio.create_task(query(town, payment))
    await daraja.asked_about("stkquery")
    await call_back(town, payment, 0)
    go.set()
    assert (await asking)["status"] == "completed"
    assert await told(town, 1) == ["payment.completed"]


# -- confirmation -------------------------------------------------------------------------------------------------


REPORTS: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"receipt": "FIT0000001", "phone": 254711000001}, True),
    ({"receipt": "FIT0000002", "amount": "500.00", "phone": "2547****001"}, True),
    ({"receipt": None, "phone": 254711000001}, False),
    ({"receipt": "UNFIT00001", "phone": 254799999999}, False),
    ({"has_metadata": False}, False),
)
"""Reported successes of a payment of KES 500, and whether they say all that was asked for."""


@pytest.mark.parametrize("confirm", ["never", "mismatch", "always"])
async def test_which_successes_are_confirmed_before_they_count(town: Town, daraja: Daraja, confirm: str) -> None:
    queries = town.gateway.services.get(StkQueries)
    for number, (said, fits) in enumerate(REPORTS):
        # The sweep may come by at any moment: its question waits as well.
        go = daraja.hold("stkquery")
        payment = await asked(town, key=f"k{number}")
        assert (await call_back(town, payment, 0, **said)).status == 200
        after = await look(town, payment)
        if confirm == "always" or (confirm == "mismatch" and not fits):
            assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "confirming"), said
            daraja.say("stkquery", stk_result("0"))
            go.set()
            # It is due at once; here we do not wait for the sweep that finds it.
            await queries.ask(payment["id"])
            after = await town.api.settled(payment["id"], "completed")
        assert (after["status"], after["receipt"]) == ("completed", said.get("receipt")), said
        assert after["timeline"][-1]["cause"] == "callback"
    expected = {"never": 0, "mismatch": 3, "always": 5}[confirm]
    assert len(daraja.of("stkquery")) == expected


@pytest.mark.parametrize("confirm", ["never"])
@pytest.mark.parametrize(("code", "status"), [("0", "completed"), ("1032", "failed")])
async def test_a_success_whose_receipt_cannot_be_read_counts_once_mpesa_confirms_it(
    town: Town, daraja: Daraja, code: str, status: str
) -> None:
    go = daraja.hold("stkquery")
    payment = await asked(town)
    await call_back(town, payment, 0, receipt="TKN-\u200b4A1B2C3", phone=254711000001)
    assert (await look(town, payment))["status"] == "pending"
    daraja.say("stkquery", stk_result(code))
    go.set()
    await town.gateway.services.get(StkQueries).ask(payment["id"])
    after = await town.api.settled(payment["id"], status)
    assert (after["status"], after["receipt"]) == (status, None)


@pytest.mark.parametrize("confirm", ["always"])
async def test_a_success_that_mpesa_denies_moves_nothing(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    daraja.say("stkquery", stk_result("1032", "Request cancelled by user"))
    await call_back(town, payment, 0)
    after = await town.api.settled(payment["id"], "failed")
    assert (after["receipt"], after["failure_reason"]) == (None, "cancelled_by_user")
    assert [step["kind"] for step in after["timeline"]][-3:] == ["confirming", "unconfirmed", "failed"]


@pytest.mark.parametrize("confirm", ["always"])
async def test_a_success_that_mpesa_neither_confirms_nor_denies_waits_for_a_person_and_so_does_the_next(
    town: Town,
) -> None:
    payment = await asked(town)
    await call_back(town, payment, 0)
    await town.gateway.db.execute("UPDATE payment SET expires_at = now()")
    await town.gateway.services.get(StkQueries).ask(payment["id"], is_forced=True)

    async def is_held() -> Any:
        return (await look(town, payment))["mismatch"]

    assert (await eventually(is_held))["of"] == "unconfirmed"
    assert (await look(town, payment))["status"] == "pending"
    await call_back(town, payment, 0, receipt="SECOND0001")
    after = await look(town, payment)
    assert (after["status"], after["receipt"]) == ("pending", None)
    assert await told(town, 2) == ["payment.mismatched", "payment.mismatched"]


@pytest.mark.parametrize("confirm", ["always"])
async def test_a_success_that_nobody_can_be_asked_about_waits_for_a_person(town: Town, daraja: Daraja) -> None:
    daraja.say("stkpush", (500, b"<html>"))
    payment = await asked(town)
    assert payment["provider_ref"] is None
    await call_back(town, payment, 0, handle=None)
    after = await look(town, payment)
    assert (after["status"], after["mismatch"]["of"]) == ("pending", "unconfirmed")
    assert await told(town, 1) == ["payment.mismatched"]


@pytest.mark.parametrize("confirm", ["always"])
async def test_a_forged_success_does_not_swallow_the_true_one(town: Town, daraja: Daraja) -> None:
    go = daraja.hold("stkquery")
    payment = await asked(town)
    await call_back(town, payment, 0, receipt="FORGED0001")
    await call_back(town, payment, 0, receipt="TRUE000001")
    daraja.say("stkquery", stk_result("0"))
    go.set()
    await town.api.settled(payment["id"], "completed")
    # The first was confirmed; the second is offered again and told, since one charge has one receipt.
    await town.gateway.db.execute("UPDATE callback SET due_at = now() WHERE verdict = 'waiting'")
    await town.gateway.services.get(CallbackDispatcher).sweep()
    after = await look(town, payment)
    assert (after["receipt"], after["mismatch"]["received_receipt"]) == ("FORGED0001", "TRUE000001")
    assert await told(town, 2) == ["payment.completed", "payment.mismatched"]


# -- who is asked -------------------------------------------------------------------------------------------------


async def test_a_live_key_asks_nothing_about_a_sandbox_payment(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    _, secret = await town.gateway.api_keys.create(
        payment["merchant_id"], name="live", scopes=town.gateway.scopes.of_merchants, env="live", actor="test"
    )
    await town.api.call("PUT", "/v1/merchant/providers", INITIATED)
    api = Api(town.base, secret.reveal())
    answer = await api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")
    await api.close()
    assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
    assert daraja.of("transactionstatus") == []
    await move_to(town.api, "600001")
    answer = await town.api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")
    assert answer.status == 200
    assert [sent["PartyA"] for sent in daraja.of("transactionstatus")] == ["174379"]


async def test_two_workers_ask_once(town: Town, daraja: Daraja) -> None:
    payment = await asked(town)
    await town.gateway.db.execute("UPDATE payment SET due_at = now() + interval '1 hour'")
    go = daraja.hold("stkquery")
    queries = town.gateway.services.get(StkQueries)
    await town.gateway.db.execute("UPDATE payment SET due_at = now() - interval '1 second'")
    both = [asyncio.create_task(queries.ask(payment["id"])) for _ in range(2)]
    await daraja.asked_about("stkquery")

    async def one_is_done() -> bool:
        return any(task.done() for task in both)

    await eventually(one_is_done)
    go.set()
    assert sorted(await asyncio.gather(*both)) == [False, True]
    assert len(daraja.of("stkquery")) == 1


# -- what was not sent ---------------------------------------------------------------------------------------------

SPIKE = {"fault": {"faultstring": "spike arrest", "detail": {"errorcode": "policies.ratelimit.SpikeArrestViolation"}}}
DEAD_TOKEN = fault("401.002.01", "Error Occurred - Invalid Access Token - abc", 401)
FIREWALL = (403, b"<html><head><title>Request unsuccessful</title></head></html>")


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("stkpush", [(429, SPIKE)]),
        ("stkpush", [(500, SPIKE)]),
        ("stkpush", [fault("429.001.01", "Too many requests", 429)]),
        ("stkpush", [fault("500.002.1001", "The service is under maintenance just now")]),
        ("stkpush", [DEAD_TOKEN, DEAD_TOKEN]),
        ("oauth", [FIREWALL]),
        ("oauth", [(200, {"access_token": "line\nbreak", "expires_in": "99999999999999999999"})]),
    ],
)
async def test_request_not_sent_is_retryable_with_the_same_key(
    town: Town, daraja: Daraja, operation: str, said: list[Said]
) -> None:
    daraja.say(operation, *said)
    refused = await town.api.pay(PHONE, 500, key="a")
    assert (refused.status, refused.error["retryable"]) == (503, True)
    assert int(refused.headers["Retry-After"]) > 0
    assert "abc" not in str(refused.body)
    assert await town.gateway.db.fetchval("SELECT charge FROM payment") == "released"
    again = await town.api.pay(PHONE, 500, key="a")
    assert (again.status, again.data["status"], again.data["provider_ref"] is not None) == (201, "pending", True)
    assert await town.gateway.db.fetchval("SELECT count(*) FROM payment") == 1


async def test_request_answered_busy_is_unknown_and_its_late_callback_is_taken(town: Town, daraja: Daraja) -> None:
    daraja.say("stkpush", fault("500.003.02", "System is busy"))
    made = await asked(town)
    assert made["status"] == "pending"
    assert (await town.api.pay(PHONE, 500, key="a")).data["id"] == made["id"]
    assert len(daraja.of("stkpush")) == 1
    assert (await call_back(town, made, handle="ws_CO_busy")).status == 200
    assert (await look(town, made))["status"] == "completed"


@pytest.mark.usefixtures("stopped_clock")
async def test_request_refused_by_spike_arrest_rests_the_merchants_questions(town: Town, daraja: Daraja) -> None:
    made = await asked(town)
    daraja.say("stkpush", (429, SPIKE))
    assert (await town.api.pay(PHONE, 500, key="b")).status == 503
    await query(town, made)
    assert daraja.of("stkquery") == []
    # One accepted push ends the rest.
    assert (await town.api.pay(PHONE, 500, key="b")).status == 201
    await query(town, made)
    assert len(daraja.of("stkquery")) == 1


async def test_request_acknowledged_without_merchant_request_id_can_be_asked_about(town: Town, daraja: Daraja) -> None:
    ack = {"CheckoutRequestID": "ws_CO_77", "ResponseCode": 0.0, "ResponseDescription": "Success"}
    daraja.say("stkpush", (200, ack))
    made = await asked(town)
    assert (made["status"], made["provider_ref"]) == ("pending", "ws_CO_77")
    daraja.say("stkquery", stk_result("0"))
    assert (await query(town, made))["status"] == "completed"
    assert daraja.of("stkquery")[0]["CheckoutRequestID"] == "ws_CO_77"
