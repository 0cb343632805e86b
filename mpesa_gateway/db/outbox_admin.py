"""What happened, looked at afterwards: events of one merchant or of all, and how far each subscriber has got."""

from collections.abc import Mapping, Sequence
from typing import Any

from piccolo.columns import JSONB, Boolean, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage, OperatorQuery
from mpesa_gateway.env import Env
from mpesa_gateway.errors import NotFound


class EventRow(Table, tablename="event"):
    """What happened, as webhooks carry it (``body``). ``payload`` has the fields where the body lacks some."""

    event_id = Text(primary_key=True)
    kind = Text()
    merchant_id = Text(null=True, default=None)
    env = Text(null=True, default=None)
    subject_id = Text()
    occurred_at = Timestamptz()
    is_public = Boolean()
    payload = JSONB(null=True, default=None)
    body = Text(null=True, default=None)


class EventTaskRow(Table, tablename="event_task"):
    """One subscriber's work on an event. Its key in Postgres is both of them."""

    event_id = Text(primary_key=True)
    subscriber = Text()
    due_at = Timestamptz()
    attempts = Integer()
    leased_until = Timestamptz(null=True, default=None)
    last_error = Text(null=True, default=None)
    done_at = Timestamptz(null=True, default=None)


EVENTS = KeysetList(table="event", key="event_id", prefix="evt")

STUCK = 3
"""Failed tries from which a subscriber's work on an event is worth a look."""

# raw SQL: join - an event with its merchant, a subscriber's task with its event.
_FIND = "SELECT event.*, merchant.name FROM event LEFT JOIN merchant USING (merchant_id) WHERE event_id = $1"

_STUCK = """
SELECT event_task.*, event.kind FROM event_task JOIN event USING (event_id)
WHERE done_at IS NULL AND attempts >= $1 AND (event.env = $2 OR event.env IS NULL) ORDER BY due_at LIMIT 100
"""


def public_events(env: Env, merchant_id: str | None, **equal: Any) -> Conditions:
    """Return the conditions for the events that merchants hear of."""
    found = Conditions(env, merchant_id)
    found.add("is_public")
    found.equal(**equal)
    return found


class EventsQuery(OperatorQuery, frozen=True, kw_only=True):
    """The filters of the list of events."""

    kind: str | None = None


class OutboxAdmin:
    """Reads the outbox, and wakes what is stuck in it."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def page(self, env: Env, query: EventsQuery, limit: int) -> KeysetPage[Row]:
        """A page of the events of ``env`` that merchants hear of. Raises Invalid for a bad cursor."""
        found = public_events(env, query.merchant, kind=query.kind)
        return await EVENTS.page(self._db, found, query.cursor, limit)

    async def get(self, event_id: str) -> Row:
        """An event, of whichever kind. Raises NotFound."""
        row = await self._db.fetchrow(_FIND, event_id)
        if row is None:
            raise NotFound("there is no such event")
        return row

    async def tasks(self, event_id: str) -> Sequence[Mapping[str, Any]]:
        """What subscribers have done, or owe, about an event."""
        tasks: list[dict[str, Any]] = await self._db.run(
            EventTaskRow.select().where(EventTaskRow.event_id == event_id).order_by(EventTaskRow.subscriber)
        )
        return tasks

    async def stuck(self, env: Env) -> Sequence[Row]:
        """Tasks of ``env``, or of no env, that failed several times and are not done, oldest first; 100 at most."""
        return await self._db.fetch(_STUCK, STUCK, env)

    async def wake(self, event_id: str, subscriber: str) -> bool:
        """Make a subscriber's work due now; False when it is done, or there is none."""
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
