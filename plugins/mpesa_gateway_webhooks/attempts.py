"""Writes the outcomes of deliveries (delivered, failed, deferred, handed back), those of one moment in a batch."""

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
"""A first attempt within this time stands in its delivery, so that the delivery's id tells how old the answer is."""


class AttemptRecorder:
    """Writes the outcome of each claimed delivery, in batches where nothing failed."""

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
        self._taken: Batcher[tuple[Row, EgressResponse], None] = Batcher(
            self._note_taken, told=partial(postgres_span, tracer, "note delivery")
        )
        self._put_off: Batcher[tuple[str, datetime], None] = Batcher(self._note_put_off)
        self._handed_back: Batcher[tuple[str, datetime], None] = Batcher(self._note_handed_back)

    async def defer(self, delivery_id: str, until: datetime) -> None:
        """Write that a delivery is due at ``until``, without an attempt."""
        await self._put_off.submit((delivery_id, until))

    async def release(self, delivery_id: str, leased_until: datetime) -> None:
        """End the lease of a delivery that was not sent: it is due at once."""
        await self._handed_back.submit((delivery_id, leased_until))

    async def record(self, row: Row, answer: EgressResponse | EgressFailed) -> None:
        """Note an attempt. One whose note fails is made again, with the same id, once its lease has ended."""
        if isinstance(answer, EgressResponse) and is_delivered(answer):
            await self._taken.submit((row, answer))
        else:
            await self._record_failure(row, answer)

    async def _note_taken(self, taken: Sequence[tuple[Row, EgressResponse]]) -> Sequence[Exception | None]:
        """Note those that were taken at the same time together, or each by itself where one of them cannot be noted."""
        try:
            await self._write_taken(taken)
        except Exception as problem:  # noqa: BLE001 - given back, or met again alone
            if len(taken) == 1 or isinstance(problem, UNREACHABLE):
                return [problem] * len(taken)
            return [(await self._note_taken([one]))[0] for one in taken]
        return [None] * len(taken)

    async def _write_taken(self, taken: Sequence[tuple[Row, EgressResponse]]) -> None:
        now = self._clock.now()
        async with self._db.transaction():
            await self._db.execute(
                tables.DELIVERED,
                [self._ids.new("att", now) for _ in taken],
                [row["delivery_id"] for row, _ in taken],
                [answer.status for _, answer in taken],
                [answer.ms for _, answer in taken],
                [_shown(answer) for _, answer in taken],
                now,
                now - _SOON,
                [row["address_id"] for row, _ in taken],
            )
            await self._db.execute(endpoint_tables.ENDPOINTS_WELL, list({row["address_id"] for row, _ in taken}), now)
        self._counter.labels("delivered").inc(len(taken))

    async def _note_put_off(self, later: Sequence[tuple[str, datetime]]) -> list[None]:
        await self._db.execute(tables.PUT_OFF, [delivery_id for delivery_id, _ in later], [until for _, until in later])
        return [None] * len(later)

    async def _note_handed_back(self, leased: Sequence[tuple[str, datetime]]) -> list[None]:
        await self._db.execute(
            tables.HAND_BACK, [delivery_id for delivery_id, _ in leased], [until for _, until in leased]
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
                endpoint_tables.ENDPOINT_ILL,
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
    """Return True if the merchant's server accepted the delivery."""
    return isinstance(answer, EgressResponse) and 200 <= answer.status < 300


def _shown(answer: EgressResponse) -> str:
    """The beginning of what a merchant's server said. That is anything at all: some say again what they were sent."""
    return masked(answer.body_start)[:SHOWN]
