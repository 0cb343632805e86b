"""Queues on Valkey (SAQ), which can be lost: Postgres holds the pending work."""

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
"""Seconds that an idle worker blocks in Valkey."""

_RELEASE_AGAIN = 0.01

RECONNECT_PAUSE = 1.0
"""Seconds between attempts while Valkey is unreachable."""

_PAUSE = 2.0
"""Seconds without enqueueing after a timeout."""

_PATIENCE = 0.5

_WAKING_AT_MOST = 1000

KEEP = 60

_KEEP_FAILED = 7 * 24 * 3600

_FAILED_AT_MOST = 1000


_UNSCHEDULE = """
if tonumber(redis.call('ZSCORE', KEYS[1], KEYS[2]) or 0) > 0 then return redis.call('ZREM', KEYS[1], KEYS[2]) end
return 0
"""
"""Removes a job from the incomplete ones if it is scheduled; the score of queued and active jobs is 0."""

REQUEST_ID, TRACE, ORIGINS = "request_id", "trace", "origins"
"""A job's ``meta``: the request that led to it, or one per object."""

SAQ: Attributes = {"messaging.system": "saq"}

_LOG_INTERVAL = 30.0


@dataclass(frozen=True)
class Job:
    """Work for the queue: ``fn(gateway, **kwargs)``. kwargs carry ids, never phone numbers or secrets.

    ``timeout`` and ``heartbeat`` are in seconds; ``attempts`` counts all tries; ``cron`` has five fields, or six with
    seconds last, in UTC, and fires once per cluster.
    """

    fn: Callable[..., Awaitable[Any]]
    timeout: int
    attempts: int = 1
    cron: str | None = None
    heartbeat: int = 20
    queue: QueueName = "default"


