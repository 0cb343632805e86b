"""What happened, written in the same transaction as the change itself, and handed to everyone who wants to know."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from mpesa_gateway.clock import Clock, rfc3339
from mpesa_gateway.correlation import context_of, use_context
from mpesa_gateway.db.deferred import DeferredWrite
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.json_codec import dumps, loads, plain
from mpesa_gateway.events import Event, PublicEvent
from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import trace

log = structlog.get_logger(__name__)

E = TypeVar("E", bound=Event)

HANDLE = "kernel.handle_event"
"""The queue's name for the job that runs one subscriber on one event."""

LEASE = timedelta(seconds=120)
"""For how long one worker has a (event, subscriber) to itself; afterwards another may try."""

PAUSES = (5, 30, 120, 600, 1800, 3600)
"""Seconds until a failed subscriber is tried again; the last one repeats."""

# raw SQL: hot path - each event is stored, claimed and settled.
INSERT_EVENTS = """
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, body)
SELECT event_id, kind, merchant_id, env, subject_id, occurred_at, body IS NOT NULL, payload::jsonb, body
FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::uuid[], $6::timestamptz[], $7::text[], $8::text[])
    AS t(event_id, kind, merchant_id, env, subject_id, occurred_at, payload, body)
ORDER BY event_id
RETURNING event_id
"""

FIND_EVENT = """
SELECT event_id, kind, merchant_id, env, subject_id, occurred_at, payload, body FROM event WHERE event_id = $1
"""

INSERT_TASKS = """
INSERT INTO event_task (event_id, subscriber, due_at)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS t(event_id, subscriber, due_at)
ORDER BY event_id, subscriber
RETURNING event_id
"""

CLAIM_TASK = """
UPDATE event_task SET leased_until = $4, attempts = attempts + 1
WHERE event_id = $1 AND subscriber = $2 AND done_at IS NULL AND (leased_until IS NULL OR leased_until < $3)
RETURNING attempts
"""

DUE_TASKS = """
UPDATE event_task SET due_at = $2
WHERE (event_id, subscriber) IN (
    SELECT event_id, subscriber FROM event_task
    WHERE done_at IS NULL AND due_at <= $1 AND (leased_until IS NULL OR leased_until < $1)
    ORDER BY due_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING event_id, subscriber
"""


@dataclass(frozen=True)
class Subscriber:
    """A handler of one kind of event.

    After commit it runs in a job of its own, with one event. With ``inside`` it runs in the publisher's transaction,
    with the sequence of events that are published together.
    """

    event: type[Event]
    handler: Callable[[Any, Any], Awaitable[None]]
    inside: bool = False

    @property
    def name(self) -> str:
        """What the outbox calls this subscriber: stable across releases."""
        return f"{self.handler.__module__}.{self.handler.__qualname__}"


class NotInTransaction(RuntimeError):
    """An event was published without the change that it tells of."""


@dataclass(frozen=True)
class Sweep:
    """How many owed tasks were handed to the queue."""

    woken: int


class JobWaker(Protocol):
    """The queues, as far as the outbox uses them."""

    def wake(self, name: str, /, **kwargs: Any) -> None:
        """Like ``enqueue``, without waiting for it."""
        ...

    async def enqueue(self, name: str, /, *, once: str | None = None, **kwargs: Any) -> bool:
        """Wake a job; nothing is added while one of this name waits or runs with the same ``once``."""
        ...


