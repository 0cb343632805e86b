"""Protects a payment from request to webhook, with real HTTP, Postgres, Valkey, a worker and the simulator."""

import pytest
from standardwebhooks import Webhook

from mpesa_gateway.testing.serving import shop
from tests.conftest import Harness

PHONES = "254700000"


async def test_payment_completes_and_the_webhook_is_signed(harness: Harness) -> None:
    secret = (await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": harness.receiver.url})).data[
        "webhook_secret"
    ]

    made = await harness.api.pay("0708374149", "500.00", key="order-1", reference="order 1", metadata={"cart": "7"})
    assert made.status == 201
    assert (made.data["status"], made.data["amount"], made.data["phone"]) == ("pending", "500.00", "254708374149")
    assert made.data["provider_ref"].startswith("ws_CO_")

    paid = await harness.api.settled(made.data["id"], "completed")
    assert len(paid["receipt"]) == 10
    assert [(step["kind"], step["cause"]) for step in paid["timeline"]] == [
        ("requested", "merchant"),
        ("sent", "ack"),
        ("completed", "callback"),
    ]
    webhook = (await harness.receiver.wait_for(1))[0]
    event = Webhook(secret).verify(webhook.body, webhook.headers)
    assert event["type"] == webhook.headers["x-event-type"] == "payment.completed"
    assert event["id"] == webhook.headers["webhook-id"]
    expected = {"payment_id": paid["id"], "amount": "500.00", "status": "completed", "receipt": paid["receipt"]}
    assert expected.items() <= event["data"].items()
    assert event["data"]["metadata"] == {"cart": "7"}


@pytest.mark.parametrize(
    ("digits", "status", "reason"),
    [
        ("001", "failed", "cancelled_by_user"),
        ("002", "failed", "wrong_pin"),
        ("003", "failed", "insufficient_funds"),
        ("004", "failed", "unreachable"),
        ("005", "failed", "timeout"),
        ("009", "completed", None),
        ("010", "completed", None),
        ("012", "completed", None),
        ("013", "completed", None),
        ("014", "completed", None),
    ],
)
async def test_simulated_phones_end_their_payments_as_documented(
    harness: Harness, digits: str, status: str, reason: str | None
) -> None:
    made = await harness.api.pay(PHONES + digits, key=digits)
    ended = await harness.api.settled(made.data["id"])
    assert (ended["status"], ended["failure_reason"]) == (status, reason)
    assert await harness.delivered(1) == [f"payment.{status}"]


async def test_push_with_a_lost_ack_is_not_repeated_and_completes(harness: Harness) -> None:
    made = await harness.api.pay(PHONES + "014", key="lost")
    assert (made.status, made.data["provider_ref"]) == (201, None)
    paid = await harness.api.settled(made.data["id"], "completed")
    assert "unknown" in [step["kind"] for step in paid["timeline"]]
    pushes = (await harness.api.call("GET", f"/simulator/control/pushes?phone={PHONES}014")).data
    assert len(pushes) == 1


async def test_wrong_amount_is_flagged_as_mismatch_and_never_completes(harness: Harness) -> None:
    made = await harness.api.pay(PHONES + "011", 700, key="wrong")
    (webhook,) = await harness.receiver.wait_for(1)
    assert webhook.headers["x-event-type"] == "payment.mismatched"
    assert (webhook.json["data"]["amount"], webhook.json["data"]["received_amount"]) == ("700.00", "701.00")
    held = (await harness.api.call("GET", f"/v1/payments/{made.data['id']}")).data
    assert (held["status"], held["mismatch"]["of"], held["receipt"]) == ("pending", "amount", None)


