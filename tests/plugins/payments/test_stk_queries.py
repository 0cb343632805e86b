"""Protects STK queries: each answer, late, repeated or contradictory, completes or fails a payment at most once."""

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
from tests.conftest import Harness
from tests.daraja import PROCESSING, Daraja, DarajaAnswer, fault, stk_callback, stk_result
from tests.stored import WIPE_SHORTCODES, move_to

PHONE = "254711000001"


@pytest.fixture
def confirm() -> str:
    """The setting `payments.confirm`."""
    return "never"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja, confirm: str) -> dict[str, Any]:
    """STK queries are sent on demand only."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200, "confirm": confirm},
    }


@pytest.fixture
def stopped_clock(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """The gateway's clock, stopped: a pause of seconds lasts until the test advances the clock."""
    clock = SetClock(harness.gateway.clock.now())
    monkeypatch.setattr(harness.gateway.clock, "now", clock.now)
    return clock


async def create_payment(harness: Harness, key: str = "a", **more: Any) -> Any:
    """Create a payment of KES 500 whose prompt was acknowledged."""
    return (await harness.api.pay(PHONE, 500, key=key, **more)).data


async def call_back(harness: Harness, payment: Any, code: Any = 0, **fields: Any) -> Answer:
    """Post a callback to the payment's own address."""
    url = harness.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    handle = fields.pop("handle", payment["provider_ref"])
    return await harness.api.call("POST", url.removeprefix(harness.base), stk_callback(handle, code, **fields))


async def query(harness: Harness, payment: Any) -> Any:
    """Send an STK query as the merchant; returns the payment."""
    return (await harness.api.call("POST", f"/v1/payments/{payment['id']}/query")).data


