"""Batched storage of delivery outcomes."""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog
from opentelemetry.trace import Tracer
from prometheus_client import Counter

from mpesa_gateway.batching import Batcher
from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import UNREACHABLE, Database, Row
from mpesa_gateway.http.egress import SHOWN, EgressFailed, EgressResponse
from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import masked
from mpesa_gateway.tracing import postgres_span
from mpesa_gateway_webhooks import endpoint_tables, tables
from mpesa_gateway_webhooks.schedule import pause_after
from mpesa_gateway_webhooks.settings import WebhooksSettings

log = structlog.get_logger(__name__)

_GONE = 410

_SOON = timedelta(days=1)
"""Age up to which a first attempt is stored in its delivery, whose id then dates the answer."""


class AttemptRecorder:
    """Stores the outcomes of claimed deliveries, in batches if nothing failed."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        counter: Counter,
        tracer: Tracer,
        settings: WebhooksSettings,
    ) -> None:
        self._db = db
        self._clock = clock
        self._ids = ids
        self._counter = counter
        self._settings = settings
        self._chance = random.SystemRandom()
        self._delivered: Batcher[tuple[Row, EgressResponse], None] = Batcher(
            self._store_delivered, span=partial(postgres_span, tracer, "note delivery")
        )
        self._deferred: Batcher[tuple[str, datetime], None] = Batcher(self._store_deferred)
        self._released: Batcher[tuple[str, datetime], None] = Batcher(self._store_released)

    async def defer(self, delivery_id: str, until: datetime) -> None:
        await self._deferred.submit((delivery_id, until))

    async def release(self, delivery_id: str, leased_until: datetime) -> None:
        """Make an unsent delivery due at once."""
        await self._released.submit((delivery_id, leased_until))

    async def record(self, row: Row, answer: EgressResponse | EgressFailed) -> None:
        """Store an attempt. After a failure the delivery is sent again with the same id."""
        if isinstance(answer, EgressResponse) and is_delivered(answer):
            await self._delivered.submit((row, answer))
        else:
            await self._record_failure(row, answer)

    async def _store_delivered(self, delivered: Sequence[tuple[Row, EgressResponse]]) -> Sequence[Exception | None]:
        try:
            await self._write_delivered(delivered)
        except Exception as problem:  # noqa: BLE001 - returned, or raised again for one delivery alone
            if len(delivered) == 1 or isinstance(problem, UNREACHABLE):
                return [problem] * len(delivered)
            return [(await self._store_delivered([one]))[0] for one in delivered]
        return [None] * len(delivered)

    async def _write_delivered(self, delivered: Sequence[tuple[Row, EgressResponse]]) -> None:
        now = self._clock.now()
        async with self._db.transaction():
            await self._db.execute(
                tables.DELIVERED,
                [self._ids.new("att", now) for _ in delivered],
                [row["delivery_id"] for row, _ in delivered],
                [answer.status for _, answer in delivered],
                [answer.ms for _, answer in delivered],
                [_shown(answer) for _, answer in delivered],
                now,
                now - _SOON,
                [row["address_id"] for row, _ in delivered],
            )
            await self._db.execute(
                endpoint_tables.RECORD_SUCCESSES, list({row["address_id"] for row, _ in delivered}), now
            )
        self._counter.labels("delivered").inc(len(delivered))

    async def _store_deferred(self, later: Sequence[tuple[str, datetime]]) -> list[None]:
        await self._db.execute(tables.DEFER, [delivery_id for delivery_id, _ in later], [until for _, until in later])
        return [None] * len(later)

    async def _store_released(self, leased: Sequence[tuple[str, datetime]]) -> list[None]:
        await self._db.execute(
            tables.RELEASE, [delivery_id for delivery_id, _ in leased], [until for _, until in leased]
        )
        return [None] * len(leased)

    async def _record_failure(self, row: Row, answer: EgressResponse | EgressFailed) -> None:
        now = self._clock.now()
        delivery_id = row["delivery_id"]
        status = answer.status if isinstance(answer, EgressResponse) else None
        error = None if isinstance(answer, EgressResponse) else str(answer)
        pause = pause_after(row["attempts"] + 1, self._chance.random(), self._settings.retry_after)
        due = None if pause is None or status == _GONE else now + pause
        async with self._db.transaction():
            await self._db.execute(
                tables.RECORD_ATTEMPT,
                self._ids.new("att", now),
                delivery_id,
                now,
                status,
                answer.ms if isinstance(answer, EgressResponse) else None,
                error,
                _shown(answer) if isinstance(answer, EgressResponse) else "",
                row["address_id"],
            )
            text = error or f"the endpoint answered HTTP {status}"
            await self._db.execute(
                tables.FAILED, delivery_id, now, status, text, due, row["endpoint_id"], row["address_id"]
            )
            await self._db.execute(
                endpoint_tables.RECORD_FAILURE,
                row["address_id"],
                now,
                self._settings.breaker_failures,
                now + timedelta(seconds=self._settings.breaker_pause),
            )
            log.warning(
                "delivery_failed", delivery_id=delivery_id, attempts=row["attempts"] + 1, status=status, error=error
            )
        self._counter.labels("dead" if due is None else "failed").inc()


def is_delivered(answer: EgressResponse | EgressFailed) -> bool:
    return isinstance(answer, EgressResponse) and 200 <= answer.status < 300


def _shown(answer: EgressResponse) -> str:
    # The response can contain any data, so it is masked.
    return masked(answer.body_start)[:SHOWN]
