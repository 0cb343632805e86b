"""Protects events: stored with their change, delivered to every subscriber, and retried after any crash."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db import outbox
from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.outbox import NotInTransaction
from mpesa_gateway.events import Event, PublicEvent
from mpesa_gateway.kernel_jobs import KERNEL_JOBS
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.plugin import Plugin, on_event, on_event_in_transaction
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.standalone.valkey import EmbeddedValkey
from mpesa_gateway.testing.serving import eventually, running_gateway
from mpesa_gateway.worker import run_worker
from tests.identifiers import identifier

DOOR = identifier("dor")


class BellRang(Event, frozen=True, kw_only=True):
    """An event that only subscribers receive."""

    kind: ClassVar[str] = "bell.rang"
    times: int = 1
    alms: Kes | None = None
    caller: Msisdn | None = None


class DoorOpened(PublicEvent, frozen=True, kw_only=True):
    """An event that only merchants receive."""

    kind: ClassVar[str] = "door.opened"

    def data(self) -> dict[str, Any]:
        return {"door": self.subject_id}


class BellSubscriber:
    """A subscriber of the bell that fails ``failures`` times and waits for ``hold``."""

    def __init__(self) -> None:
        self.heard: list[BellRang] = []
        self.failures = 0
        self.hold: asyncio.Event | None = None

    async def hear(self, event: BellRang, gateway: Runtime) -> None:
        assert gateway.is_running
        self.heard.append(event)
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            self.failures -= 1
            raise LookupError("no answer")

    @property
    def name(self) -> str:
        """The name of this subscriber in the outbox."""
        return on_event(BellRang, self.hear).name

    @property
    def plugin(self) -> Plugin:
        """The plugin with this subscriber."""
        return Plugin(
            name="bell",
            summary="A bell.",
            publishes=(BellRang, DoorOpened),
            subscribers=(on_event(BellRang, self.hear),),
        )


@asynccontextmanager
async def bell_gateway(values: dict[str, Any], subscriber: BellSubscriber, **changes: Any) -> AsyncGenerator[Gateway]:
    """Yield a gateway with only the bell's plugin, without a worker by default."""
    bare: dict[str, Any] = {"plugins": [], "worker": {"in_process": False}}
    config = GatewayConfig.from_values({name: values[name] for name in values if name != "simulator"} | bare | changes)
    async with Gateway(config, plugins=(subscriber.plugin,)).running() as gateway:
        yield gateway


SWEEP = "kernel.sweep_events"
WORKING: dict[str, Any] = {"worker": {"in_process": True, "grace": 5}}


async def ring(gateway: Gateway, times: int = 1) -> BellRang:
    """Publish a ring in a transaction of its own."""
    async with gateway.db.transaction():
        return (await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR, times=times)]))[0]


async def test_subscriber_receives_amounts_and_phone_numbers_as_published(values: dict[str, Any]) -> None:
    subscriber = BellSubscriber()
    rang = BellRang(merchant_id="", subject_id=DOOR, alms=Kes(70), caller=Msisdn("254711000001"))
    async with bell_gateway(values, subscriber, **WORKING) as gateway:
        async with gateway.db.transaction():
            (published,) = await gateway.outbox.publish([rang])
        await eventually(lambda: done(gateway), 8)
    assert subscriber.heard == [published]
    assert (type(subscriber.heard[0].alms), type(subscriber.heard[0].caller)) == (Kes, Msisdn)


async def task_of(gateway: Gateway) -> Row:
    """Return the task of the event."""
    row = await gateway.db.fetchrow("SELECT *, due_at - now() AS wait FROM event_task")
    assert row is not None
    return row


async def make_due(gateway: Gateway) -> None:
    """Make every task due: the gateway's clock may be slightly behind Postgres'."""
    await gateway.db.execute("UPDATE event_task SET due_at = now() - interval '1 minute'")