class GatewayQueue(RedisQueue):
    """SAQ's queue with a list of failed jobs."""

    _said_at = -_LOG_INTERVAL

    def __init__(self, client: Any, name: str) -> None:
        super().__init__(client, name)
        self._dequeuing = 0
        self._asking_version = asyncio.Lock()
        self._client_ids: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        client.connection_pool.connection_kwargs["valkey_connect_func"] = self._note_client_id

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> SaqJob | None:  # noqa: ASYNC109 - SAQ's signature
        """Wait while Valkey is unreachable."""
        self._dequeuing += 1
        try:
            return await super().dequeue(timeout, poll_interval)
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._log_unreachable(problem)
        finally:
            self._dequeuing -= 1
        await asyncio.sleep(RECONNECT_PAUSE)
        return None

    async def version(self) -> tuple[int, ...]:
        async with self._asking_version:
            return await super().version()

    async def release_idle(self) -> None:
        """Make waiting ``dequeue`` calls return None; no job is lost.

        If an ACL forbids CLIENT UNBLOCK, they end by timeout.
        """
        try:
            while self._dequeuing:
                for client_id in list(self._client_ids.values()):
                    await self.redis.client_unblock(client_id)
                # A slot that had not reached Valkey is released the next time.
                await asyncio.sleep(_RELEASE_AGAIN)
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.debug("idle_slots_not_released", error=type(problem).__name__)

    async def _note_client_id(self, connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command("CLIENT", "ID")
        with contextlib.suppress(ResponseError):
            self._client_ids[connection] = await connection.read_response()

    def _log_unreachable(self, problem: BaseException) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= _LOG_INTERVAL:
            self._said_at = now
            log.warning("queue_unavailable", error=type(problem).__name__)

    async def sweep(self, lock: int = 60, abort: float = 0.2) -> list[str]:
        """Wait ``abort`` seconds for each dead job instead of SAQ's 5."""
        return await super().sweep(lock, abort)

    async def _retry(self, job: SaqJob, error: str | None) -> None:
        # SAQ would list a job that was delayed as queued and as due, and run it twice.
        job.scheduled = 0
        await super()._retry(job, error)

    async def abort(self, job: SaqJob, error: str, ttl: float = 5) -> None:
        """End a scheduled job at once: SAQ leaves that to a worker, and none has it."""
        unschedule: Any = self.redis.register_script(_UNSCHEDULE)
        if await unschedule(keys=[self._incomplete, job.id]):
            await self.finish(job, Status.ABORTED, error=error)
            return
        await super().abort(job, error, ttl)
        if job.status is Status.ABORTING:
            # The job's worker may be dead.
            await self.redis.expire(job.id, _KEEP_FAILED)

    async def count_failed(self) -> int:
        return int(await self.redis.zcard(self._failed_ids))

    async def count_workers(self) -> int:
        return int(await self.redis.zcount(self.namespace("stats"), now(), "inf"))

    async def failed_jobs(self, offset: int, limit: int) -> list[SaqJob]:
        ids = await self.redis.zrevrange(self._failed_ids, offset, offset + limit - 1)
        keys = [self.job_key_from_id(job_id.decode()) for job_id in ids]
        jobs = await self.jobs(keys) if keys else []
        unlisted = [job_id for job_id, job in zip(ids, jobs, strict=True) if not _has_failed(job)]
        if unlisted:
            await self.redis.zrem(self._failed_ids, *unlisted)
        return [job for job in jobs if job is not None and _has_failed(job)]

    async def retry_failed(self, key: str) -> SaqJob | None:
        job = await self._unlist_failed(key)
        if job is not None:
            await self.retry(job, None)
        return job

    async def discard_failed(self, key: str) -> SaqJob | None:
        job = await self._unlist_failed(key)
        if job is not None:
            await self.redis.expire(job.id, KEEP)
        return job

    async def _unlist_failed(self, key: str) -> SaqJob | None:
        job = await self.job(key)
        # Of two concurrent calls, one removes the entry.
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
        try:
            await super().disconnect()
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.warning("queue_unavailable", error=type(problem).__name__)
            await self.redis.aclose()


def queue_key(config: ValkeyConfig, queue: QueueName) -> str:
    return f"{config.prefix}-{queue}"


def _has_failed(job: SaqJob | None) -> bool:
    return job is not None and job.status in UNSUCCESSFUL_TERMINAL_STATUSES


def connect(config: ValkeyConfig, *, patient: bool = False) -> Any:
    """``patient`` clients may block in Valkey."""
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
    """Enqueues jobs. Without Valkey, a sweeper does so later."""

    def __init__(self, config: ValkeyConfig, known: Mapping[str, Job], tracer: Tracer = UNTRACED) -> None:
        self._config = config
        self._known = known
        self._tracer = tracer
        self._queues: dict[QueueName, GatewayQueue] = {}
        self._paused_until = 0.0
        self._waking: set[asyncio.Task[bool]] = set()

    @property
    def queues(self) -> Mapping[QueueName, GatewayQueue]:
        if not self._queues:
            raise NotStarted
        return self._queues

    async def start(self) -> None:
        client = connect(self._config)
        self._queues = {name: GatewayQueue(client, name=queue_key(self._config, name)) for name in QUEUES}

    async def stop(self) -> None:
        """Wait for pending wake-ups."""
        await asyncio.gather(*self._waking, return_exceptions=True)
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            await queue.disconnect()

    def wake(self, name: str, /, **kwargs: Any) -> None:
        """Enqueue without waiting, unless too many wake-ups are pending: a sweeper finds the work."""
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
        """Enqueue a job in ``delay`` seconds (rounded up). kwargs are shown to operators: ids only.

        With ``once``, an id, nothing is added while such a job waits or runs. ``origins`` maps ids to their requests.
        Returns False without Valkey. Raises KeyError for an unknown job.
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
        if loop.time() < self._paused_until:
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
                        meta=_context_meta(known),
                        scheduled=math.ceil(time.time() + delay) if delay else 0,
                    )
                )
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._paused_until = loop.time() + _PAUSE
            log.warning("queue_unavailable", job=name, error=type(problem).__name__)
            return False
        return True


def _context_meta(known: Mapping[str, RequestContext] | None) -> dict[str, Any]:
    origin = current_context()
    meta: dict[str, Any] = {}
    if origin is not None:
        meta = {name: text for name, text in ((REQUEST_ID, origin.request_id), (TRACE, origin.traceparent)) if text}
    if known:
        meta[ORIGINS] = {name: origin.as_meta() for name, origin in known.items()}
    return meta
