"""The queues: SAQ on Valkey wakes the work that Postgres says is owed. All of it may vanish and nothing is lost.

Each kind of work has a queue and slots of its own, so that a job that waits delays only its own kind.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import structlog
import valkey.asyncio
from opentelemetry.trace import SpanKind, Tracer
from saq import Job as SaqJob
from saq import Status
from saq.job import UNSUCCESSFUL_TERMINAL_STATUSES
from saq.queue.redis import RedisQueue
from saq.utils import now, uuid1
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import ResponseError, ValkeyError

from mpesa_gateway.config import QUEUES, QueueName, ValkeyConfig
from mpesa_gateway.correlation import RequestContext, current_context
from mpesa_gateway.errors import NotStarted
from mpesa_gateway.sentinel import primary_pool
from mpesa_gateway.tracing import UNTRACED, Attributes, child_span

log = structlog.get_logger(__name__)

DEQUEUE = 1.0
"""Seconds that an idle worker waits in Valkey before it looks whether it should stop."""

_RELEASE_AGAIN = 0.01
"""Seconds between two attempts to make idle slots return from Valkey while their worker stops."""

AWAY = 1.0
"""Seconds between attempts while Valkey does not answer."""

_REST = 2.0
"""Seconds without enqueueing after Valkey did not answer: the sweepers will find the work."""

_PATIENCE = 0.5
"""Seconds that enqueueing may take before the caller goes on without it."""

_WAKING_AT_MOST = 1000
"""Wake-ups that may be on their way to Valkey; what is beyond them is left to the sweepers."""

KEEP = 60
"""Seconds that a finished job stays visible in Valkey."""

_KEEP_FAILED = 7 * 24 * 3600
"""Seconds that a failed one does, so that somebody can see why."""

_FAILED_AT_MOST = 1000
"""Failed jobs that are listed; the oldest make room."""


REQUEST_ID, TRACE, ORIGINS = "request_id", "trace", "origins"
"""What a job's ``meta`` tells of the request that led to it, or of those that led to each of the things it is about."""

SAQ: Attributes = {"messaging.system": "saq"}

_SAY_AGAIN = 30.0
"""Seconds between two lines in the log about one Valkey that is away: every idle slot of a worker notices it."""


@dataclass(frozen=True)
class Job:
    """Work for the queue: ``fn(gateway, **kwargs)``. kwargs carry ids, never phone numbers or secrets.

    ``timeout`` and ``heartbeat`` are in seconds; ``attempts`` is the total number of tries; ``cron`` has five
    fields, or six with seconds last, in UTC, and fires once per cluster. ``queue`` names the slots that it runs in:
    a job that may wait long must not run among jobs that do not.
    """

    fn: Callable[..., Awaitable[Any]]
    timeout: int
    attempts: int = 1
    cron: str | None = None
    heartbeat: int = 20
    queue: QueueName = "default"


