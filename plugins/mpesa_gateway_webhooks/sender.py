"""Claiming, signing and sending of due deliveries."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import structlog
from opentelemetry.trace import Span

from mpesa_gateway.batching import Batcher
from mpesa_gateway.correlation import context_of, use_context
from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.event_bodies import text_of
from mpesa_gateway.http.egress import Egress, EgressBusy, EgressFailed, EgressResponse
from mpesa_gateway.logs import trace
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.traceparent import current_traceparent
from mpesa_gateway.tracing import client_span, postgres_span, set_attributes, set_error
from mpesa_gateway_webhooks import signing, tables
from mpesa_gateway_webhooks.attempts import AttemptRecorder, is_delivered
from mpesa_gateway_webhooks.endpoint_limits import ROOM, WAITING_EACH, EndpointLimit, EndpointLimits
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.metrics import WebhookMetrics
from mpesa_gateway_webhooks.settings import WebhooksSettings

log = structlog.get_logger(__name__)


_LEASE = 6
_WORK = 4
"""Lengths of a lease and of the time to start a call in it, in call timeouts.

The difference covers a call and its repetition, so that no two workers send a delivery at once.
"""

_NO_ROOM = timedelta(seconds=5)
"""Pause of a delivery while too many of the merchant's calls wait for DNS."""

_JOBS = 20
"""Jobs per claim."""


@dataclass(frozen=True)
class _Lease:
    claimed_at: datetime
    leased_until: datetime
    until: datetime
    """The last moment to start a call."""


@dataclass(frozen=True)
class _RequestedDelivery:
    delivery_ids: Sequence[str]
    context: Context


