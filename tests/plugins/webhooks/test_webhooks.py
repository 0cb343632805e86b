"""Protects webhooks: signed, retried, replayed, rotated, kept per merchant, never sent to forbidden addresses."""

import asyncio
import hashlib
import hmac
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_webhooks import signing
from mpesa_gateway_webhooks.deliveries import DeliveryService
from mpesa_gateway_webhooks.schedule import PAUSES, pause_after
from mpesa_gateway_webhooks.tables import FORGET_ANSWERS
from tests.conftest import Harness
from tests.identifiers import identifier

pytestmark = pytest.mark.as_owner

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


@given(st.binary(min_size=32, max_size=32), st.text(max_size=400))
def test_headers_are_verified_by_the_standard_webhooks_library(random: bytes, text: str) -> None:
    secret = signing.new_secret(random)
    sent = signing.headers("evt_1", "payment.completed", b'{"a": 1}', datetime.now(UTC), [secret])
    assert Webhook(secret.reveal()).verify(b'{"a": 1}', sent) == {"a": 1}
    body = text.encode("utf-8", "replace")
    if body != b'{"a": 1}':
        with pytest.raises(WebhookVerificationError):
            Webhook(secret.reveal()).verify(body, sent)


def test_headers_sign_timestamp_and_body_with_the_whole_secret() -> None:
    secret = Secret("whsec_" + "QUJD" * 8)
    sent = signing.headers("evt_1", "payment.failed", b"{}", NOW, [secret])
    text = f"{int(NOW.timestamp())}.{{}}"
    expected = hmac.new(secret.reveal().encode(), text.encode(), hashlib.sha256).hexdigest()
    assert sent["X-Payments-Signature"] == f"sha256={expected}"
    assert (sent["X-Event-Type"], sent["X-Payments-Timestamp"]) == ("payment.failed", str(int(NOW.timestamp())))


def test_headers_during_rotation_are_signed_with_both_secrets() -> None:
    new, old = signing.new_secret(b"n" * 32), signing.new_secret(b"o" * 32)
    sent = signing.headers("evt_1", "x", b"{}", datetime.now(UTC), [new, old])
    for secret in (new, old):
        Webhook(secret.reveal()).verify(b"{}", sent)
    alone = signing.headers("evt_1", "x", b"{}", datetime.now(UTC), [old])
    assert sent["X-Payments-Signature-Previous"] == alone["X-Payments-Signature"]


ATTEMPTS = len(PAUSES) + 1


@given(st.integers(1, ATTEMPTS - 1), st.floats(0, 1))
def test_pause_after_is_within_ten_percent_of_the_schedule(attempts: int, chance: float) -> None:
    pause = pause_after(attempts, chance)
    assert pause is not None
    assert PAUSES[attempts - 1] * 0.899 <= pause.total_seconds() <= PAUSES[attempts - 1] * 1.101


def test_pause_after_the_last_attempt_is_none() -> None:
    assert pause_after(ATTEMPTS, 0.5) is None
    assert timedelta(seconds=sum(PAUSES)) > timedelta(hours=31)


async def complete_payment(harness: Harness, key: str = "order") -> dict[str, Any]:
    """Create and complete a payment."""
    made = await harness.api.pay("254711000080", key=key)
    return await harness.api.settled(made.data["id"], "completed")


async def logs(api: Api, query: str = "") -> list[dict[str, Any]]:
    """The delivery log."""
    found: list[dict[str, Any]] = (await api.call("GET", f"/v1/webhooks/logs?{query}")).data
    return found


async def await_delivery(api: Api, status: str, attempts: int = 1) -> dict[str, Any]:
    """Wait until the only delivery has this status after so many attempts."""
    async with asyncio.timeout(15):
        while True:
            found = await logs(api)
            if found and found[0]["status"] == status and found[0]["attempts"] == attempts:
                return found[0]
            await asyncio.sleep(0.05)


async def make_due(harness: Harness) -> None:
    """Make every delivery due, close no endpoint, and sweep."""
    await harness.gateway.db.execute("UPDATE delivery SET due_at = now() WHERE status = 'pending'")
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = NULL")
    await harness.gateway.services.get(DeliveryService).sweep()