class Outbox:
    """Publishes events inside the change's transaction and wakes their subscribers after commit."""

    def __init__(
        self,
        subscribers: Sequence[Subscriber],
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        jobs: JobWaker,
        event_type: Callable[[str], type[Event]],
        context: Any,
    ) -> None:
        """``context`` is handed to each subscriber; ``event_type`` returns an event's class by its name."""
        self._db = db
        self._clock = clock
        self._ids = ids
        self._jobs = jobs
        self._event_type = event_type
        self._context = context
        self._subscribers = list(subscribers)
        names = [subscriber.name for subscriber in self._subscribers if not subscriber.inside]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"subscriber {name} is registered twice: give each handler a name of its own")

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a host's subscriber. Raises ValueError for a name that is taken."""
        if any(other.name == subscriber.name for other in self._subscribers):
            raise ValueError(f"subscriber {subscriber.name} is registered twice: give each handler a name of its own")
        self._subscribers.append(subscriber)

    async def publish(self, events: Sequence[E]) -> list[E]:
        """Write events in the open transaction; returns them with their ids and times.

        Each subscriber inside the transaction runs once, with its events. The others run after commit, each event in a
        job of its own. Raises NotInTransaction when no transaction is open.
        """
        if events and not self._db.in_transaction:
            raise NotInTransaction(f"publish {events[0].kind} inside the transaction that makes it true")
        stamped = [
            msgspec.structs.replace(event, event_id=self._ids.new("evt", now), occurred_at=now)
            for event, now in ((event, self._clock.now()) for event in events)
        ]
        owed = [
            (event, subscriber.name)
            for event in stamped
            for subscriber in self._subscribers
            if not subscriber.inside and isinstance(event, subscriber.event)
        ]
        durable = {event.event_id for event, _ in owed}
        await self._write([event for event in stamped if event.event_id in durable or isinstance(event, PublicEvent)])
        if owed:
            await self._insert_tasks(owed)
        for subscriber in self._subscribers:
            if subscriber.inside:
                heard = [event for event in stamped if isinstance(event, subscriber.event)]
                if heard:
                    await subscriber.handler(heard, self._context)
        return stamped

    async def _write(self, events: Sequence[Event]) -> None:
        if events:
            args = (
                [event.event_id for event in events],
                [event.kind for event in events],
                [event.merchant_id or None for event in events],
                [event.env for event in events],
                [event.subject_id or None for event in events],
                [event.occurred_at for event in events],
                [payload_of(event) for event in events],
                [public_body(event) if isinstance(event, PublicEvent) else None for event in events],
            )
            await self._db.defer(DeferredWrite(INSERT_EVENTS, args))

    async def _insert_tasks(self, owed: Sequence[tuple[Event, str]]) -> None:
        """Note which durable subscribers have to hear of which event, and wake them after commit."""
        args = (
            [event.event_id for event, _ in owed],
            [name for _, name in owed],
            [event.occurred_at + timedelta(seconds=15) for event, _ in owed],
        )
        await self._db.defer(DeferredWrite(INSERT_TASKS, args))

        async def wake() -> None:
            for event, name in owed:
                with use_context(context_of(event.subject_id)):
                    self._jobs.wake(HANDLE, once=f"{event.event_id}:{name}", event_id=event.event_id, subscriber=name)

        await self._db.after_commit(wake)

    async def handle(self, event_id: str, subscriber_name: str) -> bool:
        """Run one durable subscriber on one event, unless that is done or another worker is at it.

        A failure is kept with its time and tried again; the exception goes no further.
        """
        subscriber = next((s for s in self._subscribers if s.name == subscriber_name and not s.inside), None)
        if subscriber is None:
            log.error("subscriber_missing", event_id=event_id, subscriber=subscriber_name)
            return False
        now = self._clock.now()
        attempts = await self._db.fetchval(CLAIM_TASK, event_id, subscriber_name, now, now + LEASE)
        if attempts is None:
            return False
        row = await self._db.fetchrow(FIND_EVENT, event_id)
        if row is None:
            return False
        try:
            event = event_of(row, self._event_type(row["kind"]))
            await subscriber.handler(event, self._context)
        except Exception as problem:  # noqa: BLE001 - whatever a subscriber raises: it is tried again
            pause = PAUSES[min(int(attempts), len(PAUSES)) - 1]
            log.error(
                "subscriber_failed",
                event_id=event_id,
                subscriber=subscriber_name,
                attempts=attempts,
                exception=trace(problem),
            )
            await self._db.execute(
                "UPDATE event_task SET leased_until = NULL, due_at = $3, last_error = $4 "
                "WHERE event_id = $1 AND subscriber = $2",
                event_id,
                subscriber_name,
                self._clock.now() + timedelta(seconds=pause),
                type(problem).__name__,
            )
            return False
        await self._db.execute(
            "UPDATE event_task SET done_at = $3, leased_until = NULL WHERE event_id = $1 AND subscriber = $2",
            event_id,
            subscriber_name,
            self._clock.now(),
        )
        return True

    async def sweep(self, limit: int = 500) -> Sweep:
        """Hand every owed (event, subscriber) to the queue again: what a lost wake-up or a crash has left behind."""
        now = self._clock.now()
        rows = await self._db.fetch(DUE_TASKS, now, now + timedelta(seconds=30), limit)
        for row in rows:
            event_id, subscriber = row["event_id"], row["subscriber"]
            await self._jobs.enqueue(HANDLE, once=f"{event_id}:{subscriber}", event_id=event_id, subscriber=subscriber)
        return Sweep(len(rows))


def public_body(event: PublicEvent) -> str:
    """The exact webhook body: the same bytes for every delivery and every attempt."""
    return msgspec.json.encode(
        {
            "id": event.event_id,
            "type": event.kind,
            "env": event.env,
            "created_at": rfc3339(event.occurred_at),
            "data": {"env": event.env} | event.data(),
        }
    ).decode()


_COLUMNS = frozenset(Event.__struct_fields__)
"""What every event has, each in a column of its own."""


def payload_of(event: Event) -> str | None:
    """The event's fields as JSON, None where the webhook's body has each of them under its name and as it is."""
    fields: dict[str, Any] = plain(event)
    own = [name for name in type(event).__struct_encode_fields__ if name not in _COLUMNS]
    payload = dumps({name: fields[name] for name in own if name in fields})
    if isinstance(event, PublicEvent) and all(name in fields for name in own):
        data = event.data()
        if all(name in data for name in own) and dumps({name: data[name] for name in own}) == payload:
            return None
    return payload


def event_of(row: Row | Mapping[str, Any], kind: type[E]) -> E:
    """The event that a row stores. Raises msgspec.ValidationError where this release cannot read it."""
    stored = msgspec.json.decode(row["body"])["data"] if row["payload"] is None else msgspec.json.decode(row["payload"])
    columns = {name: row[name] for name in _COLUMNS}
    columns |= {"merchant_id": row["merchant_id"] or "", "subject_id": row["subject_id"] or ""}
    fields = {
        each.encode_name: columns[each.name] if each.name in _COLUMNS else stored[each.encode_name]
        for each in msgspec.structs.fields(kind)
        if each.name in _COLUMNS or each.encode_name in stored
    }
    return loads(dumps(fields), kind)
