"""A payment from the wish to the webhook, through real HTTP, Postgres, Valkey, a worker and the simulator."""

import pytest
from standardwebhooks import Webhook

from mpesa_gateway.testing.serving import shop
from tests.conftest import Town

PHONES = "254700000"


async def test_a_payment_completes_and_the_webhook_is_ours(town: Town) -> None:
    secret = (await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": town.receiver.url})).data[
        "webhook_secret"
    ]

    made = await town.api.pay("0708374149", "500.00", key="order-1", reference="order 1", metadata={"cart": "7"})
    assert made.status == 201
    assert (made.data["status"], made.data["amount"], made.data["phone"]) == ("pending", "500.00", "254708374149")
    assert made.data["provider_ref"].startswith("ws_CO_")

    paid = await town.api.settled(made.data["id"], "completed")
    assert len(paid["receipt"]) == 10
    assert [(step["kind"], step["cause"]) for step in paid["timeline"]] == [
        ("requested", "merchant"),
        ("sent", "ack"),
        ("completed", "callback"),
    ]
    webhook = (await town.receiver.wait_for(1))[0]
    event = Webhook(secret).verify(webhook.body, webhook.headers)
    assert event["type"] == webhook.headers["x-event-type"] == "payment.completed"
    assert event["id"] == webhook.headers["webhook-id"]
    wanted = {"payment_id": paid["id"], "amount": "500.00", "status": "completed", "receipt": paid["receipt"]}
    assert wanted.items() <= event["data"].items()
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
async def test_each_simulated_phone_ends_its_payment_as_documented(
    town: Town, digits: str, status: str, reason: str | None
) -> None:
    made = await town.api.pay(PHONES + digits, key=digits)
    ended = await town.api.settled(made.data["id"])
    assert (ended["status"], ended["failure_reason"]) == (status, reason)
    assert await town.told(1) == [f"payment.{status}"]


async def test_an_accepted_push_whose_answer_is_lost_is_never_repeated_and_still_completes(town: Town) -> None:
    made = await town.api.pay(PHONES + "014", key="lost")
    assert (made.status, made.data["provider_ref"]) == (201, None)
    paid = await town.api.settled(made.data["id"], "completed")
    assert "unknown" in [step["kind"] for step in paid["timeline"]]
    pushes = (await town.api.call("GET", f"/simulator/control/pushes?phone={PHONES}014")).data
    assert len(pushes) == 1


async def test_a_wrong_amount_is_held_flagged_and_told_and_never_completes(town: Town) -> None:
    made = await town.api.pay(PHONES + "011", 700, key="wrong")
    (webhook,) = await town.receiver.wait_for(1)
    assert webhook.headers["x-event-type"] == "payment.mismatched"
    assert (webhook.json["data"]["amount"], webhook.json["data"]["received_amount"]) == ("700.00", "701.00")
    held = (await town.api.call("GET", f"/v1/payments/{made.data['id']}")).data
    assert (held["status"], held["mismatch"]["of"], held["receipt"]) == ("pending", "amount", None)


async def test_a_refusal_fails_the_payment_and_says_why(town: Town) -> None:
    refused = await town.api.pay(PHONES + "015", key="refused")
    assert refused.status == 502
    assert refused.error["code"] == "PROVIDER_REJECTED"
    assert refused.error["provider"]["errorCode"] == "400.002.02"
    again = await town.api.pay(PHONES + "015", key="refused")
    assert (again.status, again.data["status"], again.data["failure_reason"]) == (200, "failed", "rejected_by_provider")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert refused.error["id"] == again.data["id"]
    said = refused.error["provider"]["errorMessage"]
    assert said in refused.error["message"]
    assert again.data["result_desc"].endswith(said)


async def test_when_nothing_was_sent_the_same_key_may_try_again_and_sends_one_prompt(town: Town) -> None:
    phone = "254711000001"
    fault = {"operation": "stkpush", "fault": "500.003.02", "times": 1}
    await town.api.call("POST", "/simulator/control/faults", fault)
    first = await town.api.pay(phone, key="again")
    assert (first.status, first.error["code"], first.headers["Retry-After"]) == (503, "PROVIDER_UNAVAILABLE", "10")
    second = await town.api.pay(phone, key="again")
    assert second.status == 201
    third = await town.api.pay(phone, key="again")
    assert (third.status, third.data["id"]) == (200, second.data["id"])
    await town.api.settled(second.data["id"], "completed")
    assert len((await town.api.call("GET", f"/simulator/control/pushes?phone={phone}")).data) == 1
    listed = await town.api.call("GET", "/v1/payments?count=true")
    assert listed.body["meta"]["total"] == 1


async def test_an_expired_token_is_replaced_and_the_push_sent_once(town: Town) -> None:
    phone = "254711000002"
    first = await town.api.pay("254711000003", key="a")
    assert first.status == 201
    # Somebody else fetches a token with our keys: ours is invalid from now on.
    await town.gateway.db.execute("UPDATE sim_token SET token = 'another'")
    second = await town.api.pay(phone, key="b")
    assert second.status == 201
    assert len((await town.api.call("GET", f"/simulator/control/pushes?phone={phone}")).data) == 1


async def test_a_prompt_waits_for_its_answer_and_a_duplicate_callback_changes_nothing(town: Town) -> None:
    made = await town.api.pay(PHONES + "020", key="asks")
    (prompt,) = (await town.api.call("GET", "/simulator/control/pushes?state=open")).data
    assert prompt["amount"] == 500
    await town.api.call("POST", f"/simulator/control/pushes/{prompt['checkout_request_id']}/answer", {"answer": "pay"})
    paid = await town.api.settled(made.data["id"], "completed")
    await town.receiver.wait_for(1)
    for _ in range(3):
        again = await town.api.call("POST", f"/simulator/control/pushes/{prompt['checkout_request_id']}/callback")
        assert again.data == {"status": 200}
    # Valkey forgets: Postgres' constraint decides alone.
    await town.gateway.valkey.flushdb()
    await town.api.call("POST", f"/simulator/control/pushes/{prompt['checkout_request_id']}/callback")
    assert await town.told(1) == ["payment.completed"]
    assert (await town.api.call("GET", f"/v1/payments/{made.data['id']}")).data == paid


async def test_another_merchant_sees_nothing(town: Town) -> None:
    made = await town.api.pay("254711000009", key="mine")
    await town.api.settled(made.data["id"])
    await town.receiver.wait_for(1)
    log = (await town.api.call("GET", "/v1/webhooks/logs")).data[0]
    async with shop(town.gateway, town.base) as other:
        for path in (
            f"/v1/payments/{made.data['id']}",
            f"/v1/webhooks/logs/{log['id']}",
            f"/v1/events/{log['event_id']}",
        ):
            assert (await other.call("GET", path)).error["code"] == "NOT_FOUND"
        for path in ("/v1/payments", "/v1/webhooks/logs", "/v1/events"):
            assert (await other.call("GET", path)).data == []
        assert (await other.call("POST", f"/v1/webhooks/logs/{log['id']}/replay")).status == 404