async def test_delivery_failed_is_retried_with_the_same_id_and_bytes(harness: Harness) -> None:
    harness.receiver.answer = lambda _, number: 500 if number == 1 else 204
    await complete_payment(harness)
    failed = await await_delivery(harness.api, "pending")
    assert (failed["last_status"], failed["last_error"]) == (500, "the endpoint answered HTTP 500")
    wait = datetime.fromisoformat(failed["next_retry_at"]) - datetime.fromisoformat(failed["last_attempt_at"])
    assert timedelta(seconds=4) < wait < timedelta(seconds=6)
    await make_due(harness)
    done = await await_delivery(harness.api, "delivered", 2)
    first, second = harness.receiver.received
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    detail = (await harness.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data
    assert [(attempt["status"], attempt["answer"]) for attempt in detail["attempt_log"]] == [(500, "ok"), (204, "")]
    assert detail["event"]["id"] == first.headers["webhook-id"]


async def test_delivery_after_the_last_attempt_is_dead_until_replayed(harness: Harness) -> None:
    harness.receiver.status = 503
    await complete_payment(harness)
    await await_delivery(harness.api, "pending")
    await harness.gateway.db.execute("UPDATE delivery SET attempts = $1", ATTEMPTS - 1)
    await make_due(harness)
    dead = await await_delivery(harness.api, "dead", ATTEMPTS)
    assert dead["next_retry_at"] is None
    harness.receiver.status = 200
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = NULL")
    replayed = await harness.api.call("POST", f"/v1/webhooks/logs/{dead['id']}/replay")
    assert replayed.data["status"] == "pending"
    await await_delivery(harness.api, "delivered")
    assert len({one.headers["webhook-id"] for one in harness.receiver.received}) == 1


async def test_delivery_answered_gone_is_dead(harness: Harness) -> None:
    harness.receiver.status = 410
    await complete_payment(harness)
    assert (await await_delivery(harness.api, "dead"))["last_status"] == 410


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_delivery_answered_with_a_redirect_fails_and_is_not_followed(harness: Harness, status: int) -> None:
    harness.receiver.status = status
    await complete_payment(harness)
    assert (await await_delivery(harness.api, "pending"))["last_status"] == status
    assert len(harness.receiver.received) == 1


async def test_replay_of_many_selects_by_time_and_status(harness: Harness) -> None:
    for number in range(3):
        await complete_payment(harness, f"order-{number}")
    await harness.receiver.wait_for(3)
    await eventually(
        lambda: harness.gateway.db.fetchval("SELECT count(*) = 3 FROM delivery WHERE status = 'delivered'")
    )
    since = (await logs(harness.api))[-1]["created_at"]
    answer = await harness.api.call("POST", "/v1/webhooks/replay", {"since": since, "status": "delivered"})
    assert answer.data == {"replayed": 3, "has_more": False}
    await harness.receiver.wait_for(6)
    answer = await harness.api.call("POST", "/v1/webhooks/replay", {"since": since, "status": "dead"})
    assert answer.data["replayed"] == 0


async def test_failing_endpoint_is_paused_and_delays_no_other(harness: Harness) -> None:
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET url = 'http://127.0.0.1:9/gone', failures = 4")
    await complete_payment(harness, "first")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT closed_until > now() FROM webhook_endpoint"))
    await complete_payment(harness, "second")
    await asyncio.sleep(0.5)
    newest = (await logs(harness.api))[0]
    assert (newest["status"], newest["attempts"]) == ("pending", 0)
    async with receiving() as well, shop(harness.gateway, harness.base, webhook_url=well.url) as other:
        await other.pay("254711000081", key="well")
        assert await well.wait_for(1, patience=5)
    view = (await harness.api.call("GET", "/v1/merchant/webhook")).data
    assert view["failures"] >= 5
    assert view["paused_until"] is not None


async def test_rotated_secret_signs_together_with_the_old_one_for_a_day(harness: Harness) -> None:
    first = (await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": harness.receiver.url})).data[
        "webhook_secret"
    ]
    second = (await harness.api.call("POST", "/v1/merchant/webhook/rotate")).data["webhook_secret"]
    assert first != second
    await complete_payment(harness)
    (sent,) = await harness.receiver.wait_for(1)
    for secret in (first, second):
        Webhook(secret).verify(sent.body, sent.headers)
    assert "x-payments-signature-previous" in sent.headers
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET previous_until = now()")
    await complete_payment(harness, "later")
    (_, later) = await harness.receiver.wait_for(2)
    assert "x-payments-signature-previous" not in later.headers
    with pytest.raises(WebhookVerificationError):
        Webhook(first).verify(later.body, later.headers)
    shown = (await harness.api.call("GET", "/v1/merchant/webhook")).data["webhook_secret"]
    assert shown == f"****{second[-4:]}"


async def test_webhook_test_is_sent_at_once_and_returns_the_answer(harness: Harness) -> None:
    harness.receiver.status = 418
    answer = (await harness.api.call("POST", "/v1/merchant/webhook/test")).data
    assert (answer["delivered"], answer["status"], answer["answer"]) == (False, 418, "ok")
    assert harness.receiver.received[0].headers["x-event-type"] == "webhook.test"
    await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": "http://127.0.0.1:9/nobody"})
    answer = (await harness.api.call("POST", "/v1/merchant/webhook/test")).data
    assert (answer["delivered"], answer["error"]) == (False, "the connection failed")


async def test_removed_endpoint_gets_nothing_and_its_deliveries_wait(harness: Harness) -> None:
    harness.receiver.status = 500
    await complete_payment(harness)
    await await_delivery(harness.api, "pending")
    assert (await harness.api.call("DELETE", "/v1/merchant/webhook")).data == {"deleted": True}
    await make_due(harness)
    waiting = await await_delivery(harness.api, "waiting")
    assert (await harness.api.call("POST", f"/v1/webhooks/logs/{waiting['id']}/replay")).status == 409
    since = {"since": "2020-01-01T00:00:00Z"}
    assert (await harness.api.call("POST", "/v1/webhooks/replay", since)).status == 409
    for method, path in (("GET", "/v1/merchant/webhook"), ("POST", "/v1/merchant/webhook/test")):
        assert (await harness.api.call(method, path)).status == 404
    await complete_payment(harness, "unheard")
    assert [row["status"] for row in await logs(harness.api)] == ["waiting"] * 2
    assert [event["type"] for event in (await harness.api.call("GET", "/v1/events")).data] == ["payment.completed"] * 2


UNCALLED = [
    "https://10.0.0.1/x",
    "https://169.254.169.254/latest/meta-data",
    "https://[::ffff:10.0.0.1]/x",
    "https://2130706433/x",
    "https://0x7f.0.0.1/x",
    "http://shop.example.co.ke/x",
    "ftp://shop.example.co.ke/x",
    "https://user:pw@shop.example.co.ke/x",
    "https://shop.example.co.ke:0/x",
    "not a url",
    "",
]
"""Addresses that are never called."""


async def test_endpoint_with_a_forbidden_address_is_refused(harness: Harness) -> None:
    for url in UNCALLED:
        answer = await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": url})
        assert (answer.status, answer.error["field"]) == (422, "webhook_url"), url


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("Https://Shop.Example.co.ke/x", "https://shop.example.co.ke/x"),
        ("HTTPS://shop.example.co.ke:443", "https://shop.example.co.ke"),
        ("https://shop.example.co.ke./x", "https://shop.example.co.ke/x"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),
        ("HTTP://LOCALHOST:3000/", "http://localhost:3000/"),
    ],
)
async def test_endpoint_address_is_stored_in_normal_form(harness: Harness, url: str, kept: str) -> None:
    answer = await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": url})
    assert (answer.status, answer.data["webhook_url"]) == (200, kept)
    assert (await harness.api.call("GET", "/v1/merchant/webhook")).data["webhook_url"] == kept