class DeliverySender:
    """Sends due deliveries under a lease in Postgres; after a crash the same id is sent again."""

    def __init__(
        self, runtime: Runtime, *, endpoints: EndpointService, enqueue_due: Callable[[], Awaitable[object]]
    ) -> None:
        """``enqueue_due`` enqueues due deliveries."""
        self._runtime = runtime
        self._enqueue_due = enqueue_due
        self._catching_up: asyncio.Task[None] | None = None
        self._db = runtime.db
        self._settings = runtime.settings(WebhooksSettings)
        self._endpoints = endpoints
        self._limits = EndpointLimits(
            at_once=self._settings.max_concurrent, per_endpoint=self._settings.max_concurrent_per_endpoint
        )
        self._tracer = runtime.tracer
        self._claims: Batcher[_RequestedDelivery, list[asyncio.Task[None]]] = Batcher(
            self._claim, most=_JOBS, span=partial(postgres_span, self._tracer, "claim deliveries")
        )
        metrics = runtime.metrics.get(WebhookMetrics)
        self._attempt_seconds = metrics.attempt_seconds
        self._recorder = AttemptRecorder(
            db=runtime.db,
            clock=runtime.clock,
            ids=runtime.ids,
            counter=metrics.attempts,
            tracer=runtime.tracer,
            settings=self._settings,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        # More than the number of open calls, tests by merchants included.
        self.egress = Egress(
            timeout=self._settings.timeout,
            lookup=runtime.names,
            connections=self._settings.max_concurrent * (WAITING_EACH + 2),
        )

    async def start(self) -> None:
        self._is_stopping = False
        await self.egress.start()

    async def stop(self) -> None:
        """Finish calls within the grace period, and release the other deliveries."""
        self._is_stopping = True
        if self._catching_up is not None:
            self._catching_up.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._runtime.config.worker.grace)
        await _cancel(list(self._tasks))
        await self.egress.stop()

    async def deliver(self, delivery_ids: Sequence[str]) -> int:
        tasks = await self._claims.submit(_RequestedDelivery(delivery_ids, copy_context()))
        try:
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            await _cancel(tasks)
            raise
        return len(tasks)

    async def begin(self, delivery_ids: Sequence[str]) -> int:
        """Like ``deliver``, but returns after the claim, so that a slow endpoint occupies no worker.

        Claims nothing while too many deliveries are claimed; they are enqueued again later.
        """
        if not self._limits.has_room:
            if self._catching_up is None or self._catching_up.done():
                self._catching_up = self._run(self._catch_up(), None)
            return 0
        return len(await self._claims.submit(_RequestedDelivery(delivery_ids, copy_context())))

    async def _catch_up(self) -> None:
        await self._limits.wait_for_room()
        try:
            await self._enqueue_due()
        except Exception as problem:  # noqa: BLE001 - the sweep enqueues them later
            log.warning("due_deliveries_not_enqueued", exception=trace(problem))

    async def _claim(self, requested: Sequence[_RequestedDelivery]) -> Sequence[list[asyncio.Task[None]]]:
        if self._is_stopping:
            return [[] for _ in requested]
        lease = self._lease()
        contexts = {delivery_id: one.context for one in requested for delivery_id in one.delivery_ids}
        rows = await self._db.fetch(
            tables.CLAIM, list(contexts), lease.claimed_at, lease.leased_until, self._limits.full()
        )
        started = await self._begin(rows, lease, contexts)
        return [[started.pop(known) for known in one.delivery_ids if known in started] for one in requested]

    def _lease(self) -> _Lease:
        now = self._runtime.clock.now()
        timeout = timedelta(seconds=self._settings.timeout)
        return _Lease(now, now + _LEASE * timeout, now + _WORK * timeout)

    async def _begin(
        self, rows: Sequence[Row], lease: _Lease, contexts: Mapping[str, Context]
    ) -> dict[str, asyncio.Task[None]]:
        gone = [row["delivery_id"] for row in rows if not row["merchant_is_active"]]
        # Their endpoint was removed: they wait for the next one.
        orphans = [row["delivery_id"] for row in rows if row["merchant_is_active"] and not row["is_active"]]
        started: dict[str, asyncio.Task[None]] = {}
        # Oldest first.
        for row in sorted(rows, key=lambda row: str(row["delivery_id"])):
            if row["is_active"] and row["merchant_is_active"]:
                limit = self._limits.enter(row["endpoint_id"], row["failures"])
                context = contexts.get(row["delivery_id"])
                started[row["delivery_id"]] = self._run(self._deliver_one(row, limit, lease), context)
        if gone:
            await self._db.execute(tables.CANCEL, gone)
        if orphans:
            await self._db.execute(tables.MAKE_WAIT, orphans)
        return started

    def _run(self, work: Coroutine[Any, Any, None], context: Context | None) -> asyncio.Task[None]:
        # A copy of the job's context, or an empty one.
        task = asyncio.create_task(work, context=Context() if context is None else context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _refill(self, endpoint_id: str, limit: EndpointLimit) -> None:
        try:
            lease = self._lease()
            rows = await self._db.fetch(
                tables.CLAIM_OF_ENDPOINT, endpoint_id, lease.claimed_at, lease.leased_until, ROOM
            )
            limit.has_more = len(rows) == ROOM
            await self._begin(rows, lease, {})
        except Exception as problem:  # noqa: BLE001 - the sweep enqueues them later
            limit.has_more = False
            log.warning("deliveries_not_claimed", endpoint_id=endpoint_id, exception=trace(problem))
        finally:
            limit.is_refilling = False
            self._limits.remove_if_idle(endpoint_id, limit)

    async def _deliver_one(self, row: Row, limit: EndpointLimit, lease: _Lease) -> None:
        delivery_id = row["delivery_id"]
        try:
            with use_context(context_of(delivery_id)):
                await self._send_in_slot(row, limit, lease)
        except asyncio.CancelledError:
            # The next worker need not wait for the end of the lease.
            await self._recorder.release(delivery_id, lease.leased_until)
            raise
        except Exception as problem:  # noqa: BLE001 - it is sent again after its lease
            log.error("delivery_crashed", delivery_id=delivery_id, exception=trace(problem))
        finally:
            self._leave(row["endpoint_id"], limit)

    def _leave(self, endpoint_id: str, limit: EndpointLimit) -> None:
        if self._is_stopping or limit.is_closed(self._runtime.clock.now()):
            # The other deliveries stay in Postgres until the pause ends.
            limit.has_more = False
        if limit.has_more and not limit.is_refilling and limit.claimed <= ROOM // 2:
            limit.is_refilling = True
            self._run(self._refill(endpoint_id, limit), None)
        self._limits.leave(endpoint_id, limit)

    async def _send_in_slot(self, row: Row, limit: EndpointLimit, lease: _Lease) -> None:
        answer: EgressResponse | EgressFailed | EgressBusy | None = None
        async with self._limits.slot(limit):
            # The wait for a slot may have been long.
            now = self._runtime.clock.now()
            closed_until = limit.closed_until(lease.claimed_at, row["closed_until"])
            is_closed = closed_until is not None and closed_until > now
            if not is_closed and not self._is_stopping and now < lease.until:
                attributes = {"http.request.method": "POST"}
                with client_span(self._tracer, f"deliver {row['event_type']}", attributes) as span:
                    self._runtime.trace_links.link(row["payment_id"])
                    answer = await self._send(row)
                    if span.is_recording() and not isinstance(answer, EgressBusy):
                        _describe(span, row, answer)
                if isinstance(answer, EgressResponse):
                    self._attempt_seconds.observe(answer.ms / 1000)
                if not isinstance(answer, EgressBusy):
                    self._note(limit, answer)
        if isinstance(answer, EgressBusy):
            # Nothing was sent: too many of the merchant's calls wait for DNS.
            await self._recorder.defer(row["delivery_id"], self._runtime.clock.now() + _NO_ROOM)
        elif answer is not None:
            await self._recorder.record(row, answer)
        elif is_closed and closed_until is not None:
            # A pause does not count as an attempt.
            await self._recorder.defer(row["delivery_id"], closed_until)
        else:
            await self._recorder.release(row["delivery_id"], lease.leased_until)

    def _note(self, limit: EndpointLimit, answer: EgressResponse | EgressFailed) -> None:
        now = self._runtime.clock.now()
        limit.record_outcome(
            is_taken=is_delivered(answer),
            at=now,
            most=self._settings.breaker_failures,
            until=now + timedelta(seconds=self._settings.breaker_pause),
        )

    async def _send(self, row: Row) -> EgressResponse | EgressFailed | EgressBusy:
        now = self._runtime.clock.now()
        body = text_of(row).encode()
        merchant_id = row["merchant_id"]
        secrets = [self._endpoints.open(merchant_id, row["secret"])]
        if row["previous_secret"] is not None and row["previous_until"] > now:
            secrets.append(self._endpoints.open(merchant_id, row["previous_secret"]))
        headers = signing.headers(row["event_id"], row["event_type"], body, now, secrets)
        if self._runtime.tracing.is_sent_to_merchants and (traceparent := current_traceparent()):
            headers["traceparent"] = traceparent
        loopback = await self._endpoints.allows_loopback(row["env"])
        send = partial(
            self.egress.post, row["url"], body=body, headers=headers, allow_loopback=loopback, account=merchant_id
        )
        try:
            return await send()
        except EgressBusy as problem:
            return problem
        except EgressFailed as failure:
            if failure.reason != "reset":
                return failure
        # The server closed a kept connection: retry once.
        try:
            return await send()
        except (EgressFailed, EgressBusy) as failure:
            return failure


def _describe(span: Span, row: Row, answer: EgressResponse | EgressFailed) -> None:
    # Only the host: the rest of the address may contain a secret.
    url = urlsplit(str(row["url"]))
    set_attributes(
        span,
        {
            "server.address": url.hostname or "",
            "server.port": url.port or (443 if url.scheme == "https" else 80),
            "url.scheme": url.scheme,
            "http.request.resend_count": row["attempts"],
            "mpesa.merchant_id": row["merchant_id"],
            "mpesa.event_id": row["event_id"],
            "mpesa.event_type": row["event_type"],
            "mpesa.delivery_id": row["delivery_id"],
        },
    )
    if isinstance(answer, EgressResponse):
        set_attributes(span, {"http.response.status_code": answer.status})
    if not is_delivered(answer):
        set_error(span, str(answer.status) if isinstance(answer, EgressResponse) else answer.reason)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