async def get_payment(harness: Harness, payment: Any) -> Any:
    return (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data


async def sent_events(harness: Harness, count: int) -> list[str]:
    """Return the event types sent to the shop, once there are `count` and none is pending."""
    return await harness.delivered(count)


# -- answers of the STK query ---------------------------------------------------------------------------------------


NO_END: tuple[DarajaAnswer, ...] = (
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
    # A success without a push, of another push, or with a contradiction.
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": None}),
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": ""}),
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": ["ws_CO_1"]}),
    (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": "ws_CO_OTHER"}),
    (200, {"ResponseCode": "1", "ResultCode": "0"}),
)
"""Answers to an STK query that state neither success nor failure."""


async def test_stk_query_undecided_answer_leaves_payment_pending_and_due(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    for answer in NO_END:
        daraja.add_answers("stkquery", answer)
        after = await query(harness, payment)
        assert (after["status"], after["failure_reason"]) == ("pending", None), answer
        assert await harness.gateway.db.fetchval("SELECT due_at > now() AND due_at < expires_at FROM payment"), answer
    assert len(daraja.requests_of("stkquery")) == len(NO_END)
    daraja.add_answers("stkquery", stk_result("1032"))
    assert (await query(harness, payment))["failure_reason"] == "cancelled_by_user"


NOT_PUT: tuple[tuple[DarajaAnswer, ...], ...] = (
    (fault("500.003.02", "Error Occurred: Spike Arrest Violation"),),
    (fault("500.003.03", "Error Occurred: Quota Violation"),),
    (fault("404.001.03", "Invalid Access Token", 404), fault("404.001.03", "Invalid Access Token", 404)),
)
"""Answers to a query that Daraja did not accept."""


@pytest.mark.parametrize("answers", NOT_PUT)
async def test_stk_query_not_accepted_is_retried_after_the_pause(
    harness: Harness, daraja: Daraja, stopped_clock: SetClock, answers: tuple[DarajaAnswer, ...]
) -> None:
    payment = await create_payment(harness)
    daraja.add_answers("stkquery", *answers)
    assert (await query(harness, payment))["status"] == "pending"
    wait = await harness.gateway.db.fetchval("SELECT due_at FROM payment") - stopped_clock.now()
    assert timedelta(seconds=5) <= wait <= timedelta(seconds=60), wait
    # During the pause no query of this merchant is sent, forced ones included.
    assert await harness.gateway.services.get(StkQueries).query_payment(payment["id"], is_forced=True)
    assert (await query(harness, payment))["status"] == "pending"
    assert len(daraja.requests_of("stkquery")) == len(answers)
    stopped_clock.advance(wait)
    assert await harness.gateway.services.get(StkQueries).query_payment(payment["id"], is_forced=True)
    assert len(daraja.requests_of("stkquery")) == len(answers) + 1


async def test_stk_query_not_found_is_pending_until_the_payment_expires(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    for _ in range(3):
        daraja.add_answers("stkquery", fault("500.001.1001", "The transaction does not exist"))
        assert (await query(harness, payment))["status"] == "pending"
    await harness.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
    daraja.add_answers("stkquery", fault("500.001.1001", "The transaction does not exist"))
    await harness.gateway.services.get(StkQueries).query_payment(payment["id"], is_forced=True)
    ended = await get_payment(harness, payment)
    assert (ended["status"], ended["failure_reason"], ended["timeline"][-1]["kind"]) == ("failed", "expired", "expired")
    assert await sent_events(harness, 1) == ["payment.failed"]


async def test_stk_query_near_expiry_schedules_the_last_one_before_it(harness: Harness) -> None:
    payment = await create_payment(harness)
    await harness.gateway.db.execute("UPDATE payment SET expires_at = now() + interval '200 seconds'")
    await query(harness, payment)
    before = await harness.gateway.db.fetchval("SELECT expires_at - due_at FROM payment")
    assert timedelta(seconds=10) < before < timedelta(seconds=60)


async def test_stk_query_uses_the_payments_shortcode_and_its_newest_credentials(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness)
    newer = INITIATED["mpesa"] | {"passkey": "a-newer-passkey-of-the-same-shortcode"}
    await harness.api.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": newer})
    assert await move_to(harness.api, "600001") == {"payments": 1, "refunds": 0}
    assert await harness.gateway.services.get(StkQueries).query_payment(payment["id"], is_forced=True)
    (sent,) = daraja.requests_of("stkquery")
    assert sent["BusinessShortCode"] == "174379"
    signed = f"174379{newer['passkey']}{sent['Timestamp']}"
    assert b64decode(sent["Password"]).decode() == signed


async def test_stk_query_with_erased_credentials_is_not_sent(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await harness.gateway.db.execute(WIPE_SHORTCODES)
    assert await harness.gateway.services.get(StkQueries).query_payment(payment["id"], is_forced=True)
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert daraja.requests_of("stkquery") == []


# -- contradictions -------------------------------------------------------------------------------------------------


async def test_callback_with_receipt_after_failed_query_completes_payment(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    daraja.add_answers("stkquery", stk_result("1032"))
    assert (await query(harness, payment))["status"] == "failed"
    await call_back(harness, payment, 0)
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"], after["failure_reason"]) == ("completed", "TKN4A1B2C3", None)
    assert await sent_events(harness, 2) == ["payment.completed", "payment.failed"]


async def test_stk_query_answered_after_the_callback_changes_nothing(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    daraja.add_answers("stkquery", stk_result("1037"))
    go = daraja.hold("stkquery")
    asking = asyncio.create_task(query(harness, payment))
    await daraja.wait_for_requests("stkquery")
    await call_back(harness, payment, 0)
    go.set()
    assert (await asking)["status"] == "completed"
    assert await sent_events(harness, 1) == ["payment.completed"]


# -- confirmation ---------------------------------------------------------------------------------------------------


REPORTS: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"receipt": "FIT0000001", "phone": 254711000001}, True),
    ({"receipt": "FIT0000002", "amount": "500.00", "phone": "2547****001"}, True),
    ({"receipt": None, "phone": 254711000001}, False),
    ({"receipt": "UNFIT00001", "phone": 254799999999}, False),
    ({"has_metadata": False}, False),
)
"""Reported successes of a payment of KES 500; True if the report fits the request."""


@pytest.mark.parametrize("confirm", ["never", "mismatch", "always"])
async def test_callback_success_is_confirmed_as_the_setting_says(
    harness: Harness, daraja: Daraja, confirm: str
) -> None:
    queries = harness.gateway.services.get(StkQueries)
    for number, (fields, fits) in enumerate(REPORTS):
        # The sweep can run at any time, so its query is blocked too.
        go = daraja.hold("stkquery")
        payment = await create_payment(harness, key=f"k{number}")
        assert (await call_back(harness, payment, 0, **fields)).status == 200
        after = await get_payment(harness, payment)
        if confirm == "always" or (confirm == "mismatch" and not fits):
            assert (after["status"], after["timeline"][-1]["kind"]) == ("pending", "confirming"), fields
            daraja.add_answers("stkquery", stk_result("0"))
            go.set()
            # The payment is due at once; the test does not wait for the sweep.
            await queries.query_payment(payment["id"])
            after = await harness.api.settled(payment["id"], "completed")
        assert (after["status"], after["receipt"]) == ("completed", fields.get("receipt")), fields
        assert after["timeline"][-1]["cause"] == "callback"
    expected = {"never": 0, "mismatch": 3, "always": 5}[confirm]
    assert len(daraja.requests_of("stkquery")) == expected


@pytest.mark.parametrize("confirm", ["never"])
@pytest.mark.parametrize(("code", "status"), [("0", "completed"), ("1032", "failed")])
async def test_callback_success_with_unreadable_receipt_counts_once_confirmed(
    harness: Harness, daraja: Daraja, code: str, status: str
) -> None:
    go = daraja.hold("stkquery")
    payment = await create_payment(harness)
    await call_back(harness, payment, 0, receipt="TKN-\u200b4A1B2C3", phone=254711000001)
    assert (await get_payment(harness, payment))["status"] == "pending"
    daraja.add_answers("stkquery", stk_result(code))
    go.set()
    await harness.gateway.services.get(StkQueries).query_payment(payment["id"])
    after = await harness.api.settled(payment["id"], status)
    assert (after["status"], after["receipt"]) == (status, None)


@pytest.mark.parametrize("confirm", ["always"])
async def test_callback_success_denied_by_the_query_fails_payment(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    daraja.add_answers("stkquery", stk_result("1032", "Request cancelled by user"))
    await call_back(harness, payment, 0)
    after = await harness.api.settled(payment["id"], "failed")
    assert (after["receipt"], after["failure_reason"]) == (None, "cancelled_by_user")
    assert [step["kind"] for step in after["timeline"]][-3:] == ["confirming", "unconfirmed", "failed"]


@pytest.mark.parametrize("confirm", ["always"])
async def test_callback_success_never_confirmed_needs_review(
    harness: Harness,
) -> None:
    payment = await create_payment(harness)
    await call_back(harness, payment, 0)
    await harness.gateway.db.execute("UPDATE payment SET expires_at = now()")
    await harness.gateway.services.get(StkQueries).query_payment(payment["id"], is_forced=True)

    async def has_mismatch() -> Any:
        return (await get_payment(harness, payment))["mismatch"]

    assert (await eventually(has_mismatch))["of"] == "unconfirmed"
    assert (await get_payment(harness, payment))["status"] == "pending"
    await call_back(harness, payment, 0, receipt="SECOND0001")
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"]) == ("pending", None)
    assert await sent_events(harness, 2) == ["payment.mismatched", "payment.mismatched"]


@pytest.mark.parametrize("confirm", ["always"])
async def test_callback_success_of_an_unknown_push_needs_review(harness: Harness, daraja: Daraja) -> None:
    daraja.add_answers("stkpush", (500, b"<html>"))
    payment = await create_payment(harness)
    assert payment["provider_ref"] is None
    await call_back(harness, payment, 0, handle=None)
    after = await get_payment(harness, payment)
    assert (after["status"], after["mismatch"]["of"]) == ("pending", "unconfirmed")
    assert await sent_events(harness, 1) == ["payment.mismatched"]


@pytest.mark.parametrize("confirm", ["always"])
async def test_callback_success_after_a_forged_one_is_a_mismatch(harness: Harness, daraja: Daraja) -> None:
    go = daraja.hold("stkquery")
    payment = await create_payment(harness)
    await call_back(harness, payment, 0, receipt="FORGED0001")
    await call_back(harness, payment, 0, receipt="TRUE000001")
    daraja.add_answers("stkquery", stk_result("0"))
    go.set()
    await harness.api.settled(payment["id"], "completed")
    # The first receipt was confirmed. The second is offered again and is a mismatch: one push has one receipt.
    await harness.gateway.db.execute("UPDATE callback SET due_at = now() WHERE verdict = 'waiting'")
    await harness.gateway.services.get(CallbackDispatcher).sweep()
    after = await get_payment(harness, payment)
    assert (after["receipt"], after["mismatch"]["received_receipt"]) == ("FORGED0001", "TRUE000001")
    assert await sent_events(harness, 2) == ["payment.completed", "payment.mismatched"]


# -- env and concurrency --------------------------------------------------------------------------------------------


async def test_status_query_with_a_key_of_the_other_env_is_not_found(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    _, secret = await harness.gateway.api_keys.create(
        payment["merchant_id"], name="live", scopes=harness.gateway.scopes.of_merchants, env="live", actor="test"
    )
    await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)
    api = Api(harness.base, secret.reveal())
    answer = await api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")
    await api.close()
    assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
    assert daraja.requests_of("transactionstatus") == []
    await move_to(harness.api, "600001")
    answer = await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")
    assert answer.status == 200
    assert [sent["PartyA"] for sent in daraja.requests_of("transactionstatus")] == ["174379"]


async def test_stk_query_by_two_workers_is_sent_once(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    await harness.gateway.db.execute("UPDATE payment SET due_at = now() + interval '1 hour'")
    go = daraja.hold("stkquery")
    queries = harness.gateway.services.get(StkQueries)
    await harness.gateway.db.execute("UPDATE payment SET due_at = now() - interval '1 second'")
    both = [asyncio.create_task(queries.query_payment(payment["id"])) for _ in range(2)]
    await daraja.wait_for_requests("stkquery")

    async def one_is_done() -> bool:
        return any(task.done() for task in both)

    await eventually(one_is_done)
    go.set()
    assert sorted(await asyncio.gather(*both)) == [False, True]
    assert len(daraja.requests_of("stkquery")) == 1


# -- requests that were not sent ------------------------------------------------------------------------------------

SPIKE = {"fault": {"faultstring": "spike arrest", "detail": {"errorcode": "policies.ratelimit.SpikeArrestViolation"}}}
DEAD_TOKEN = fault("401.002.01", "Error Occurred - Invalid Access Token - abc", 401)
FIREWALL = (403, b"<html><head><title>Request unsuccessful</title></head></html>")


@pytest.mark.parametrize(
    ("operation", "replies"),
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
async def test_push_not_sent_is_retryable_with_the_same_key(
    harness: Harness, daraja: Daraja, operation: str, replies: list[DarajaAnswer]
) -> None:
    daraja.add_answers(operation, *replies)
    refused = await harness.api.pay(PHONE, 500, key="a")
    assert (refused.status, refused.error["retryable"]) == (503, True)
    assert int(refused.headers["Retry-After"]) > 0
    assert "abc" not in str(refused.body)
    assert await harness.gateway.db.fetchval("SELECT charge FROM payment") == "released"
    again = await harness.api.pay(PHONE, 500, key="a")
    assert (again.status, again.data["status"], again.data["provider_ref"] is not None) == (201, "pending", True)
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM payment") == 1


async def test_push_answered_busy_is_unknown_and_its_late_callback_completes_it(
    harness: Harness, daraja: Daraja
) -> None:
    daraja.add_answers("stkpush", fault("500.003.02", "System is busy"))
    made = await create_payment(harness)
    assert made["status"] == "pending"
    assert (await harness.api.pay(PHONE, 500, key="a")).data["id"] == made["id"]
    assert len(daraja.requests_of("stkpush")) == 1
    assert (await call_back(harness, made, handle="ws_CO_busy")).status == 200
    assert (await get_payment(harness, made))["status"] == "completed"


@pytest.mark.usefixtures("stopped_clock")
async def test_push_refused_by_spike_arrest_pauses_the_merchants_queries(harness: Harness, daraja: Daraja) -> None:
    made = await create_payment(harness)
    daraja.add_answers("stkpush", (429, SPIKE))
    assert (await harness.api.pay(PHONE, 500, key="b")).status == 503
    await query(harness, made)
    assert daraja.requests_of("stkquery") == []
    # One accepted push ends the pause.
    assert (await harness.api.pay(PHONE, 500, key="b")).status == 201
    await query(harness, made)
    assert len(daraja.requests_of("stkquery")) == 1


async def test_push_acknowledged_without_merchant_request_id_can_be_queried(harness: Harness, daraja: Daraja) -> None:
    ack = {"CheckoutRequestID": "ws_CO_77", "ResponseCode": 0.0, "ResponseDescription": "Success"}
    daraja.add_answers("stkpush", (200, ack))
    made = await create_payment(harness)
    assert (made["status"], made["provider_ref"]) == ("pending", "ws_CO_77")
    daraja.add_answers("stkquery", stk_result("0"))
    assert (await query(harness, made))["status"] == "completed"
    assert daraja.requests_of("stkquery")[0]["CheckoutRequestID"] == "ws_CO_77"