async def test_rejected_push_fails_the_payment_with_the_reason(harness: Harness) -> None:
    refused = await harness.api.pay(PHONES + "015", key="refused")
    assert refused.status == 502
    assert refused.error["code"] == "PROVIDER_REJECTED"
    assert refused.error["provider"]["errorCode"] == "400.002.02"
    again = await harness.api.pay(PHONES + "015", key="refused")
    assert (again.status, again.data["status"], again.data["failure_reason"]) == (200, "failed", "rejected_by_provider")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert refused.error["id"] == again.data["id"]
    message = refused.error["provider"]["errorMessage"]
    assert message in refused.error["message"]
    assert again.data["result_desc"].endswith(message)


async def test_unsent_push_retried_with_the_same_key_sends_one_prompt(harness: Harness) -> None:
    phone = "254711000001"
    fault = {"operation": "stkpush", "fault": "500.003.02", "times": 1}
    await harness.api.call("POST", "/simulator/control/faults", fault)
    first = await harness.api.pay(phone, key="again")
    assert (first.status, first.error["code"], first.headers["Retry-After"]) == (503, "PROVIDER_UNAVAILABLE", "10")
    second = await harness.api.pay(phone, key="again")
    assert second.status == 201
    third = await harness.api.pay(phone, key="again")
    assert (third.status, third.data["id"]) == (200, second.data["id"])
    await harness.api.settled(second.data["id"], "completed")
    assert len((await harness.api.call("GET", f"/simulator/control/pushes?phone={phone}")).data) == 1
    listed = await harness.api.call("GET", "/v1/payments?count=true")
    assert listed.body["meta"]["total"] == 1


async def test_expired_token_is_replaced_and_the_push_sent_once(harness: Harness) -> None:
    phone = "254711000002"
    first = await harness.api.pay("254711000003", key="a")
    assert first.status == 201
    # Another client fetches a token with our credentials: ours becomes invalid.
    await harness.gateway.db.execute("UPDATE sim_token SET token = 'another'")
    second = await harness.api.pay(phone, key="b")
    assert second.status == 201
    assert len((await harness.api.call("GET", f"/simulator/control/pushes?phone={phone}")).data) == 1


async def test_pending_prompt_waits_and_a_duplicate_callback_changes_nothing(harness: Harness) -> None:
    made = await harness.api.pay(PHONES + "020", key="asks")
    (prompt,) = (await harness.api.call("GET", "/simulator/control/pushes?state=open")).data
    assert prompt["amount"] == 500
    await harness.api.call(
        "POST", f"/simulator/control/pushes/{prompt['checkout_request_id']}/answer", {"answer": "pay"}
    )
    paid = await harness.api.settled(made.data["id"], "completed")
    await harness.receiver.wait_for(1)
    for _ in range(3):
        again = await harness.api.call("POST", f"/simulator/control/pushes/{prompt['checkout_request_id']}/callback")
        assert again.data == {"status": 200}
    # Valkey is empty: only Postgres' constraint decides.
    await harness.gateway.valkey.flushdb()
    await harness.api.call("POST", f"/simulator/control/pushes/{prompt['checkout_request_id']}/callback")
    assert await harness.delivered(1) == ["payment.completed"]
    assert (await harness.api.call("GET", f"/v1/payments/{made.data['id']}")).data == paid


async def test_payment_of_another_merchant_is_not_found(harness: Harness) -> None:
    made = await harness.api.pay("254711000009", key="mine")
    await harness.api.settled(made.data["id"])
    await harness.receiver.wait_for(1)
    log = (await harness.api.call("GET", "/v1/webhooks/logs")).data[0]
    async with shop(harness.gateway, harness.base) as other:
        for path in (
            f"/v1/payments/{made.data['id']}",
            f"/v1/webhooks/logs/{log['id']}",
            f"/v1/events/{log['event_id']}",
        ):
            assert (await other.call("GET", path)).error["code"] == "NOT_FOUND"
        for path in ("/v1/payments", "/v1/webhooks/logs", "/v1/events"):
            assert (await other.call("GET", path)).data == []
        assert (await other.call("POST", f"/v1/webhooks/logs/{log['id']}/replay")).status == 404