class GatewayQueue(RedisQueue):
    """SAQ's queue, patient with a Valkey that is away or was emptied, and with a list of the jobs that failed."""

    _said_at = -_SAY_AGAIN

    def __init__(self, client: Any, name: str) -> None:
        """``client`` is the queue's own: its connections are asked for their numbers when they are made."""
        super().__init__(client, name)
        self._dequeuing = 0
        self._asking_version = asyncio.Lock()
        self._client_ids: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        client.connection_pool.connection_kwargs["valkey_connect_func"] = self._note_client_id

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> SaqJob | None:  # noqa: ASYNC109 - SAQ's shape
        """The next job, or None after a while; a Valkey that is away is waited for, not asked in a hot loop."""
        self._dequeuing += 1
        try:
            return await super().dequeue(timeout, poll_interval)
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._log_unreachable(problem)
        finally:
            self._dequeuing -= 1
        await asyncio.sleep(AWAY)
        return None

    async def version(self) -> tuple[int, ...]:
        """Valkey's version, asked once: not by every slot of a worker that starts."""
        async with self._asking_version:
            return await super().version()

    async def release_idle(self) -> None:
        """Make every ``dequeue`` that waits in Valkey return None now, as at its timeout. For a worker that stops.

        Valkey decides between this and a job that arrives at the same moment: no job is taken and then lost. Where
        Valkey refuses CLIENT UNBLOCK or is away, the timeout of ``dequeue`` remains.
        """
        try:
            while self._dequeuing:
                for client_id in list(self._client_ids.values()):
                    await self.redis.client_unblock(client_id)
                # One that had not reached Valkey yet is released the next time.
                await asyncio.sleep(_RELEASE_AGAIN)
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.debug("idle_slots_not_released", error=type(problem).__name__)

    async def _note_client_id(self, connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command("CLIENT", "ID")
        # An ACL may forbid the command; a worker then stops a little later.
        with contextlib.suppress(ResponseError):
            self._client_ids[connection] = await connection.read_response()

    def _log_unreachable(self, problem: BaseException) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= _SAY_AGAIN:
            self._said_at = now
            log.warning("queue_unavailable", error=type(problem).__name__)

    async def sweep(self, lock: int = 60, abort: float = 0.2) -> list[str]:
        """Return stuck jobs to the queue; wait for each dead one briefly, not SAQ's 5 seconds."""
        return await super().sweep(lock, abort)

    async def count_failed(self) -> int:
        """How many failed jobs are listed."""
        return int(await self.redis.zcard(self._failed_ids))

    async def count_workers(self) -> int:
        """How many workers have given a sign of life that still counts."""
        return int(await self.redis.zcount(self.namespace("stats"), now(), "inf"))

    async def failed_jobs(self, offset: int, limit: int) -> list[SaqJob]:
        """Jobs that failed or were aborted, newest first."""
        ids = await self.redis.zrevrange(self._failed_ids, offset, offset + limit - 1)
        keys = [self.job_key_from_id(job_id.decode()) for job_id in ids]
        jobs = await self.jobs(keys) if keys else []
        gone = [job_id for job_id, job in zip(ids, jobs, strict=True) if not _has_failed(job)]
        if gone:
            await self.redis.zrem(self._failed_ids, *gone)
        return [job for job in jobs if job is not None and _has_failed(job)]

    async def retry_failed(self, key: str) -> SaqJob | None:
        """Enqueue a failed job again and return it; None where it is not listed."""
        job = await self._unlist_failed(key)
        if job is not None:
            await self.retry(job, None)
        return job

    async def discard_failed(self, key: str) -> SaqJob | None:
        """Let a failed job expire like a finished one and return it; None where it is not listed."""
        job = await self._unlist_failed(key)
        if job is not None:
            await self.redis.expire(job.id, KEEP)
        return job

    async def _unlist_failed(self, key: str) -> SaqJob | None:
        job = await self.job(key)
        # Of two concurrent calls, one removes the entry and acts.
        was_listed = await self.redis.zrem(self._failed_ids, self.job_id(key))
        return job if was_listed and _has_failed(job) else None

    @property
    def _failed_ids(self) -> str:
        return self.namespace("failed")

    async def _finish(self, job: SaqJob, status: Status, *, result: Any = None, error: str | None = None) -> None:
        await super()._finish(job, status, result=result, error=error)
        if status not in UNSUCCESSFUL_TERMINAL_STATUSES:
            await self.redis.zrem(self._failed_ids, job.id)
            return
        await self.redis.expire(job.id, _KEEP_FAILED)
        await self.redis.zadd(self._failed_ids, {job.id: job.completed})
        for job_id in await self.redis.zrange(self._failed_ids, 0, -_FAILED_AT_MOST - 1):
            await self.redis.zrem(self._failed_ids, job_id)
            await self.redis.expire(job_id, KEEP)

    async def disconnect(self) -> None:
        """Let go of every connection; from a Valkey that is away there is nothing to take leave of."""
        try:
            await super().disconnect()
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.warning("queue_unavailable", error=type(problem).__name__)
            await self.redis.aclose()


def queue_key(config: ValkeyConfig, queue: QueueName) -> str:
    """What a queue is called in Valkey: the gateway's prefix, and its name."""
    return f"{config.prefix}-{queue}"


def _has_failed(job: SaqJob | None) -> bool:
    return job is not None and job.status in UNSUCCESSFUL_TERMINAL_STATUSES


def connect(config: ValkeyConfig, *, patient: bool = False) -> Any:
    """A client for Valkey. ``patient`` ones, for the queue, may wait inside Valkey for a job."""
    if config.url is None:
        raise ValueError("valkey.url is not set")
    options: dict[str, Any] = {
        "socket_connect_timeout": config.timeout,
        "socket_timeout": config.timeout + (DEQUEUE * 10 if patient else 0),
        "retry": Retry(NoBackoff(), 1),
        "health_check_interval": 15,
    }
    if config.sentinels:
        return valkey.asyncio.Valkey.from_pool(primary_pool(config, **options))
    return valkey.asyncio.from_url(config.url.reveal(), **options)  # type: ignore[no-untyped-call]


class Jobs:
    """Puts work on the queue. Without Valkey it says so and goes on: a sweeper hands it over later."""

    def __init__(self, config: ValkeyConfig, known: Mapping[str, Job], tracer: Tracer = UNTRACED) -> None:
        self._config = config
        self._known = known
        self._tracer = tracer
        self._queues: dict[QueueName, GatewayQueue] = {}
        self._resting_until = 0.0
        self._waking: set[asyncio.Task[bool]] = set()

    @property
    def queues(self) -> Mapping[QueueName, GatewayQueue]:
        """The queues as SAQ knows them. Raises NotStarted."""
        if not self._queues:
            raise NotStarted
        return self._queues

    async def start(self) -> None:
        """Make the queues; nothing is connected yet."""
        client = connect(self._config)
        self._queues = {name: GatewayQueue(client, name=queue_key(self._config, name)) for name in QUEUES}

    async def stop(self) -> None:
        """Close the connections, once everybody has been woken."""
        await asyncio.gather(*self._waking, return_exceptions=True)
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            await queue.disconnect()

    def wake(self, name: str, /, **kwargs: Any) -> None:
        """Like ``enqueue``, without waiting for it: for callers whose client waits for an answer.

        Does nothing while very many are on their way: a sweeper hands the work over later.
        """
        if len(self._waking) >= _WAKING_AT_MOST:
            return
        task = asyncio.create_task(self.enqueue(name, **kwargs))
        self._waking.add(task)
        task.add_done_callback(self._waking.discard)

    async def enqueue(
        self,
        name: str,
        /,
        *,
        delay: float = 0,
        once: str | None = None,
        origins: Mapping[str, RequestContext] | None = None,
        **kwargs: Any,
    ) -> bool:
        """Wake a job, ``delay`` seconds from now (whole seconds, rounded up).

        kwargs are shown to operators: ids only. With ``once``, an id, nothing is added while a job of this name with
        the same id waits or runs. ``origins`` says whose request each of the things is that the job is about, where
        they are of several. False when Valkey is away; raises KeyError for an unknown job.
        """
        with child_span(self._tracer, f"enqueue {name}", SAQ, SpanKind.PRODUCER):
            return await self._enqueue(name, delay, once, origins, kwargs)

    async def _enqueue(
        self,
        name: str,
        delay: float,
        once: str | None,
        known: Mapping[str, RequestContext] | None,
        kwargs: dict[str, Any],
    ) -> bool:
        job = self._known[name]
        loop = asyncio.get_running_loop()
        if loop.time() < self._resting_until:
            return False
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.queues[job.queue].enqueue(
                    SaqJob(
                        function=name,
                        key=f"{name}:{once}" if once is not None else uuid1(),
                        kwargs=kwargs,
                        timeout=job.timeout,
                        heartbeat=job.heartbeat,
                        retries=job.attempts,
                        ttl=KEEP,
                        meta=_asked_by(known),
                        scheduled=math.ceil(time.time() + delay) if delay else 0,
                    )
                )
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._resting_until = loop.time() + _REST
            log.warning("queue_unavailable", job=name, error=type(problem).__name__)
            return False
        return True


def _asked_by(known: Mapping[str, RequestContext] | None) -> dict[str, Any]:
    """What a job is told of the requests that led to it."""
    origin = current_context()
    meta: dict[str, Any] = {}
    if origin is not None:
        meta = {name: text for name, text in ((REQUEST_ID, origin.request_id), (TRACE, origin.traceparent)) if text}
    if known:
        meta[ORIGINS] = {name: origin.as_meta() for name, origin in known.items()}
    return meta
