"""Events: written with the change they tell of, heard by everyone who wants to know, whatever dies in between."""

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
from mpesa_gateway.db.outbox import NotInTransaction, Sweep
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
    """Somebody stands at the door."""

    kind: ClassVar[str] = "bell.rang"
    times: int = 1
    alms: Kes | None = None
    caller: Msisdn | None = None


class DoorOpened(PublicEvent, frozen=True, kw_only=True):
    """Merchants hear of it, and nobody here does."""

    kind: ClassVar[str] = "door.opened"

    def data(self) -> dict[str, Any]:
        return {"door": self.subject_id}


class Ears:
    """Hears the bell: fails as often as it is told, takes as long as it is told."""

    def __init__(self) -> None:
        self.heard: list[BellRang] = []
        self.failures = 0
        self.hold: asyncio.Event | None = None

    async def hear(self, event: BellRang, gateway: Runtime) -> None:
        """Remember it."""
        assert gateway.is_running
        self.heard.append(event)
        if self.hold is not None:
            await self.hold.wait()
        if self.failures:
            self.failures -= 1
            raise LookupError("nobody at home")

    @property
    def name(self) -> str:
        """What the outbox calls these ears."""
        return on_event(BellRang, self.hear).name

    @property
    def plugin(self) -> Plugin:
        """The plugin that these ears are."""
        return Plugin(
            name="bell",
            summary="A bell.",
            publishes=(BellRang, DoorOpened),
            subscribers=(on_event(BellRang, self.hear),),
        )


@asynccontextmanager
async def house(values: dict[str, Any], ears: Ears, **changes: Any) -> AsyncGenerator[Gateway]:
    """A gateway with nothing but a bell, without a worker unless one is asked for."""
    bare: dict[str, Any] = {"plugins": [], "worker": {"in_process": False}}
    config = GatewayConfig.from_values({name: values[name] for name in values if name != "simulator"} | bare | changes)
    async with Gateway(config, plugins=(ears.plugin,)).running() as gateway:
        yield gateway


SWEEP = "kernel.sweep_events"
WORKING: dict[str, Any] = {"worker": {"in_process": True, "grace": 5}}


async def ring(gateway: Gateway, times: int = 1) -> BellRang:
    """Ring, in a transaction of its own."""
    async with gateway.db.transaction():
        return (await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR, times=times)]))[0]


async def test_amounts_and_phone_numbers_are_heard_as_they_were_published(values: dict[str, Any]) -> None:
    ears = Ears()
    rang = BellRang(merchant_id="", subject_id=DOOR, alms=Kes(70), caller=Msisdn("254711000001"))
    async with house(values, ears, **WORKING) as gateway:
        async with gateway.db.transaction():
            (published,) = await gateway.outbox.publish([rang])
        await eventually(lambda: done(gateway), 8)
    assert ears.heard == [published]
    assert (type(ears.heard[0].alms), type(ears.heard[0].caller)) == (Kes, Msisdn)


async def task_of(gateway: Gateway) -> Row:
    """What is owed, or was."""
    row = await gateway.db.fetchrow("SELECT *, due_at - now() AS wait FROM event_task")
    assert row is not None
    return row


async def make_due(gateway: Gateway) -> None:
    """Let everything owed be due: the gateway's clock may be a moment behind Postgres'."""
    await gateway.db.execute("UPDATE event_task SET due_at = now() - interval '1 minute'")


