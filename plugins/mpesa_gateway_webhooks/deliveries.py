"""Deliveries: creation, scheduling, lists and replays."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from mpesa_gateway.correlation import RequestContext, context_of
from mpesa_gateway.db.deferred import DeferredWrite
from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.event_bodies import EVENT_BODY, text_of
from mpesa_gateway.db.keyset import Conditions
from mpesa_gateway.db.outbox_admin import EVENTS, EventRow, public_events
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, require_found
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.http.egress import Egress
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.ids import Ids
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_webhooks import tables
from mpesa_gateway_webhooks.endpoint_tables import EndpointRow, active_of
from mpesa_gateway_webhooks.endpoints import EndpointService
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
from mpesa_gateway_webhooks.sender import DeliverySender
from mpesa_gateway_webhooks.settings import WebhooksSettings
from mpesa_gateway_webhooks.tables import DELIVERIES, DeliveryRow

DELIVER = "webhooks.deliver"
BATCH = 100
"""Deliveries per job."""

SWEEP = 2000
SWEEP_EACH = 100
"""Deliveries that one sweep enqueues, in all and per endpoint."""

MOST_REPLAYED = 10_000
"""Deliveries per replay call."""


class DeliveryService:
    """Creates, enqueues, lists and replays deliveries."""

    def __init__(self, runtime: Runtime, *, endpoints: EndpointService) -> None:
        self._runtime = runtime
        self._db = runtime.db
        self._sender = DeliverySender(runtime, endpoints=endpoints, enqueue_due=self.sweep)
        self._wait = timedelta(days=runtime.settings(WebhooksSettings).wait_days)

    @property
    def egress(self) -> Egress:
        return self._sender.egress

    async def start(self) -> None:
        await self._sender.start()

    async def stop(self) -> None:
        await self._sender.stop()

    async def create_deliveries(self, events: Sequence[PublicEvent]) -> None:
        """Create the deliveries of events, inside the publisher's transaction.

        They are sent after the commit, or wait for an endpoint.
        """
        made = {self._runtime.ids.new("dlv", event.occurred_at): event for event in events}
        args = (
            list(made),
            [event.event_id for event in events],
            [event.merchant_id for event in events],
            [event.env for event in events],
            [event.kind for event in events],
            [event.subject_id for event in events],
            [event.occurred_at for event in events],
        )

        async def wake(returned: Sequence[str | None]) -> None:
            if delivery_ids := [delivery_id for delivery_id in returned if delivery_id is not None]:
                found = {delivery_id: context_of(made[delivery_id].subject_id) for delivery_id in delivery_ids}
                await self._db.after_commit(lambda: self._wake_soon(found))

        await self._db.defer(DeferredWrite(tables.FAN_OUT, args, on_written=wake))

    async def _wake_soon(self, delivery_ids: Mapping[str, RequestContext | None]) -> None:
        known = list(delivery_ids.items())
        for start in range(0, len(known), BATCH):
            batch = known[start : start + BATCH]
            origins = {delivery_id: origin for delivery_id, origin in batch if origin is not None}
            self._runtime.jobs.wake(DELIVER, delivery_ids=[each for each, _ in batch], origins=origins)

    async def _wake(self, delivery_ids: Sequence[str]) -> None:
        for start in range(0, len(delivery_ids), BATCH):
            await self._runtime.jobs.enqueue(DELIVER, delivery_ids=list(delivery_ids[start : start + BATCH]))

    async def sweep(self) -> int:
        """Enqueue due deliveries; returns their number."""
        rows = await self._db.fetch(tables.DUE, self._runtime.clock.now(), SWEEP, SWEEP_EACH)
        due = [row["delivery_id"] for row in rows]
        for start in range(0, len(due), BATCH):
            # ``once``: without a worker, successive sweeps find the same deliveries.
            await self._runtime.jobs.enqueue(DELIVER, once=due[start], delivery_ids=due[start : start + BATCH])
        return len(due)

    async def assign_undelivered(self) -> int:
        """Assign waiting deliveries to new endpoints; returns their number.

        Deliveries older than ``wait_days`` are dead. Each batch commits by itself and skips locked rows.
        """
        assigned = 0
        while True:
            now = self._runtime.clock.now()
            orphans = await self._db.fetch(tables.UNASSIGN_REMOVED, now, SWEEP)
            rows = await self._db.fetch(tables.ASSIGN_WAITING, now, now - self._wait, SWEEP)
            assigned += len(rows)
            await self._wake([row["delivery_id"] for row in rows if row["status"] == "pending"])
            if len(rows) < SWEEP and len(orphans) < SWEEP:
                return assigned

    async def deliver(self, delivery_ids: Sequence[str]) -> int:
        """Claim due, unleased deliveries and send them concurrently; returns their number."""
        return await self._sender.deliver(delivery_ids)

    async def begin(self, delivery_ids: Sequence[str]) -> int:
        """Like ``deliver``, but returns after the claim."""
        return await self._sender.begin(delivery_ids)

    async def page(self, merchant_id: str, env: Env, filters: DeliveryQuery) -> Page[DeliveryView]:
        """Raises InvalidFields for a bad cursor."""
        found = Conditions(env, merchant_id)
        found.equal(status=filters.status, event_type=filters.event_type)
        if filters.payment_id is not None:
            found.add(tables.ABOUT, filters.payment_id)
        page = await DELIVERIES.page(self._db, found, filters.cursor, filters.limit, count=filters.count)
        return page_of(page.map(_view))

    async def events(self, merchant_id: str, env: Env, filters: EventQuery) -> Page[EventBody]:
        found = public_events(env, merchant_id, kind=filters.type)
        found.since, found.until = filters.since, filters.until
        page = await EVENTS.page(self._db, found, filters.cursor, filters.limit, count=filters.count)
        return page_of(page.map(_event))

    async def get(self, merchant_id: str, env: Env, delivery_id: str) -> DeliveryWithAttempts:
        """Raises NotFound."""
        row = require_found(
            await self._db.run(
                DeliveryRow.select()
                .where(
                    DeliveryRow.merchant_id == merchant_id,
                    DeliveryRow.env == env,
                    DeliveryRow.delivery_id == delivery_id,
                )
                .first()
            ),
            "there is no such delivery",
        )
        attempts = await self._db.fetch(tables.ATTEMPTS_OF_DELIVERY, delivery_id)
        return DeliveryWithAttempts(
            **msgspec.structs.asdict(_view(row)),
            attempt_log=[AttemptView(**attempt) for attempt in attempts],
            event=await self.event(merchant_id, env, row["event_id"]),
        )

    async def event(self, merchant_id: str, env: Env, event_id: str) -> EventBody:
        """Raises NotFound."""
        row = require_found(
            await self._db.run(
                EventRow.select(EVENT_BODY)
                .where(
                    EventRow.merchant_id == merchant_id,
                    EventRow.env == env,
                    EventRow.event_id == event_id,
                    EventRow.is_public.eq(value=True),
                )
                .first()
            ),
            "there is no such event",
        )
        return msgspec.json.decode(row["body"], type=EventBody)

    async def replay(self, caller: Caller, delivery_id: str) -> DeliveryView:
        """Send a delivery again with the same webhook-id, to the current endpoint. Raises NotFound and Conflict."""
        async with self._db.transaction():
            row = await self._db.fetchrow(
                tables.REPLAY_ONE, caller.merchant_id, caller.env, self._runtime.clock.now(), delivery_id
            )
            if row is None:
                await self.get(caller.merchant_id, caller.env, delivery_id)
                raise _no_endpoint(caller.env)
            await self._runtime.audit.record(
                "delivery.replayed",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                subject_id=delivery_id,
                env=caller.env,
            )
            await self._db.after_commit(lambda: self._wake([delivery_id]))
        return _view(row)

    async def replay_many(self, caller: Caller, which: ReplayMany) -> Replayed:
        """Send up to 10,000 deliveries again, oldest first. Raises Conflict without an endpoint."""
        if not await self._db.run(EndpointRow.exists().where(*active_of(caller.merchant_id, caller.env))):
            raise _no_endpoint(caller.env)
        async with self._db.transaction():
            rows = await self._db.fetch(
                tables.REPLAY_MANY,
                caller.merchant_id,
                caller.env,
                self._runtime.clock.now(),
                Ids.least("dlv", which.since),
                which.until and Ids.least("dlv", which.until),
                which.status,
                MOST_REPLAYED,
            )
            delivery_ids = [row["delivery_id"] for row in rows]
            await self._runtime.audit.record(
                "deliveries.replayed",
                merchant_id=caller.merchant_id,
                actor=caller.actor,
                env=caller.env,
                detail={"count": len(delivery_ids)},
            )
            await self._db.after_commit(lambda: self._wake(delivery_ids))
        return Replayed(len(delivery_ids), has_more=len(delivery_ids) == MOST_REPLAYED)


def _no_endpoint(env: Env) -> Conflict:
    return Conflict(
        f"no {env} webhook is set: set its address on the merchant's page under /ops, or with "
        "PUT /v1/merchant/webhook; waiting events are then sent"
    )


def _view(row: Row | Mapping[str, Any]) -> DeliveryView:
    return DeliveryView(
        id=row["delivery_id"],
        env=row["env"],
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
    return msgspec.json.decode(text_of(row), type=EventBody)