async def test_loopback_address_is_refused_when_set_and_when_sent(values: dict[str, Any]) -> None:
    values["webhooks"] = {"allow_loopback": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base) as api,
    ):
        answer = await api.call("PUT", "/v1/merchant/webhook", {"webhook_url": receiver.url})
        assert answer.status == 422
        await api.call("PUT", "/v1/merchant/webhook", {"webhook_url": "https://shop.example.co.ke/x"})
        await gateway.db.execute("UPDATE webhook_endpoint SET url = $1", receiver.url)
        await api.pay("254711000082", key="a")
        failed = await await_delivery(api, "pending")
        assert "must be an https address" in failed["last_error"]
        assert receiver.received == []


async def test_delivery_with_a_lost_wake_up_is_found_by_the_sweep(harness: Harness) -> None:
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = now() + interval '1 hour'")
    await complete_payment(harness)
    await asyncio.sleep(0.3)
    await harness.gateway.valkey.flushdb()
    await harness.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = NULL")
    await harness.gateway.db.execute("UPDATE delivery SET due_at = now()")
    # No test code helps: the cron, also lost by Valkey, restarts by itself.
    assert await harness.receiver.wait_for(1, patience=20)


async def test_delivery_interrupted_while_sending_is_resent_with_the_same_id(harness: Harness) -> None:
    await complete_payment(harness)
    await harness.receiver.wait_for(1)
    await await_delivery(harness.api, "delivered")
    # The state after a crash between the POST and its record, once the lease has expired.
    await harness.gateway.db.execute(
        "UPDATE delivery SET status = 'pending', attempts = 0, due_at = now(), delivered_at = NULL, "
        "leased_until = now() - interval '1 second'"
    )
    await harness.gateway.services.get(DeliveryService).sweep()
    first, second = await harness.receiver.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


