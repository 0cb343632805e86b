"""Webhooks: signed, tried again, replayed, rotated, kept apart, and never sent where they must not go."""

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
from tests.conftest import Town
from tests.identifiers import identifier

pytestmark = pytest.mark.as_owner

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


@given(st.binary(min_size=32, max_size=32), st.text(max_size=400))
def test_the_public_library_verifies_what_we_sign(random: bytes, text: str) -> None:
    secret = signing.new_secret(random)
    sent = signing.headers("evt_1", "payment.completed", b'{"a": 1}', datetime.now(UTC), [secret])
    assert Webhook(secret.reveal()).verify(b'{"a": 1}', sent) == {"a": 1}
    body = text.encode("utf-8", "replace")
    if body != b'{"a": 1}':
        with pytest.raises(WebhookVerificationError):
            Webhook(secret.reveal()).verify(body, sent)


def test_the_specified_signature_is_over_timestamp_and_body_with_the_secret_as_shown() -> None:
    secret = Secret("whsec_" + "QUJD" * 8)
    sent = signing.headers("evt_1", "payment.failed", b"{}", NOW, [secret])
    text = f"{int(NOW.timestamp())}.{{}}"
    expected = hmac.new(secret.reveal().encode(), text.encode(), hashlib.sha256).hexdigest()
    assert sent["X-Payments-Signature"] == f"sha256={expected}"
    assert (sent["X-Event-Type"], sent["X-Payments-Timestamp"]) == ("payment.failed", str(int(NOW.timestamp())))


def test_while_a_secret_is_replaced_both_sign() -> None:
    new, old = signing.new_secret(b"n" * 32), signing.new_secret(b"o" * 32)
    sent = signing.headers("evt_1", "x", b"{}", datetime.now(UTC), [new, old])
    for secret in (new, old):
        Webhook(secret.reveal()).verify(b"{}", sent)
    alone = signing.headers("evt_1", "x", b"{}", datetime.now(UTC), [old])
    assert sent["X-Payments-Signature-Previous"] == alone["X-Payments-Signature"]


ATTEMPTS = len(PAUSES) + 1


@given(st.integers(1, ATTEMPTS - 1), st.floats(0, 1))
def test_a_pause_is_the_schedules_within_ten_percent(attempts: int, chance: float) -> None:
    pause = pause_after(attempts, chance)
    assert pause is not None
    assert PAUSES[attempts - 1] * 0.899 <= pause.total_seconds() <= PAUSES[attempts - 1] * 1.101


def test_after_the_last_attempt_there_is_none() -> None:
    assert pause_after(ATTEMPTS, 0.5) is None
    assert timedelta(seconds=sum(PAUSES)) > timedelta(hours=31)


async def paid(town: Town, key: str = "order") -> dict[str, Any]:
    """A payment that has completed."""
    made = await town.api.pay("254711000080", key=key)
    return await town.api.settled(made.data["id"], "completed")


async def logs(api: Api, query: str = "") -> list[dict[str, Any]]:
    """The delivery log."""
    found: list[dict[str, Any]] = (await api.call("GET", f"/v1/webhooks/logs?{query}")).data
    return found


async def until(api: Api, status: str, attempts: int = 1) -> dict[str, Any]:
    """Wait for the one delivery to have this status after so many attempts."""
    async with asyncio.timeout(15):
        while True:
            found = await logs(api)
            if found and found[0]["status"] == status and found[0]["attempts"] == attempts:
                return found[0]
            await asyncio.sleep(0.05)


async def hurry(town: Town) -> None:
    """Let every delivery be due, and its endpoint open, now."""
    await town.gateway.db.execute("UPDATE delivery SET due_at = now() WHERE status = 'pending'")
    await town.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = NULL")
    await town.gateway.services.get(DeliveryService).sweep()


