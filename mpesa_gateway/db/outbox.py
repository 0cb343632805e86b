"""Events, stored with their change. Subscribers run in the same transaction, or in a job after its commit."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.correlation import context_of, use_context
from mpesa_gateway.db.deferred import DeferredWrite
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.event_bodies import body_of
from mpesa_gateway.db.forms import BodyForms
from mpesa_gateway.db.json_codec import dumps, loads, plain
from mpesa_gateway.db.named import Named
from mpesa_gateway.events import Event, PublicEvent
from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import trace

log = structlog.get_logger(__name__)

E = TypeVar("E", bound=Event)

HANDLE = "kernel.handle_event"

LEASE = timedelta(seconds=120)

PAUSES = (5, 30, 120, 600, 1800, 3600)
"""Seconds between retries; the last value repeats."""

# raw SQL: hot path - each event is stored, claimed and settled.
INSERT_EVENTS = Named("""
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, form_id,
    stored_body)
SELECT event_id, kind, merchant_id, env, subject_id, occurred_at, body IS NOT NULL, payload::jsonb, form.form_id,
    CASE WHEN form.form_id IS NULL THEN body ELSE body_values END
FROM unnest($event_id::uuid[], $kind::text[], $merchant_id::uuid[], $env::text[], $subject_id::uuid[],
        $occurred_at::timestamptz[], $payload::text[], $body::text[], $form_id::integer[], $body_values::text[])
    AS t(event_id, kind, merchant_id, env, subject_id, occurred_at, payload, body, form_id, body_values)
    LEFT JOIN body_form AS form ON form.form_id = t.form_id
ORDER BY event_id
RETURNING event_id
""")

FIND_EVENT = """
SELECT event_id, kind, merchant_id, env, subject_id, occurred_at, payload, event.body FROM event WHERE event_id = $1
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
    """A handler, run after commit in a job of its own, or ``inside`` the publisher's transaction."""

    event: type[Event]
    handler: Callable[[Any, Any], Awaitable[None]]
    inside: bool = False

    @property
    def name(self) -> str:
        return f"{self.handler.__module__}.{self.handler.__qualname__}"


class NotInTransaction(RuntimeError):
    """An event was published outside a transaction."""


class JobWaker(Protocol):
    """The queues as the outbox uses them."""

    def wake(self, name: str, /, **kwargs: Any) -> None: ...

    async def enqueue(self, name: str, /, *, once: str | None = None, **kwargs: Any) -> bool: ...


class Outbox:
    """Stores events in the open transaction, runs the subscribers inside it, and enqueues the others after commit."""

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
        self._db = db
        self._clock = clock
        self._ids = ids
        self._jobs = jobs
        self._event_type = event_type
        self._context = context
        self._forms = BodyForms(db)
        self._subscribers = list(subscribers)
        names = [subscriber.name for subscriber in self._subscribers if not subscriber.inside]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"subscriber {name} is registered twice: give each handler a name of its own")

    def subscribe(self, subscriber: Subscriber) -> None:
        if any(other.name == subscriber.name for other in self._subscribers):
            raise ValueError(f"subscriber {subscriber.name} is registered twice: give each handler a name of its own")
        self._subscribers.append(subscriber)

    async def publish(self, events: Sequence[E]) -> list[E]:
        """Store events in the open transaction; return them with ids and times.

        Subscribers inside the transaction run before this returns. Raises NotInTransaction.
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
                matching = [event for event in stamped if isinstance(event, subscriber.event)]
                if matching:
                    await subscriber.handler(matching, self._context)
        return stamped

    async def _write(self, events: Sequence[Event]) -> None:
        if events:
            bodies = await self._forms.shorten(
                [body_of(event) if isinstance(event, PublicEvent) else None for event in events]
            )
            sql, *args = INSERT_EVENTS.bind_rows(
                [
                    {
                        "event_id": event.event_id,
                        "kind": event.kind,
                        "merchant_id": event.merchant_id or None,
                        "env": event.env,
                        "subject_id": event.subject_id or None,
                        "occurred_at": event.occurred_at,
                        "payload": payload_of(event),
                        "body": body.text,
                        "form_id": body.form_id,
                        "body_values": body.values,
                    }
                    for event, body in zip(events, bodies, strict=True)
                ]
            )
            await self._db.defer(DeferredWrite(sql, tuple(args)))

    async def _insert_tasks(self, owed: Sequence[tuple[Event, str]]) -> None:
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
        """Run a durable subscriber on an event, unless done or claimed.

        Failures are stored for a retry, not raised.
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
        except Exception as problem:  # noqa: BLE001 - any failure is retried
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

    async def sweep(self, limit: int = 500) -> int:
        """Return the number of enqueued tasks."""
        now = self._clock.now()
        rows = await self._db.fetch(DUE_TASKS, now, now + timedelta(seconds=30), limit)
        for row in rows:
            event_id, subscriber = row["event_id"], row["subscriber"]
            await self._jobs.enqueue(HANDLE, once=f"{event_id}:{subscriber}", event_id=event_id, subscriber=subscriber)
        return len(rows)


_COLUMNS = frozenset(Event.__struct_fields__)


def payload_of(event: Event) -> str | None:
    """Return None if the webhook body holds all fields unchanged."""
    fields: dict[str, Any] = plain(event)
    own = [name for name in type(event).__struct_encode_fields__ if name not in _COLUMNS]
    payload = dumps({name: fields[name] for name in own if name in fields})
    if isinstance(event, PublicEvent) and all(name in fields for name in own):
        data = event.data()
        if all(name in data for name in own) and dumps({name: data[name] for name in own}) == payload:
            return None
    return payload


def event_of(row: Row | Mapping[str, Any], kind: type[E]) -> E:
    """Raise msgspec.ValidationError if this release cannot read it."""
    stored = msgspec.json.decode(row["body"])["data"] if row["payload"] is None else msgspec.json.decode(row["payload"])
    columns = {name: row[name] for name in _COLUMNS}
    columns |= {"merchant_id": row["merchant_id"] or "", "subject_id": row["subject_id"] or ""}
    fields = {
        each.encode_name: columns[each.name] if each.name in _COLUMNS else stored[each.encode_name]
        for each in msgspec.structs.fields(kind)
        if each.name in _COLUMNS or each.encode_name in stored
    }
    return loads(dumps(fields), kind)
