"""Protects bodies stored as a form and values: callbacks and webhooks keep every byte, with or without their form."""

from typing import Any

from tests.conftest import Harness
from tests.owner import as_owner
from tests.plugins.callbacks.test_bodies import accepted_bodies, paid_body, send
from tests.plugins.callbacks.test_callbacks import pending_payment

STORED = "SELECT form_id IS NOT NULL FROM {} WHERE subject_id = $1 ORDER BY 1 DESC LIMIT 1"


async def pay(harness: Harness, key: str, **changes: Any) -> tuple[str, bytes]:
    """Returns a payment and the body of its callback."""
    made, url = await pending_payment(harness, key)
    raw = paid_body(made, **changes)
    path = url.removeprefix(harness.base)
    answer = await send(harness.base, path, f"Connection: close\r\nContent-Length: {len(raw)}", raw)
    assert answer.status == 200
    return made["id"], raw


async def is_short(harness: Harness, table: str, payment_id: str) -> bool:
    found: bool = await harness.gateway.db.fetchval(STORED.format(table), payment_id)
    return found


async def webhooks(harness: Harness) -> dict[str, bytes]:
    return {one.json["id"]: one.body for one in harness.receiver.received}


async def test_callbacks_and_webhooks_of_one_form_keep_every_byte(harness: Harness) -> None:
    paid = [await pay(harness, f"k{number}") for number in range(4)]
    await harness.delivered(4)
    for payment_id, raw in paid:
        assert await accepted_bodies(harness, payment_id) == [raw]
    rows = await harness.gateway.db.fetch("SELECT event_id, event.body FROM event WHERE is_public")
    assert {row["event_id"]: row["body"].encode() for row in rows} == await webhooks(harness)
    assert [await is_short(harness, "callback", each) for each, _ in paid] == [False, True, True, True]
    assert [await is_short(harness, "event", each) for each, _ in paid] == [False, True, True, True]


async def test_replayed_short_webhook_has_the_same_bytes(harness: Harness) -> None:
    paid = [await pay(harness, f"k{number}") for number in range(2)]
    await harness.delivered(2)
    first = await webhooks(harness)
    assert await is_short(harness, "event", paid[1][0])
    (delivery,) = (await harness.api.call("GET", f"/v1/webhooks/logs?payment_id={paid[1][0]}")).data
    assert (await harness.api.call("POST", f"/v1/webhooks/logs/{delivery['id']}/replay")).status == 200
    await harness.receiver.wait_for(3)
    again = harness.receiver.received[-1]
    assert again.body == first[again.json["id"]]


async def test_form_lost_in_a_failover_leaves_later_bodies_whole(harness: Harness) -> None:
    await pay(harness, "k1")
    async with as_owner(harness.gateway) as owner:
        await owner.execute("ALTER TABLE body_form DISABLE TRIGGER USER")
        await owner.execute("DELETE FROM body_form")
        await owner.execute("ALTER TABLE body_form ENABLE TRIGGER USER")
    payment_id, raw = await pay(harness, "k2")
    await harness.delivered(2)
    assert not await is_short(harness, "callback", payment_id)
    assert not await is_short(harness, "event", payment_id)
    assert await accepted_bodies(harness, payment_id) == [raw]
    rows = await harness.gateway.db.fetch("SELECT event_id, event.body FROM event WHERE is_public")
    assert {row["event_id"]: row["body"].encode() for row in rows} == await webhooks(harness)
