"""Deliveries: one for each event and endpoint, sent until it is taken or the schedule ends, and replayed on demand."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from mpesa_gateway.db.engine import UNREACHABLE, Row
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.http.egress import SHOWN, Answer, Egress, EgressFailed
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import decode_position, page_of
from mpesa_gateway.logs import masked, trace
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.together import Together
from mpesa_gateway_webhooks import signing, tables
from mpesa_gateway_webhooks.endpoints import Endpoints
from mpesa_gateway_webhooks.measures import ATTEMPT_SECONDS, ATTEMPTS
from mpesa_gateway_webhooks.schedule import pause_after
from mpesa_gateway_webhooks.schemas import (
    AttemptView,
    DeliveryQuery,
    DeliveryView,
    DeliveryWithAttempts,
    EventBody,
    EventQuery,
    Replayed,
    ReplayMany,
)
from mpesa_gateway_webhooks.settings import WebhooksSettings

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

DELIVER = "webhooks.deliver"
BATCH = 100
"""Deliveries in one job."""

SWEEP = 1000
"""Deliveries that one sweep hands over."""

MOST_REPLAYED = 10_000
"""Deliveries that one replay call takes."""

_GONE = 410

_LEASE = 6
_WORK = 4
"""In calls of the longest length: how long a claimed delivery is one worker's own, and how long it may begin to send.