EXPIRE = "UPDATE delivery SET leased_until = now() - interval '1 second'"

UNNOTABLE = """
CREATE FUNCTION refuse_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'no room for this one';
END
$$;
CREATE TRIGGER refused BEFORE UPDATE OF ms ON delivery FOR EACH ROW WHEN (id_text(NEW.delivery_id) = '{}')
    EXECUTE FUNCTION refuse_note()
"""


async def test_delivery_that_cannot_be_recorded_blocks_no_other_and_is_resent(values: dict[str, Any]) -> None:
    values["webhooks"] = {"timeout": 5}
    values["worker"] = {"in_process": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        for number in range(12):
            await api.pay("254711000084", key=f"k{number}")
        await eventually(lambda: gateway.db.fetchval("SELECT count(*) = 12 FROM delivery"), patience=30)
        ids = [row["delivery_id"] for row in await gateway.db.fetch("SELECT delivery_id FROM delivery ORDER BY 1")]
        await gateway.db.execute(UNNOTABLE.format(ids[3]))
        deliveries = gateway.services.get(DeliveryService)
        assert await deliveries.deliver(ids) == 12
        owed = await gateway.db.fetch("SELECT delivery_id, status, attempts FROM delivery WHERE status <> 'delivered'")
        assert [tuple(row) for row in owed] == [(ids[3], "pending", 0)]
        assert await gateway.db.fetchval("SELECT count(*) FROM attempt_log") == 11
        await gateway.db.execute("DROP TRIGGER refused ON delivery")
        await gateway.db.execute(f"{EXPIRE} WHERE status = 'pending'")
        assert await deliveries.deliver(ids) == 1
        assert await gateway.db.fetchval("SELECT bool_and(status = 'delivered' AND attempts = 1) FROM delivery")
        sent = Counter(one.headers["webhook-id"] for one in receiver.received)
        assert sorted(sent.values()) == [1] * 11 + [2]
        assert await gateway.db.fetchval("SELECT count(*) FROM attempt_log") == 12


async def test_delivery_claimed_by_one_worker_is_not_sent_by_another(harness: Harness) -> None:
    harness.receiver.delay = 0.5
    await complete_payment(harness)
    await harness.receiver.wait_for(1)
    (row,) = await logs(harness.api)
    deliveries = harness.gateway.services.get(DeliveryService)
    assert await asyncio.gather(*(deliveries.deliver([row["id"]]) for _ in range(5))) == [0] * 5
    await await_delivery(harness.api, "delivered")
    assert len(harness.receiver.received) == 1


async def test_slow_endpoint_with_many_deliveries_gets_each_once(values: dict[str, Any]) -> None:
    values["webhooks"] = {"timeout": 0.5, "max_concurrent_per_endpoint": 1}
    values["worker"] = {"in_process": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        receiver.delay = 0.2
        for number in range(25):
            await api.pay("254711000084", key=f"k{number}")
        await eventually(lambda: gateway.db.fetchval("SELECT count(*) = 25 FROM delivery"), patience=30)
        ids = [row["delivery_id"] for row in await gateway.db.fetch("SELECT delivery_id FROM delivery")]
        deliveries = gateway.services.get(DeliveryService)

        async def work() -> bool:
            # Two workers that are woken repeatedly, for longer than any lease.
            await asyncio.gather(deliveries.deliver(ids), deliveries.deliver(ids))
            return bool(await gateway.db.fetchval("SELECT bool_and(status = 'delivered') FROM delivery"))

        first = asyncio.create_task(deliveries.deliver(ids))
        await eventually(work, patience=60)
        await first
        sent = [one.headers["webhook-id"] for one in receiver.received]
        assert len(sent) == len(set(sent)) == 25


async def test_claimed_deliveries_of_an_endpoint_that_fails_are_released(values: dict[str, Any]) -> None:
    values["webhooks"] = {"max_concurrent_per_endpoint": 1, "breaker_failures": 3}
    values["worker"] = {"in_process": False}
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        receiver.status = 500
        for number in range(10):
            await api.pay("254711000085", key=f"k{number}")
        await eventually(lambda: gateway.db.fetchval("SELECT count(*) = 10 FROM delivery"), patience=30)
        ids = [row["delivery_id"] for row in await gateway.db.fetch("SELECT delivery_id FROM delivery")]
        assert await gateway.services.get(DeliveryService).deliver(ids) == 10
        assert len(receiver.received) == 3
        rows = await gateway.db.fetch("SELECT attempts, count(*) FROM delivery GROUP BY attempts ORDER BY attempts")
        assert [tuple(row.values()) for row in rows] == [(0, 7), (1, 3)]
        assert await gateway.db.fetchval("SELECT count(*) FROM delivery WHERE leased_until IS NOT NULL") == 0


async def test_events_and_log_are_filtered(harness: Harness) -> None:
    payment = await complete_payment(harness)
    (event,) = (await harness.api.call("GET", "/v1/events?type=payment.completed&since=2026-01-01T00:00:00Z")).data
    assert event["data"]["payment_id"] == payment["id"]
    assert (await harness.api.call("GET", f"/v1/events/{event['id']}")).data == event
    assert (await harness.api.call("GET", "/v1/events?type=payment.failed")).data == []
    query = f"payment_id={payment['id']}&event_type=payment.completed&status=delivered"
    (row,) = await eventually(lambda: logs(harness.api, query))
    assert row["event_id"] == event["id"]
    assert await logs(harness.api, "status=dead") == []
    wrong = await harness.api.call("GET", "/v1/webhooks/logs?status=lost")
    assert (wrong.status, wrong.error["field"]) == (422, "status")


async def test_attempt_alone_is_stored_in_its_delivery_until_the_second(harness: Harness) -> None:
    db = harness.gateway.db
    harness.receiver.answer = lambda _, number: 200 if number == 1 else 204
    await complete_payment(harness)
    done = await await_delivery(harness.api, "delivered")
    (first,) = (await harness.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert (first["status"], first["error"], first["answer"]) == (200, None, "ok")
    assert first["at"] == done["last_attempt_at"]
    assert first["ms"] >= 0
    assert await db.fetchval("SELECT count(*) FROM attempt") == 0
    await harness.api.call("POST", f"/v1/webhooks/logs/{done['id']}/replay")
    await eventually(lambda: db.fetchval("SELECT count(*) = 2 FROM attempt"))
    again = (await harness.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert again[0] == first
    assert [attempt["status"] for attempt in again] == [200, 204]


async def test_forget_answers_clears_the_answer_in_a_delivery(harness: Harness) -> None:
    db = harness.gateway.db
    await complete_payment(harness)
    done = await await_delivery(harness.api, "delivered")
    assert await db.execute(FORGET_ANSWERS, done["id"], 10) == "UPDATE 0"
    assert await db.execute(FORGET_ANSWERS, identifier("dlv", at=datetime(2100, 1, 1, tzinfo=UTC)), 10) == "UPDATE 1"
    (attempt,) = (await harness.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert (attempt["status"], attempt["answer"]) == (200, "")


async def test_attempts_at_two_addresses_each_show_their_own(harness: Harness) -> None:
    old = harness.receiver.url
    new = f"{old}?new"
    harness.receiver.answer = lambda _, number: 500 if number == 1 else 200
    await complete_payment(harness)
    failed = await await_delivery(harness.api, "pending")
    await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": new})
    await harness.api.call("POST", f"/v1/webhooks/logs/{failed['id']}/replay")
    await await_delivery(harness.api, "delivered")
    log = (await harness.api.call("GET", f"/v1/webhooks/logs/{failed['id']}")).data["attempt_log"]
    assert [(attempt["status"], attempt["url"]) for attempt in log] == [(500, old), (200, new)]


async def test_attempt_stored_in_its_delivery_keeps_its_address(harness: Harness) -> None:
    old = harness.receiver.url
    await complete_payment(harness)
    done = await await_delivery(harness.api, "delivered")
    for number in range(2):
        await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": f"{old}?{number}"})
    # The same address with another secret counts as the same.
    await harness.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": f"{old}?1"})
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM webhook_former_address") == 2
    (attempt,) = (await harness.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert attempt["url"] == old
    await harness.api.call("POST", f"/v1/webhooks/logs/{done['id']}/replay")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT count(*) = 2 FROM attempt"))
    log = (await harness.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert [attempt["url"] for attempt in log] == [old, f"{old}?1"]
