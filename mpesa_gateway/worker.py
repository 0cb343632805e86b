"""Workers, one per queue."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Sized
from typing import Any

import structlog
from opentelemetry.trace import SpanKind
from saq import CronJob
from saq import Job as SaqJob
from saq.worker import Worker
from valkey.exceptions import ValkeyError

from mpesa_gateway import queues
from mpesa_gateway.config import QueueName
from mpesa_gateway.correlation import RequestContext, read_contexts, use_context, use_job_contexts
from mpesa_gateway.logs import trace
from mpesa_gateway.metrics.definitions import KernelMetrics
from mpesa_gateway.queues import (
    KEEP,
    ORIGINS,
    RECONNECT_PAUSE,
    REQUEST_ID,
    SAQ,
    TRACE,
    GatewayQueue,
    Job,
    connect,
    queue_key,
)
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.traceparent import read_traceparent
from mpesa_gateway.tracing import Attributes, cron_span, is_enabled, root_span

log = structlog.get_logger(__name__)


class GatewayWorker(Worker[Any]):
    """SAQ's worker without signal handlers and without delay at a stop."""

    SIGNALS: list[signal.Signals] = []  # noqa: RUF012 - as in SAQ

    queue: GatewayQueue

    async def upkeep(self) -> list["asyncio.Task[None]"]:
        self._upkeep = await super().upkeep()
        return self._upkeep

    async def stop(self) -> None:
        self.event.set()
        pending: set[asyncio.Task[None]] = set(getattr(self, "_upkeep", ()))
        while pending:
            # A cancellation during a connect can be lost.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)
        releasing = asyncio.create_task(self.queue.release_idle())
        try:
            await super().stop()
        finally:
            releasing.cancel()
            await asyncio.wait([releasing])


def build_worker(runtime: Runtime, name: QueueName) -> GatewayWorker:
    config = runtime.config
    queue = GatewayQueue(connect(config.valkey, patient=True), name=queue_key(config.valkey, name))
    jobs = {known: job for known, job in runtime.jobs_by_name.items() if job.queue == name}
    functions: list[tuple[str, Any]] = []
    crons: list[CronJob[Any]] = []
    for known, job in jobs.items():
        run = _runner(runtime, known, job)
        functions.append((known, run))
        if job.cron is not None:
            crons.append(
                CronJob(
                    run, cron=job.cron, timeout=job.timeout, heartbeat=job.heartbeat, retries=job.attempts, ttl=KEEP
                )
            )
    return GatewayWorker(
        queue,
        functions,
        # One slot per cron: none waits for a slow one.
        concurrency=max(getattr(config.worker, name), len(crons)),
        cron_jobs=crons,
        timers={"schedule": 1, "worker_info": 10, "sweep": 5, "abort": 1},
        dequeue_timeout=queues.DEQUEUE,
        shutdown_grace_period_s=config.worker.grace,
        cancellation_hard_deadline_s=5.0,
    )


class JobFailed(Exception):
    """The text is a masked traceback."""


Runner = Callable[..., Coroutine[Any, Any, None]]


def _runner(runtime: Runtime, name: str, job: Job) -> Runner:
    metrics = runtime.metrics.get(KernelMetrics)

    async def run(context: dict[str, Any], **kwargs: Any) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(job=name)
        beat = asyncio.create_task(_send_heartbeats(context["job"], job.heartbeat / 3))
        began, outcome = time.perf_counter(), "stopped"
        try:
            await _run_traced(runtime, name, job, context["job"].meta, kwargs)
            outcome = "done"
        except Exception as problem:  # noqa: BLE001 - any error fails the job
            outcome = "failed"
            # SAQ logs the original exception, which may quote a row.
            raise JobFailed(trace(problem)) from None
        finally:
            beat.cancel()
            metrics.jobs.labels(name, outcome).inc()
            metrics.job_seconds.labels(name).observe(time.perf_counter() - began)

    # SAQ names a cron, and its cluster-wide key, after its function.
    run.__qualname__ = name
    return run


async def _run_traced(runtime: Runtime, name: str, job: Job, meta: Mapping[str, Any], kwargs: dict[str, Any]) -> None:
    request_id, traceparent, tracer = meta.get(REQUEST_ID, ""), meta.get(TRACE, ""), runtime.tracer
    about: Attributes = _span_attributes(name, kwargs, request_id) if is_enabled(tracer) else {}
    span = (
        cron_span(tracer, name, about)
        if job.cron is not None and not traceparent
        else root_span(tracer, name, SpanKind.CONSUMER, about, read_traceparent(traceparent))
    )
    with use_context(RequestContext(request_id, "")), use_job_contexts(read_contexts(meta.get(ORIGINS, {}))), span:
        await job.fn(runtime, **kwargs)


def _span_attributes(name: str, kwargs: Mapping[str, Any], request_id: str) -> Attributes:
    attributes: dict[str, str | int | float | bool] = {
        **SAQ,
        "messaging.destination.name": name,
        "messaging.operation.type": "process",
    }
    if request_id:
        attributes["mpesa.request_id"] = request_id
    for what, value in kwargs.items():
        if isinstance(value, str):
            attributes[f"mpesa.{what}"] = value
        elif isinstance(value, Sized):
            attributes["messaging.batch.message_count"] = len(value)
    return attributes


async def _send_heartbeats(job: SaqJob, every: float) -> None:
    """Send heartbeats: only a dead worker's jobs are reassigned."""
    while True:
        await asyncio.sleep(every)
        try:
            await job.update()
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.warning("queue_unavailable", error=type(problem).__name__)


class WorkerGroup:
    """The workers of one process."""

    def __init__(self, workers: Mapping[QueueName, GatewayWorker]) -> None:
        self.workers = dict(workers)

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.event.set()


async def run_worker(group: WorkerGroup, started: Callable[[], Awaitable[None]] | None = None) -> None:
    workers = group.workers.values()
    running: list[asyncio.Task[None]] = []
    try:
        for worker in workers:
            await worker.queue.connect()
        if started is not None:
            await started()
        running = [asyncio.create_task(worker.start()) for worker in workers]
        await asyncio.gather(*running)
    finally:
        # The others finish their jobs.
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for worker in workers:
            await worker.queue.disconnect()


async def keep_working(builders: Sequence[Callable[[], GatewayWorker]]) -> None:
    await asyncio.gather(*map(_keep_working, builders))


async def _run_one(worker: GatewayWorker) -> None:
    try:
        await worker.queue.connect()
        await worker.start()
    finally:
        await worker.queue.disconnect()


async def _keep_working(build: Callable[[], GatewayWorker]) -> None:
    """Restart a worker that ends: no supervisor would notice."""
    task = asyncio.current_task()
    while True:
        try:
            await _run_one(build())
        except Exception as problem:  # noqa: BLE001 - the worker is replaced
            log.error("worker_ended", exception=trace(problem))
        # SAQ's worker returns normally when cancelled.
        if task is not None and task.cancelling():
            return
        await asyncio.sleep(RECONNECT_PAUSE)
