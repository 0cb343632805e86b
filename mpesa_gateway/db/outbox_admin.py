"""Operators' view of the outbox."""

from collections.abc import Mapping, Sequence
from typing import Any

from piccolo.columns import JSONB, Boolean, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.event_bodies import TEMPLATE
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage, OperatorQuery
from mpesa_gateway.env import Env
from mpesa_gateway.errors import require_found


class EventRow(Table, tablename="event"):
    """``payload`` holds the fields that the body lacks: `event_bodies.text_of`."""

    event_id = Text(primary_key=True)
    kind = Text()
    merchant_id = Text(null=True, default=None)
    env = Text(null=True, default=None)
    subject_id = Text()
    occurred_at = Timestamptz()
    is_public = Boolean()
    payload = JSONB(null=True, default=None)
    form_id = Integer(null=True, default=None)
    stored_body = Text(null=True, default=None)


class EventTaskRow(Table, tablename="event_task"):
    """The primary key is both ids."""

    event_id = Text(primary_key=True)
    subscriber = Text()
    due_at = Timestamptz()
    attempts = Integer()
    leased_until = Timestamptz(null=True, default=None)
    last_error = Text(null=True, default=None)
    done_at = Timestamptz(null=True, default=None)


EVENTS = KeysetList(table="event", key="event_id", prefix="evt", columns=f"event.*, {TEMPLATE}")

STUCK_ATTEMPTS = 3
"""Failed tries before a task is reported."""

# raw SQL: join - an event with its merchant, a subscriber's task with its event.
_FIND = (
    "SELECT event.*, event.body, merchant.name FROM event LEFT JOIN merchant USING (merchant_id) WHERE event_id = $1"
)

_STUCK = """
SELECT event_task.*, event.kind FROM event_task JOIN event USING (event_id)
WHERE done_at IS NULL AND attempts >= $1 AND (event.env = $2 OR event.env IS NULL) ORDER BY due_at LIMIT 100
"""


def public_events(env: Env, merchant_id: str | None, **equal: Any) -> Conditions:
    found = Conditions(env, merchant_id)
    found.add("is_public")
    found.equal(**equal)
    return found


class EventsQuery(OperatorQuery, frozen=True, kw_only=True):
    """Filters of the list."""

    kind: str | None = None


class OutboxAdmin:
    """Reads the outbox and wakes stuck tasks."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def page(self, env: Env, query: EventsQuery, limit: int) -> KeysetPage[Row]:
        found = public_events(env, query.merchant, kind=query.kind)
        return await EVENTS.page(self._db, found, query.cursor, limit)

    async def get(self, event_id: str) -> Row:
        return require_found(await self._db.fetchrow(_FIND, event_id), "there is no such event")

    async def tasks(self, event_id: str) -> Sequence[Mapping[str, Any]]:
        tasks: list[dict[str, Any]] = await self._db.run(
            EventTaskRow.select().where(EventTaskRow.event_id == event_id).order_by(EventTaskRow.subscriber)
        )
        return tasks

    async def stuck(self, env: Env) -> Sequence[Row]:
        """Return up to 100 unfinished tasks that failed repeatedly, oldest first."""
        return await self._db.fetch(_STUCK, STUCK_ATTEMPTS, env)

    async def wake(self, event_id: str, subscriber: str) -> bool:
        woken = await self._db.run(
            EventTaskRow.update({EventTaskRow.due_at: self._clock.now()})
            .where(
                EventTaskRow.event_id == event_id,
                EventTaskRow.subscriber == subscriber,
                EventTaskRow.done_at.is_null(),
            )
            .returning(EventTaskRow.event_id)
        )
        return bool(woken)