@pytest.fixture
def swept_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker's own sweep, every ten seconds, not be faster than the test's."""
    monkeypatch.setitem(KERNEL_JOBS, SWEEP, replace(KERNEL_JOBS[SWEEP], cron=None))


async def test_a_subscriber_that_failed_is_tried_again_by_the_worker_alone(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KERNEL_JOBS[SWEEP].cron == "* * * * * */10"
    monkeypatch.setitem(KERNEL_JOBS, SWEEP, replace(KERNEL_JOBS[SWEEP], cron="* * * * * *"))
    monkeypatch.setattr(outbox, "PAUSES", (1,))
    ears = Ears()
    ears.failures = 1
    async with house(values, ears, **WORKING) as gateway:
        event = await ring(gateway)
        await eventually(lambda: done(gateway), 8)
        assert ears.heard == [event, event]
        assert (await task_of(gateway))["attempts"] == 2


async def done(gateway: Gateway) -> bool:
    """Whether nothing is owed any more."""
    return not await gateway.db.fetchval("SELECT EXISTS (SELECT 1 FROM event_task WHERE done_at IS NULL)")


async def test_an_event_without_its_change_is_refused(values: dict[str, Any]) -> None:
    async with house(values, Ears()) as gateway:
        with pytest.raises(NotInTransaction, match=r"publish bell\.rang inside the transaction"):
            await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR)])
        assert await gateway.db.fetchval("SELECT count(*) FROM event") == 0


async def test_what_committed_is_heard_once_and_what_rolled_back_never(values: dict[str, Any]) -> None:
    ears = Ears()

    async def ring_and_fail(gateway: Gateway) -> None:
        async with gateway.db.transaction():
            await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR, times=7)])
            raise KeyError

    async with house(values, ears, **WORKING) as gateway:
        with pytest.raises(KeyError):
            await ring_and_fail(gateway)
        async with gateway.db.transaction():
            (published,) = await gateway.outbox.publish([BellRang(merchant_id="", subject_id=DOOR, times=2)])
            await asyncio.sleep(0.3)
            assert ears.heard == []
        # Sooner than the sweeper would have found it: the wake-up came with the commit.
        await eventually(lambda: done(gateway), 8)
        await gateway.outbox.sweep()
        await asyncio.sleep(0.3)
        assert ears.heard == [published]
        assert published.event_id.startswith("evt_")
        assert published.occurred_at.utcoffset() is not None
        assert await gateway.db.fetchval("SELECT count(*) FROM event") == 1


@pytest.mark.usefixtures("swept_by_hand")
async def test_a_subscriber_that_fails_is_tried_again_and_its_failure_noted(values: dict[str, Any]) -> None:
    ears = Ears()
    ears.failures = 2
    async with house(values, ears, **WORKING) as gateway:
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
        assert 3 < first["wait"].total_seconds() <= 5
        await make_due(gateway)
        assert await gateway.outbox.sweep() == Sweep(1)
        second = await failed(2)
        assert 20 < second["wait"].total_seconds() <= 30
        await make_due(gateway)
        await gateway.outbox.sweep()
        await eventually(lambda: done(gateway))
        assert len(ears.heard) == 3
        assert len({event.event_id for event in ears.heard}) == 1
        await make_due(gateway)
        assert await gateway.outbox.sweep() == Sweep(0)


@pytest.mark.usefixtures("swept_by_hand")
async def test_a_lost_wake_up_is_made_good_by_the_sweep(values: dict[str, Any]) -> None:
    ears = Ears()
    async with house(values, ears) as gateway:
        await ring(gateway)
        await gateway.valkey.flushdb()
        await make_due(gateway)
        worker = gateway.worker()
        working = asyncio.create_task(run_worker(worker))
        assert await gateway.outbox.sweep() == Sweep(1)
        # One that is under way is not handed over again.
        assert await gateway.outbox.sweep() == Sweep(0)
        await eventually(lambda: done(gateway), 8)
        worker.stop()
        await working
        assert len(ears.heard) == 1


async def test_while_valkey_is_away_events_are_kept_and_delivered_when_it_is_back(
    values: dict[str, Any], tmp_path: Path
) -> None:
    ears, valkey = Ears(), EmbeddedValkey(tmp_path)
    url = valkey.start()
    try:
        async with house(values, ears, valkey={"url": url}, **WORKING) as gateway:
            await asyncio.to_thread(valkey.stop)
            await ring(gateway, 3)
            assert not await done(gateway)
            assert ears.heard == []
            assert await asyncio.to_thread(valkey.start) == url

            async def delivered() -> bool:
                await make_due(gateway)
                await gateway.outbox.sweep()
                await asyncio.sleep(0.3)
                return await done(gateway)

            await eventually(delivered, 20)
            assert [event.times for event in ears.heard] == [3]
    finally:
        await asyncio.to_thread(valkey.stop)


async def test_two_workers_at_one_event_run_its_handler_once(values: dict[str, Any]) -> None:
    ears = Ears()
    ears.hold = asyncio.Event()
    async with house(values, ears) as gateway:
        event = await ring(gateway)
        workers = [asyncio.create_task(gateway.outbox.handle(event.event_id, ears.name)) for _ in range(5)]
        _, running = await asyncio.wait(workers, timeout=1)
        assert len(running) == 1
        ears.hold.set()
        assert sorted(await asyncio.gather(*workers)) == [False, False, False, False, True]
        assert not await gateway.outbox.handle(event.event_id, ears.name)
        assert ears.heard == [event]


async def test_what_a_dead_worker_held_is_free_when_its_lease_is_over(values: dict[str, Any]) -> None:
    ears = Ears()
    async with house(values, ears) as gateway:
        event = await ring(gateway)
        await make_due(gateway)
        await gateway.db.execute("UPDATE event_task SET attempts = 1, leased_until = now() + interval '5 seconds'")
        assert await gateway.outbox.sweep() == Sweep(0)
        assert not await gateway.outbox.handle(event.event_id, ears.name)
        await gateway.db.execute("UPDATE event_task SET leased_until = now() - interval '1 second'")
        assert await gateway.outbox.sweep() == Sweep(1)
        assert await gateway.outbox.handle(event.event_id, ears.name)
        assert ears.heard == [event]
        assert (await task_of(gateway))["attempts"] == 2


async def test_what_nobody_hears_any_more_stays_owed(values: dict[str, Any]) -> None:
    ears = Ears()
    async with house(values, ears) as gateway:
        event = await ring(gateway)
        assert not await gateway.outbox.handle(event.event_id, "gone.handler")
        assert not await gateway.outbox.handle("evt_none", ears.name)
        assert (await task_of(gateway))["attempts"] == 0


async def test_who_takes_part_in_the_transaction_decides_it(values: dict[str, Any]) -> None:
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

    ears = Ears()
    other = Plugin(name="book", summary="Books.", subscribers=(on_event_in_transaction(BellRang, book),))
    values |= {"plugins": [], "worker": {"in_process": False}}
    del values["simulator"]
    async with running_gateway(values, plugins=(ears.plugin, other)) as (gateway, _):
        refuses = True
        with pytest.raises(PermissionError):
            await act(gateway)
        assert await names(gateway) == set()
        assert await gateway.db.fetchval("SELECT count(*) FROM event") == 0
        assert await gateway.db.fetchval("SELECT count(*) FROM event_task") == 0
        refuses = False
        await act(gateway)
        assert await names(gateway) == {"the change itself", "booked 4"}
        assert (await task_of(gateway))["subscriber"] == ears.name


async def test_an_event_that_merchants_see_is_kept_though_nobody_here_listens(values: dict[str, Any]) -> None:
    async with house(values, Ears()) as gateway:
        merchant = await gateway.merchants.create("Shop", actor="test")
        async with gateway.db.transaction():
            (made,) = await gateway.outbox.publish(
                [DoorOpened(merchant_id=merchant.merchant_id, env="live", subject_id=DOOR)]
            )
        row = await gateway.db.fetchrow("SELECT kind, is_public, body FROM event")
        assert row is not None
        assert (row["kind"], row["is_public"]) == ("door.opened", True)
        at = f"{made.occurred_at:%Y-%m-%dT%H:%M:%S.%fZ}"
        assert row["body"] == (
            f'{{"id":"{made.event_id}","type":"door.opened","env":"live","created_at":"{at}",'
            f'"data":{{"env":"live","door":"{DOOR}"}}}}'
        )
        assert await gateway.db.fetchval("SELECT count(*) FROM event_task") == 0


async def test_two_handlers_of_one_name_are_refused(values: dict[str, Any]) -> None:
    values |= {"plugins": []}
    del values["simulator"]
    twin = Plugin(name="twin", summary="Another.", subscribers=(on_event(BellRang, Ears().hear),))
    with pytest.raises(ValueError, match=r"Ears\.hear is registered twice: give each handler a name of its own"):
        Gateway(GatewayConfig.from_values(values), plugins=(Ears().plugin, twin))
    gateway = Gateway(GatewayConfig.from_values(values), plugins=(Ears().plugin,))
    with pytest.raises(ValueError, match=r"Ears\.hear is registered twice"):
        gateway.outbox.subscribe(on_event(BellRang, Ears().hear))