async def test_a_failed_delivery_is_tried_again_with_the_same_id_and_bytes(town: Town) -> None:
    town.receiver.answer = lambda _, number: 500 if number == 1 else 204
    await paid(town)
    failed = await until(town.api, "pending")
    assert (failed["last_status"], failed["last_error"]) == (500, "the endpoint answered HTTP 500")
    wait = datetime.fromisoformat(failed["next_retry_at"]) - datetime.fromisoformat(failed["last_attempt_at"])
    assert timedelta(seconds=4) < wait < timedelta(seconds=6)
    await hurry(town)
    done = await until(town.api, "delivered", 2)
    first, second = town.receiver.received
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    detail = (await town.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data
    assert [(attempt["status"], attempt["answer"]) for attempt in detail["attempt_log"]] == [(500, "ok"), (204, "")]
    assert detail["event"]["id"] == first.headers["webhook-id"]


async def test_an_endpoint_that_never_takes_it_ends_dead_and_a_replay_revives_it(town: Town) -> None:
    town.receiver.status = 503
    await paid(town)
    await until(town.api, "pending")
    await town.gateway.db.execute("UPDATE delivery SET attempts = $1", ATTEMPTS - 1)
    await hurry(town)
    dead = await until(town.api, "dead", ATTEMPTS)
    assert dead["next_retry_at"] is None
    town.receiver.status = 200
    await town.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = NULL")
    replayed = await town.api.call("POST", f"/v1/webhooks/logs/{dead['id']}/replay")
    assert replayed.data["status"] == "pending"
    await until(town.api, "delivered")
    assert len({one.headers["webhook-id"] for one in town.receiver.received}) == 1


async def test_gone_ends_a_delivery_at_once(town: Town) -> None:
    town.receiver.status = 410
    await paid(town)
    assert (await until(town.api, "dead"))["last_status"] == 410


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(town: Town, status: int) -> None:
    town.receiver.status = status
    await paid(town)
    assert (await until(town.api, "pending"))["last_status"] == status
    assert len(town.receiver.received) == 1


async def test_many_are_replayed_by_time_and_status(town: Town) -> None:
    for number in range(3):
        await paid(town, f"order-{number}")
    await town.receiver.wait_for(3)
    await eventually(lambda: town.gateway.db.fetchval("SELECT count(*) = 3 FROM delivery WHERE status = 'delivered'"))
    since = (await logs(town.api))[-1]["created_at"]
    answer = await town.api.call("POST", "/v1/webhooks/replay", {"since": since, "status": "delivered"})
    assert answer.data == {"replayed": 3, "has_more": False}
    await town.receiver.wait_for(6)
    answer = await town.api.call("POST", "/v1/webhooks/replay", {"since": since, "status": "dead"})
    assert answer.data["replayed"] == 0


async def test_a_dead_endpoint_is_left_alone_for_a_while_and_slows_nobody(town: Town) -> None:
    await town.gateway.db.execute("UPDATE webhook_endpoint SET url = 'http://127.0.0.1:9/gone', failures = 4")
    await paid(town, "first")
    await eventually(lambda: town.gateway.db.fetchval("SELECT closed_until > now() FROM webhook_endpoint"))
    await paid(town, "second")
    await asyncio.sleep(0.5)
    newest = (await logs(town.api))[0]
    assert (newest["status"], newest["attempts"]) == ("pending", 0)
    async with receiving() as well, shop(town.gateway, town.base, webhook_url=well.url) as other:
        await other.pay("254711000081", key="well")
        assert await well.wait_for(1, patience=5)
    view = (await town.api.call("GET", "/v1/merchant/webhook")).data
    assert view["failures"] >= 5
    assert view["paused_until"] is not None


async def test_a_rotated_secret_signs_beside_the_old_one_for_a_day(town: Town) -> None:
    first = (await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": town.receiver.url})).data[
        "webhook_secret"
    ]
    second = (await town.api.call("POST", "/v1/merchant/webhook/rotate")).data["webhook_secret"]
    assert first != second
    await paid(town)
    (sent,) = await town.receiver.wait_for(1)
    for secret in (first, second):
        Webhook(secret).verify(sent.body, sent.headers)
    assert "x-payments-signature-previous" in sent.headers
    await town.gateway.db.execute("UPDATE webhook_endpoint SET previous_until = now()")
    await paid(town, "later")
    (_, later) = await town.receiver.wait_for(2)
    assert "x-payments-signature-previous" not in later.headers
    with pytest.raises(WebhookVerificationError):
        Webhook(first).verify(later.body, later.headers)
    shown = (await town.api.call("GET", "/v1/merchant/webhook")).data["webhook_secret"]
    assert shown == f"****{second[-4:]}"


async def test_a_test_is_sent_at_once_and_its_answer_told(town: Town) -> None:
    town.receiver.status = 418
    answer = (await town.api.call("POST", "/v1/merchant/webhook/test")).data
    assert (answer["delivered"], answer["status"], answer["answer"]) == (False, 418, "ok")
    assert town.receiver.received[0].headers["x-event-type"] == "webhook.test"
    await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": "http://127.0.0.1:9/nobody"})
    answer = (await town.api.call("POST", "/v1/merchant/webhook/test")).data
    assert (answer["delivered"], answer["error"]) == (False, "the connection failed")


async def test_a_removed_endpoint_gets_nothing_and_what_it_was_owed_waits_for_the_next(town: Town) -> None:
    town.receiver.status = 500
    await paid(town)
    await until(town.api, "pending")
    assert (await town.api.call("DELETE", "/v1/merchant/webhook")).data == {"deleted": True}
    await hurry(town)
    waiting = await until(town.api, "waiting")
    assert (await town.api.call("POST", f"/v1/webhooks/logs/{waiting['id']}/replay")).status == 409
    since = {"since": "2020-01-01T00:00:00Z"}
    assert (await town.api.call("POST", "/v1/webhooks/replay", since)).status == 409
    for method, path in (("GET", "/v1/merchant/webhook"), ("POST", "/v1/merchant/webhook/test")):
        assert (await town.api.call(method, path)).status == 404
    await paid(town, "unheard")
    assert [row["status"] for row in await logs(town.api)] == ["waiting"] * 2
    assert [event["type"] for event in (await town.api.call("GET", "/v1/events")).data] == ["payment.completed"] * 2


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
"""Addresses that are not called."""


async def test_an_address_that_is_not_called_cannot_be_set(town: Town) -> None:
    for url in UNCALLED:
        answer = await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": url})
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
async def test_address_is_kept_in_its_normal_form(town: Town, url: str, kept: str) -> None:
    answer = await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": url})
    assert (answer.status, answer.data["webhook_url"]) == (200, kept)
    assert (await town.api.call("GET", "/v1/merchant/webhook")).data["webhook_url"] == kept


async def test_without_permission_loopback_is_refused_when_sent_as_well(values: dict[str, Any]) -> None:
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
        failed = await until(api, "pending")
        assert "must be an https address" in failed["last_error"]
        assert receiver.received == []


async def test_a_lost_wake_up_is_made_good_by_the_sweep(town: Town) -> None:
    await town.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = now() + interval '1 hour'")
    await paid(town)
    await asyncio.sleep(0.3)
    await town.gateway.valkey.flushdb()
    await town.gateway.db.execute("UPDATE webhook_endpoint SET closed_until = NULL")
    await town.gateway.db.execute("UPDATE delivery SET due_at = now()")
    # No help: the cron, which Valkey has forgotten too, comes back by itself.
    assert await town.receiver.wait_for(1, patience=20)


async def test_a_crash_while_sending_sends_the_same_id_again(town: Town) -> None:
    await paid(town)
    await town.receiver.wait_for(1)
    await until(town.api, "delivered")
    # As a crash after the POST and before its record leaves it, once the lease has run out.
    await town.gateway.db.execute(
        "UPDATE delivery SET status = 'pending', attempts = 0, due_at = now(), delivered_at = NULL, "
        "leased_until = now() - interval '1 second'"
    )
    await town.gateway.services.get(DeliveryService).sweep()
    first, second = await town.receiver.wait_for(2)
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


async def test_one_that_cannot_be_noted_holds_up_no_other_and_is_sent_again(values: dict[str, Any]) -> None:
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


async def test_two_workers_never_send_one_delivery_at_the_same_time(town: Town) -> None:
    town.receiver.delay = 0.5
    await paid(town)
    await town.receiver.wait_for(1)
    (row,) = await logs(town.api)
    deliveries = town.gateway.services.get(DeliveryService)
    assert await asyncio.gather(*(deliveries.deliver([row["id"]]) for _ in range(5))) == [0] * 5
    await until(town.api, "delivered")
    assert len(town.receiver.received) == 1


async def test_a_slow_endpoint_that_is_owed_much_gets_nothing_twice(values: dict[str, Any]) -> None:
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
            # As two workers do that are woken again and again: longer than any lease lasts.
            await asyncio.gather(deliveries.deliver(ids), deliveries.deliver(ids))
            return bool(await gateway.db.fetchval("SELECT bool_and(status = 'delivered') FROM delivery"))

        first = asyncio.create_task(deliveries.deliver(ids))
        await eventually(work, patience=60)
        await first
        sent = [one.headers["webhook-id"] for one in receiver.received]
        assert len(sent) == len(set(sent)) == 25


async def test_what_was_claimed_before_an_endpoint_broke_down_does_not_hammer_it(values: dict[str, Any]) -> None:
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


async def test_events_are_listed_and_filtered(town: Town) -> None:
    payment = await paid(town)
    (event,) = (await town.api.call("GET", "/v1/events?type=payment.completed&since=2026-01-01T00:00:00Z")).data
    assert event["data"]["payment_id"] == payment["id"]
    assert (await town.api.call("GET", f"/v1/events/{event['id']}")).data == event
    assert (await town.api.call("GET", "/v1/events?type=payment.failed")).data == []
    asked = f"payment_id={payment['id']}&event_type=payment.completed&status=delivered"
    (row,) = await eventually(lambda: logs(town.api, asked))
    assert row["event_id"] == event["id"]
    assert await logs(town.api, "status=dead") == []
    wrong = await town.api.call("GET", "/v1/webhooks/logs?status=lost")
    assert (wrong.status, wrong.error["field"]) == (422, "status")


async def test_an_attempt_that_is_the_only_one_stands_in_its_delivery_until_there_is_a_second(town: Town) -> None:
    db = town.gateway.db
    town.receiver.answer = lambda _, number: 200 if number == 1 else 204
    await paid(town)
    done = await until(town.api, "delivered")
    (first,) = (await town.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert (first["status"], first["error"], first["answer"]) == (200, None, "ok")
    assert first["at"] == done["last_attempt_at"]
    assert first["ms"] >= 0
    assert await db.fetchval("SELECT count(*) FROM attempt") == 0
    await town.api.call("POST", f"/v1/webhooks/logs/{done['id']}/replay")
    await eventually(lambda: db.fetchval("SELECT count(*) = 2 FROM attempt"))
    again = (await town.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert again[0] == first
    assert [attempt["status"] for attempt in again] == [200, 204]


async def test_an_answer_in_a_delivery_is_forgotten_like_those_in_attempts(town: Town) -> None:
    db = town.gateway.db
    await paid(town)
    done = await until(town.api, "delivered")
    assert await db.execute(FORGET_ANSWERS, done["id"], 10) == "UPDATE 0"
    assert await db.execute(FORGET_ANSWERS, identifier("dlv", at=datetime(2100, 1, 1, tzinfo=UTC)), 10) == "UPDATE 1"
    (attempt,) = (await town.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert (attempt["status"], attempt["answer"]) == (200, "")


async def test_attempts_at_two_addresses_each_show_their_own(town: Town) -> None:
    old = town.receiver.url
    new = f"{old}?new"
    town.receiver.answer = lambda _, number: 500 if number == 1 else 200
    await paid(town)
    failed = await until(town.api, "pending")
    await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": new})
    await town.api.call("POST", f"/v1/webhooks/logs/{failed['id']}/replay")
    await until(town.api, "delivered")
    log = (await town.api.call("GET", f"/v1/webhooks/logs/{failed['id']}")).data["attempt_log"]
    assert [(attempt["status"], attempt["url"]) for attempt in log] == [(500, old), (200, new)]


async def test_attempt_in_its_delivery_keeps_its_address(town: Town) -> None:
    old = town.receiver.url
    await paid(town)
    done = await until(town.api, "delivered")
    for number in range(2):
        await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": f"{old}?{number}"})
    # The same address with another secret is no other address.
    await town.api.call("PUT", "/v1/merchant/webhook", {"webhook_url": f"{old}?1"})
    assert await town.gateway.db.fetchval("SELECT count(*) FROM webhook_former_address") == 2
    (attempt,) = (await town.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert attempt["url"] == old
    await town.api.call("POST", f"/v1/webhooks/logs/{done['id']}/replay")
    await eventually(lambda: town.gateway.db.fetchval("SELECT count(*) = 2 FROM attempt"))
    log = (await town.api.call("GET", f"/v1/webhooks/logs/{done['id']}")).data["attempt_log"]
    assert [attempt["url"] for attempt in log] == [old, f"{old}?1"]