In between lies the time for a call and its repetition, so that nobody sends what another is still sending.
"""


@dataclass
class _Batch:
    """Deliveries that were claimed together, and how their endpoints (by id) have fared since."""

    leased_until: datetime
    until: datetime
    failures: dict[str, int] = field(default_factory=dict[str, int])
    closed: dict[str, datetime] = field(default_factory=dict[str, datetime])


class Deliveries:
    """Sends what is owed. Who sends is decided by a lease in Postgres; a crash in between sends the same id again."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._settings = gateway.settings(WebhooksSettings)
        self._endpoints = gateway.services.get(Endpoints)
        self._chance = random.SystemRandom()
        self._slots = asyncio.Semaphore(self._settings.at_once)
        self._taken: Together[tuple[Row, Answer], None] = Together(self._note_taken)
        self._per_endpoint: dict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(self._settings.per_endpoint)
        )
        self.egress = Egress(timeout=self._settings.timeout)

    async def start(self) -> None:
        """Open the way out."""
        await self.egress.start()

    async def stop(self) -> None:
        """Close it."""
        await self.egress.stop()

    # -- owing ----------------------------------------------------------------------------------------------------

    async def owe(self, events: Sequence[PublicEvent]) -> None:
        """Inside the publisher's transaction: a delivery of each for the merchant's endpoint, sent after commit."""
        rows = await self._db.fetch(
            tables.FAN_OUT,
            [self._gateway.ids.new("dlv") for _ in events],
            [event.event_id for event in events],
            [event.merchant_id for event in events],
            [event.kind for event in events],
            [event.subject_id for event in events],
            [event.occurred_at for event in events],
        )
        if rows:
            await self._db.after_commit(lambda: self._wake_soon([row["delivery_id"] for row in rows]))

    async def _wake_soon(self, delivery_ids: Sequence[str]) -> None:
        for start in range(0, len(delivery_ids), BATCH):
            self._gateway.jobs.wake(DELIVER, delivery_ids=list(delivery_ids[start : start + BATCH]))

    async def _wake(self, delivery_ids: Sequence[str]) -> None:
        for start in range(0, len(delivery_ids), BATCH):
            await self._gateway.jobs.enqueue(DELIVER, delivery_ids=list(delivery_ids[start : start + BATCH]))

    async def sweep(self) -> int:
        """Hand what is due to the queue again; gives how many."""
        rows = await self._db.fetch(tables.DUE, self._gateway.clock.now(), SWEEP)
        await self._wake([row["delivery_id"] for row in rows])
        return len(rows)

    # -- sending --------------------------------------------------------------------------------------------------

    async def deliver(self, delivery_ids: Sequence[str]) -> int:
        """Claim those that are due and nobody else is sending, and send them side by side; gives how many."""
        claimed_at = self._gateway.clock.now()
        timeout = timedelta(seconds=self._settings.timeout)
        batch = _Batch(claimed_at + _LEASE * timeout, claimed_at + _WORK * timeout)
        rows = await self._db.fetch(tables.CLAIM, list(delivery_ids), claimed_at, batch.leased_until)
        try:
            results = await asyncio.gather(*(self._deliver_one(row, batch) for row in rows), return_exceptions=True)
        except asyncio.CancelledError:
            # We are told to stop: who takes the job over need not wait for our lease to end.
            await self._db.execute(tables.HAND_BACK, [row["delivery_id"] for row in rows], batch.leased_until)
            raise
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, BaseException):
                log.error("delivery_broke", delivery_id=row["delivery_id"], exception=trace(result))
        return len(rows)

    async def _deliver_one(self, row: Row, batch: _Batch) -> None:
        if not row["is_active"] or not row["merchant_is_active"]:
            await self._db.execute(tables.CANCEL, row["delivery_id"])
            return
        async with self._per_endpoint[row["endpoint_id"]], self._slots:
            # That may have taken long: the endpoint may have broken down meanwhile, or the time be up.
            now = self._gateway.clock.now()
            closed_until = batch.closed.get(row["endpoint_id"], row["closed_until"])
            if closed_until is not None and closed_until > now:
                # The endpoint is down for all: wait for it without using up this delivery's attempts.
                await self._db.execute(tables.PUT_OFF, row["delivery_id"], closed_until)
                return
            if now >= batch.until:
                await self._db.execute(tables.HAND_BACK, [row["delivery_id"]], batch.leased_until)
                return
            answer = await self._send(row)
            if isinstance(answer, Answer):
                self._gateway.meter.time(ATTEMPT_SECONDS, answer.ms / 1000)
            self._note(row, answer, batch)
        await self._record(row, answer)

    def _note(self, row: Row, answer: Answer | EgressFailed, batch: _Batch) -> None:
        """Close the endpoint's breaker for the rest of the batch as soon as it has failed often enough in a row."""
        endpoint_id = row["endpoint_id"]
        failures = 0 if _is_taken(answer) else batch.failures.setdefault(endpoint_id, row["failures"]) + 1
        batch.failures[endpoint_id] = failures
        if failures >= self._settings.breaker_failures:
            batch.closed[endpoint_id] = self._gateway.clock.now() + timedelta(seconds=self._settings.breaker_pause)

    async def _send(self, row: Row) -> Answer | EgressFailed:
        now = self._gateway.clock.now()
        body = row["body"].encode()
        merchant_id = row["merchant_id"]
        secrets = [self._endpoints.open(merchant_id, row["secret"])]
        if row["previous_secret"] is not None and row["previous_until"] > now:
            secrets.append(self._endpoints.open(merchant_id, row["previous_secret"]))
        headers = signing.headers(row["event_id"], row["event_type"], body, now, secrets)
        loopback = self._endpoints.allows_loopback(row["env"])
        try:
            return await self.egress.post(row["url"], body=body, headers=headers, allow_loopback=loopback)
        except EgressFailed as failure:
            if failure.reason != "reset":
                return failure
        # A kept connection that the other side was just closing: the same id goes out once more, at once.
        try:
            return await self.egress.post(row["url"], body=body, headers=headers, allow_loopback=loopback)
        except EgressFailed as failure:
            return failure

    async def _record(self, row: Row, answer: Answer | EgressFailed) -> None:
        """Note an attempt. One whose note fails is made again, with the same id, once its lease has ended."""
        if isinstance(answer, Answer) and _is_taken(answer):
            await self._taken.ask((row, answer))
        else:
            await self._record_failure(row, answer)

    async def _note_taken(self, taken: Sequence[tuple[Row, Answer]]) -> Sequence[Exception | None]:
        """Note those that were taken at the same time together, or each by itself where one of them cannot be noted."""
        try:
            await self._write_taken(taken)
        except Exception as problem:  # noqa: BLE001 - given back, or met again alone
            if len(taken) == 1 or isinstance(problem, UNREACHABLE):
                return [problem] * len(taken)
            return [(await self._note_taken([one]))[0] for one in taken]
        return [None] * len(taken)

    async def _write_taken(self, taken: Sequence[tuple[Row, Answer]]) -> None:
        now = self._gateway.clock.now()
        async with self._db.transaction():
            await self._db.execute(
                tables.DELIVERED,
                [self._gateway.ids.new("att") for _ in taken],
                [row["delivery_id"] for row, _ in taken],
                [answer.status for _, answer in taken],
                [answer.ms for _, answer in taken],
                [_shown(answer) for _, answer in taken],
                now,
            )
            await self._db.execute(tables.ENDPOINTS_WELL, sorted({row["endpoint_id"] for row, _ in taken}), now)
        self._gateway.meter.count(ATTEMPTS, "delivered", by=len(taken))

    async def _record_failure(self, row: Row, answer: Answer | EgressFailed) -> None:
        now = self._gateway.clock.now()
        delivery_id = row["delivery_id"]
        status = answer.status if isinstance(answer, Answer) else None
        error = None if isinstance(answer, Answer) else str(answer)
        pause = pause_after(row["attempts"] + 1, self._chance.random(), self._settings.retry_after)
        due = None if pause is None or status == _GONE else now + pause
        async with self._db.transaction():
            await self._db.execute(
                tables.RECORD_ATTEMPT,
                self._gateway.ids.new("att"),
                delivery_id,
                now,
                status,
                answer.ms if isinstance(answer, Answer) else None,
                error,
                _shown(answer) if isinstance(answer, Answer) else "",
            )
            text = error or f"the endpoint answered HTTP {status}"
            await self._db.execute(tables.FAILED, delivery_id, now, status, text, due)
            await self._db.execute(
                tables.ENDPOINT_ILL,
                row["endpoint_id"],
                now,
                self._settings.breaker_failures,
                now + timedelta(seconds=self._settings.breaker_pause),
            )
            log.warning(
                "delivery_failed", delivery_id=delivery_id, attempts=row["attempts"] + 1, status=status, error=error
            )
        self._gateway.meter.count(ATTEMPTS, "dead" if due is None else "failed")

    # -- reading and replaying ------------------------------------------------------------------------------------

    async def page(self, merchant_id: str, filters: DeliveryQuery) -> Page[DeliveryView]:
        """The delivery log, newest first."""
        clauses, values = ["merchant_id = $1"], [merchant_id]
        for name in ("status", "event_type", "payment_id"):
            value = getattr(filters, name)
            if value is not None:
                values.append(value.replace("\x00", ""))
                clauses.append(f"{name} = ${len(values)}")
        return await self._page("delivery", "created_at", "delivery_id", clauses, values, filters, _view)

    async def events(self, merchant_id: str, filters: EventQuery) -> Page[EventBody]:
        """The merchant's events, newest first: what webhooks carry, for those who would rather ask."""
        clauses: list[str] = ["merchant_id = $1", "is_public"]
        values: list[Any] = [merchant_id]
        for name, clause in (("type", "kind = "), ("since", "occurred_at >= "), ("until", "occurred_at < ")):
            value = getattr(filters, name)
            if value is not None:
                values.append(value.replace("\x00", "") if isinstance(value, str) else value)
                clauses.append(f"{clause}${len(values)}")
        return await self._page("event", "occurred_at", "event_id", clauses, values, filters, _event)

    async def _page(
        self,
        table: str,
        at: str,
        key: str,
        clauses: list[str],
        values: list[Any],
        filters: DeliveryQuery | EventQuery,
        view: Any,
    ) -> Page[Any]:
        # Table and column names are this module's own; every value is a parameter.
        total: int | None = None
        if filters.count:
            total = await self._db.fetchval(f"SELECT count(*) FROM {table} WHERE {' AND '.join(clauses)}", *values)  # noqa: S608
        if filters.cursor is not None:
            values = [*values, *decode_position(filters.cursor)]
            clauses = [*clauses, f"({at}, {key}) < (${len(values) - 1}, ${len(values)})"]
        rows = await self._db.fetch(
            f"SELECT * FROM {table} WHERE {' AND '.join(clauses)} "  # noqa: S608
            f"ORDER BY {at} DESC, {key} DESC LIMIT {filters.limit + 1}",
            *values,
        )
        return page_of(rows, filters.limit, view=view, position=lambda row: (row[at], row[key]), total=total)

    async def get(self, merchant_id: str, delivery_id: str) -> DeliveryWithAttempts:
        """A delivery with its attempts and the event it carries. Raises NotFound."""
        row = await self._db.fetchrow(tables.FIND, merchant_id, delivery_id)
        if row is None:
            raise NotFound("there is no such delivery")
        attempts = await self._db.fetch(tables.ATTEMPTS_OF, delivery_id)
        return DeliveryWithAttempts(
            **msgspec.structs.asdict(_view(row)),
            attempt_log=[AttemptView(**dict(attempt)) for attempt in attempts],
            event=await self.event(merchant_id, row["event_id"]),
        )

    async def event(self, merchant_id: str, event_id: str) -> EventBody:
        """An event as its webhook carries it. Raises NotFound."""
        body = await self._db.fetchval(tables.FIND_EVENT, merchant_id, event_id)
        if body is None:
            raise NotFound("there is no such event")
        return msgspec.json.decode(body, type=EventBody)

    async def replay(self, caller: Caller, delivery_id: str) -> DeliveryView:
        """Send a delivery again, whatever became of it, with the same webhook-id. Raises NotFound and Conflict."""
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.REPLAY_ONE, caller.merchant_id, delivery_id, self._gateway.clock.now())
            if row is None:
                await self.get(caller.merchant_id, delivery_id)
                raise Conflict("the endpoint of this delivery was removed: set a webhook and read /v1/events")
            await self._gateway.audit.record(
                "delivery.replayed", merchant_id=caller.merchant_id, actor=caller.actor, subject_id=delivery_id
            )
            await self._db.after_commit(lambda: self._wake([delivery_id]))
        return _view(row)

    async def replay_many(self, caller: Caller, which: ReplayMany) -> Replayed:
        """Send many deliveries again, the oldest first, at most 10,000 in one call."""
        async with self._db.transaction():
            rows = await self._db.fetch(
                tables.REPLAY_MANY,
                caller.merchant_id,
                which.since,
                which.until,
                which.status,
                self._gateway.clock.now(),
                MOST_REPLAYED,
            )
            delivery_ids = [row["delivery_id"] for row in rows]
            await self._gateway.audit.record(
                "deliveries.replayed",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                detail={"count": len(delivery_ids)},
            )
            await self._db.after_commit(lambda: self._wake(delivery_ids))
        return Replayed(len(delivery_ids), has_more=len(delivery_ids) == MOST_REPLAYED)


def _is_taken(answer: Answer | EgressFailed) -> bool:
    return isinstance(answer, Answer) and 200 <= answer.status < 300


def _shown(answer: Answer) -> str:
    """The beginning of what a merchant's server said. That is anything at all: some say again what they were sent."""
    return masked(answer.body_start)[:SHOWN]


def _view(row: Row) -> DeliveryView:
    return DeliveryView(
        id=row["delivery_id"],
        event_id=row["event_id"],
        event_type=row["event_type"],
        payment_id=row["payment_id"],
        status=row["status"],
        attempts=row["attempts"],
        last_status=row["last_status"],
        last_error=row["last_error"],
        last_attempt_at=row["last_attempt_at"],
        next_retry_at=row["due_at"],
        created_at=row["created_at"],
        delivered_at=row["delivered_at"],
    )


def _event(row: Row) -> EventBody:
    return msgspec.json.decode(row["body"], type=EventBody)