@pytest.fixture
def swept_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the worker's own sweep, every ten seconds, so that it does not precede the test's."""
    monkeypatch.setitem(KERNEL_JOBS, SWEEP, replace(KERNEL_JOBS[SWEEP], cron=None))


async def test_failed_subscriber_is_retried_by_the_worker(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KERNEL_JOBS[SWEEP].cron == "* * * * * */10"
    monkeypatch.setitem(KERNEL_JOBS, SWEEP, replace(KERNEL_JOBS[SWEEP], cron="* * * * * *"))
    monkeypatch.setattr(outbox, "PAUSES", (1,))
    subscriber = BellSubscriber()
    subscriber.failures = 1
    async with bell_gateway(values, subscriber, **WORKING) as gateway:
        event = await ring(gateway)
        await eventually(lambda: done(gateway), 8)
        assert subscriber.heard == [event, event]
        assert (await task_of(gateway))["attempts"] == 2


async def done(gateway: Gateway) -> bool:
    """Return True if no task is open."""
    return not await gateway.db.fetchval("SELECT EXISTS (SELECT 1 FROM event_task WHERE done_at IS NULL)")


async def test_publish_outside_a_transaction_raises(values: dict[str, Any]) -> None:
    async with bell_gateway(values, BellSubscriber()) as gateway:
        with pytest.raises(NotInTransaction, match=r"publish bell\.rang inside the transaction"):
            await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR)])
        assert await gateway.db.fetchval("SELECT count(*) FROM event") == 0


async def test_event_is_delivered_once_after_commit_and_never_after_rollback(values: dict[str, Any]) -> None:
    subscriber = BellSubscriber()

    async def ring_and_fail(gateway: Gateway) -> None:
        async with gateway.db.transaction():
            await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR, times=7)])
            raise KeyError

    async with bell_gateway(values, subscriber, **WORKING) as gateway:
        with pytest.raises(KeyError):
            await ring_and_fail(gateway)
        async with gateway.db.transaction():
            (published,) = await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR, times=2)])
            await asyncio.sleep(0.3)
            assert subscriber.heard == []
        # Sooner than the sweep would have found it: the job is enqueued with the commit.
        await eventually(lambda: done(gateway), 8)
        await gateway.outbox.sweep()
        await asyncio.sleep(0.3)
        assert subscriber.heard == [published]
        assert published.event_id.startswith("evt_")
        assert published.occurred_at.utcoffset() is not None
        assert await gateway.db.fetchval("SELECT count(*) FROM event") == 1


@pytest.mark.usefixtures("swept_by_hand")
async def test_failed_subscriber_is_retried_with_pauses_and_its_error_stored(values: dict[str, Any]) -> None:
    subscriber = BellSubscriber()
    subscriber.failures = 2
    async with bell_gateway(values, subscriber, **WORKING) as gateway:
        await ring(gateway)

        async def failed(attempts: int) -> Row:
            async def has_failed() -> bool:
                row = await task_of(gateway)
                is_over = row["attempts"] == attempts and row["leased_until"] is None
                # While the job is in the queue, it is not added again.
                return is_over and await gateway.jobs.queues["default"].count("incomplete") == 0

            await eventually(has_failed)
            return await task_of(gateway)

        first = await failed(1)
        assert (first["last_error"], first["done_at"]) == ("LookupError", None)
        assert 3 < first["wait"].total_seconds() < 6
        await make_due(gateway)
        assert await gateway.outbox.sweep() == 1
        second = await failed(2)
        assert 20 < second["wait"].total_seconds() < 31
        await make_due(gateway)
        await gateway.outbox.sweep()
        await eventually(lambda: done(gateway))
        assert len(subscriber.heard) == 3
        assert len({event.event_id for event in subscriber.heard}) == 1
        await make_due(gateway)
        assert await gateway.outbox.sweep() == 0


@pytest.mark.usefixtures("swept_by_hand")
async def test_sweep_enqueues_an_event_whose_job_was_lost(values: dict[str, Any]) -> None:
    subscriber = BellSubscriber()
    async with bell_gateway(values, subscriber) as gateway:
        await ring(gateway)
        await gateway.valkey.flushdb()
        await make_due(gateway)
        worker = gateway.worker()
        working = asyncio.create_task(run_worker(worker))
        assert await gateway.outbox.sweep() == 1
        # An event in progress is not enqueued again.
        assert await gateway.outbox.sweep() == 0
        await eventually(lambda: done(gateway), 8)
        worker.stop()
        await working
        assert len(subscriber.heard) == 1


async def test_event_published_without_valkey_is_delivered_after_its_return(
    values: dict[str, Any], tmp_path: Path
) -> None:
    subscriber, valkey = BellSubscriber(), EmbeddedValkey(tmp_path)
    url = valkey.start()
    try:
        async with bell_gateway(values, subscriber, valkey={"url": url}, **WORKING) as gateway:
            await asyncio.to_thread(valkey.stop)
            await ring(gateway, 3)
            assert not await done(gateway)
            assert subscriber.heard == []
            assert await asyncio.to_thread(valkey.start) == url

            async def delivered() -> bool:
                await make_due(gateway)
                await gateway.outbox.sweep()
                await asyncio.sleep(0.3)
                return await done(gateway)

            await eventually(delivered, 20)
            assert [event.times for event in subscriber.heard] == [3]
    finally:
        await asyncio.to_thread(valkey.stop)


async def test_handle_by_several_workers_runs_the_subscriber_once(values: dict[str, Any]) -> None:
    subscriber = BellSubscriber()
    subscriber.hold = asyncio.Event()
    async with bell_gateway(values, subscriber) as gateway:
        event = await ring(gateway)
        workers = [asyncio.create_task(gateway.outbox.handle(event.event_id, subscriber.name)) for _ in range(5)]
        _, running = await asyncio.wait(workers, timeout=1)
        assert len(running) == 1
        subscriber.hold.set()
        assert sorted(await asyncio.gather(*workers)) == [False, False, False, False, True]
        assert not await gateway.outbox.handle(event.event_id, subscriber.name)
        assert subscriber.heard == [event]


async def test_handle_after_an_expired_lease_runs_the_subscriber(values: dict[str, Any]) -> None:
    subscriber = BellSubscriber()
    async with bell_gateway(values, subscriber) as gateway:
        event = await ring(gateway)
        await make_due(gateway)
        await gateway.db.execute("UPDATE event_task SET attempts = 1, leased_until = now() + interval '5 seconds'")
        assert await gateway.outbox.sweep() == 0
        assert not await gateway.outbox.handle(event.event_id, subscriber.name)
        await gateway.db.execute("UPDATE event_task SET leased_until = now() - interval '1 second'")
        assert await gateway.outbox.sweep() == 1
        assert await gateway.outbox.handle(event.event_id, subscriber.name)
        assert subscriber.heard == [event]
        assert (await task_of(gateway))["attempts"] == 2


async def test_handle_for_an_unknown_subscriber_keeps_the_task(values: dict[str, Any]) -> None:
    subscriber = BellSubscriber()
    async with bell_gateway(values, subscriber) as gateway:
        event = await ring(gateway)
        assert not await gateway.outbox.handle(event.event_id, "gone.handler")
        assert not await gateway.outbox.handle("evt_none", subscriber.name)
        assert (await task_of(gateway))["attempts"] == 0


async def test_subscriber_inside_the_transaction_can_roll_it_back(values: dict[str, Any]) -> None:
    refuses = False

    async def book(events: Sequence[BellRang], gateway: Runtime) -> None:
        assert gateway.db.in_transaction
        (event,) = events
        await gateway.merchants.create(f"booked {event.times}", actor="test")
        if refuses:
            raise PermissionError("not at night")

    async def act(gateway: Gateway) -> None:
        async with gateway.db.transaction():
            await gateway.merchants.create("the change itself", actor="test")
            await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR, times=4)])

    async def names(gateway: Gateway) -> set[str]:
        return {merchant.name for merchant in (await gateway.merchants.page(10)).rows}

    subscriber = BellSubscriber()
    other = Plugin(name="book", summary="Books.", subscribers=(on_event_in_transaction(BellRang, book),))
    values |= {"plugins": [], "worker": {"in_process": False}}
    del values["simulator"]
    async with running_gateway(values, plugins=(subscriber.plugin, other)) as (gateway, _):
        refuses = True
        with pytest.raises(PermissionError):
            await act(gateway)
        assert await names(gateway) == set()
        assert await gateway.db.fetchval("SELECT count(*) FROM event") == 0
        assert await gateway.db.fetchval("SELECT count(*) FROM event_task") == 0
        refuses = False
        await act(gateway)
        assert await names(gateway) == {"the change itself", "booked 4"}
        assert (await task_of(gateway))["subscriber"] == subscriber.name


async def test_public_event_without_subscribers_is_stored(values: dict[str, Any]) -> None:
    async with bell_gateway(values, BellSubscriber()) as gateway:
        merchant = await gateway.merchants.create("Shop", actor="test")
        async with gateway.db.transaction():
            (made,) = await gateway.outbox.publish(
                [DoorOpened(merchant_id=merchant.merchant_id, env="live", subject_id=DOOR)]
            )
        row = await gateway.db.fetchrow("SELECT kind, is_public, event.body FROM event")
        assert row is not None
        assert (row["kind"], row["is_public"]) == ("door.opened", True)
        at = f"{made.occurred_at:%Y-%m-%dT%H:%M:%S.%fZ}"
        assert row["body"] == (
            f'{{"id":"{made.event_id}","type":"door.opened","env":"live","created_at":"{at}",'
            f'"data":{{"env":"live","door":"{DOOR}"}}}}'
        )
        assert await gateway.db.fetchval("SELECT count(*) FROM event_task") == 0


async def test_subscribers_with_one_name_are_refused(values: dict[str, Any]) -> None:
    values |= {"plugins": []}
    del values["simulator"]
    twin = Plugin(name="twin", summary="Another.", subscribers=(on_event(BellRang, BellSubscriber().hear),))
    with pytest.raises(ValueError, match=r"BellSubscriber\.hear is registered twice: give each handler a name"):
        Gateway(GatewayConfig.from_values(values), plugins=(BellSubscriber().plugin, twin))
    gateway = Gateway(GatewayConfig.from_values(values), plugins=(BellSubscriber().plugin,))
    with pytest.raises(ValueError, match=r"BellSubscriber\.hear is registered twice"):
        gateway.outbox.subscribe(on_event(BellRang, BellSubscriber().hear))
