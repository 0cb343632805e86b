"""The queues: SAQ on Valkey wakes the work that Postgres says is owed. All of it may vanish and nothing is lost.

Each kind of work has a queue and slots of its own, so that a job that waits delays only its own kind.
"""

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import structlog
import valkey.asyncio
from saq import CronJob, Status
from saq import Job as SaqJob
from saq.job import UNSUCCESSFUL_TERMINAL_STATUSES
from saq.queue.redis import RedisQueue
from saq.utils import now, uuid1
from saq.worker import Worker
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import ResponseError, ValkeyError

from mpesa_gateway.config import QUEUES, QueueName, ValkeyConfig
from mpesa_gateway.logs import trace
from mpesa_gateway.measures import JOB_SECONDS, JOBS
from mpesa_gateway.origin import Origin, coming_from, current_origin, origins, read_origins
from mpesa_gateway.plugin import Job
from mpesa_gateway.sentinel import primary_pool
from mpesa_gateway.tracing import UNTRACED, Attributes, Tracer

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

_DEQUEUE = 1.0
"""Seconds that an idle worker waits in Valkey before it looks whether it should stop."""

_RELEASE_AGAIN = 0.01
"""Seconds between two attempts to make idle slots return from Valkey while their worker stops."""

_AWAY = 1.0
"""Seconds between attempts while Valkey does not answer."""

_REST = 2.0
"""Seconds without enqueueing after Valkey did not answer: the sweepers will find the work."""

_PATIENCE = 0.5
"""Seconds that enqueueing may take before the caller goes on without it."""

_WAKING_AT_MOST = 1000
"""Wake-ups that may be on their way to Valkey; what is beyond them is left to the sweepers."""

_KEEP = 60
"""Seconds that a finished job stays visible in Valkey."""

_KEEP_FAILED = 7 * 24 * 3600
"""Seconds that a failed one does, so that somebody can see why."""

_FAILED_AT_MOST = 1000
"""Failed jobs that are listed; the oldest make room."""


_REQUEST_ID, _TRACE, _ORIGINS = "request_id", "trace", "origins"
"""What a job's ``meta`` tells of the request that led to it, or of those that led to each of the things it is about."""

_SAQ: Attributes = {"messaging.system": "saq"}

_SAY_AGAIN = 30.0
"""Seconds between two lines in the log about one Valkey that is away: every idle slot of a worker notices it."""


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
            self._say_away(problem)
        finally:
            self._dequeuing -= 1
        await asyncio.sleep(_AWAY)
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

    def _say_away(self, problem: BaseException) -> None:
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
        """Put a failed job on the queue once more; None when it is not there, or somebody else has just done so."""
        job = await self.job(key)
        # Whoever takes it off the list is the one who retries it.
        if not await self.redis.zrem(self._failed_ids, self.job_id(key)) or job is None or not _has_failed(job):
            return None
        await self.retry(job, None)
        return job

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
            await self.redis.expire(job_id, _KEEP)

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
        "socket_timeout": config.timeout + (_DEQUEUE * 10 if patient else 0),
        "retry": Retry(NoBackoff(), 1),
        "health_check_interval": 15,
    }
    if config.sentinels:
        return valkey.asyncio.Valkey.from_pool(primary_pool(config, **options))
    return valkey.asyncio.from_url(config.url.reveal(), **options)  # type: ignore[no-untyped-call]


class Jobs:
    """Puts work on the queue. Without Valkey it says so and goes on: a sweeper hands it over later."""

    def __init__(self, config: ValkeyConfig, known: dict[str, Job], tracer: Tracer = UNTRACED) -> None:
        self._config = config
        self._known = known
        self._tracer = tracer
        self._client = connect(config)
        self._queues: dict[QueueName, GatewayQueue] = {
            name: GatewayQueue(self._client, name=queue_key(config, name)) for name in QUEUES
        }
        self._resting_until = 0.0
        self._waking: set[asyncio.Task[bool]] = set()

    @property
    def queues(self) -> Mapping[QueueName, GatewayQueue]:
        """The queues as SAQ knows them."""
        return self._queues

    async def stop(self) -> None:
        """Close the connections, once everybody has been woken."""
        await asyncio.gather(*self._waking, return_exceptions=True)
        for queue in self._queues.values():
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
        origins: Mapping[str, Origin] | None = None,
        **kwargs: Any,
    ) -> bool:
        """Wake a job, ``delay`` seconds from now (whole seconds, rounded up).

        kwargs are shown to operators: ids only. With ``once``, an id, nothing is added while a job of this name with
        the same id waits or runs. ``origins`` says whose request each of the things is that the job is about, where
        they are of several. False when Valkey is away; raises KeyError for an unknown job.
        """
        with self._tracer.step(f"enqueue {name}", _SAQ, "producer"):
            return await self._enqueue(name, delay, once, origins, kwargs)

    async def _enqueue(
        self, name: str, delay: float, once: str | None, known: Mapping[str, Origin] | None, kwargs: dict[str, Any]
    ) -> bool:
        job = self._known[name]
        loop = asyncio.get_running_loop()
        if loop.time() < self._resting_until:
            return False
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._queues[job.queue].enqueue(
                    SaqJob(
                        function=name,
                        key=f"{name}:{once}" if once is not None else uuid1(),
                        kwargs=kwargs,
                        timeout=job.timeout,
                        heartbeat=job.heartbeat,
                        retries=job.attempts,
                        ttl=_KEEP,
                        meta=_asked_by(self._tracer, known),
                        scheduled=math.ceil(time.time() + delay) if delay else 0,
                    )
                )
        except (ValkeyError, OSError, TimeoutError) as problem:
            self._resting_until = loop.time() + _REST
            log.warning("queue_unavailable", job=name, error=type(problem).__name__)
            return False
        return True


class GatewayWorker(Worker[Any]):
    """SAQ's worker without its signal handlers, stopping as soon as the running jobs have finished."""

    SIGNALS: list[signal.Signals] = []  # noqa: RUF012 - declared so by SAQ

    queue: GatewayQueue

    async def upkeep(self) -> list["asyncio.Task[None]"]:
        """SAQ's upkeep, remembered so that stopping need not sleep it out."""
        self._upkeep = await super().upkeep()
        return self._upkeep

    async def stop(self) -> None:
        """Take no more jobs, finish those that run or hand them back, and close."""
        self.event.set()
        pending: set[asyncio.Task[None]] = set(getattr(self, "_upkeep", ()))
        while pending:
            # More than once: a cancellation that meets a connection being made can get lost, and a sleep follows.
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)
        releasing = asyncio.create_task(self.queue.release_idle())
        try:
            await super().stop()
        finally:
            releasing.cancel()
            await asyncio.wait([releasing])


def build_worker(gateway: "Gateway", name: QueueName) -> GatewayWorker:
    """A worker for the jobs and crons of one queue."""
    config = gateway.config
    queue = GatewayQueue(connect(config.valkey, patient=True), name=queue_key(config.valkey, name))
    jobs = {known: job for known, job in gateway.jobs_by_name.items() if job.queue == name}
    functions: list[tuple[str, Any]] = []
    crons: list[CronJob[Any]] = []
    for known, job in jobs.items():
        run = _runner(gateway, known, job)
        functions.append((known, run))
        if job.cron is not None:
            crons.append(
                CronJob(
                    run, cron=job.cron, timeout=job.timeout, heartbeat=job.heartbeat, retries=job.attempts, ttl=_KEEP
                )
            )
    return GatewayWorker(
        queue,
        functions,
        # Crons are unique: with a slot for each, none waits for another one that takes long.
        concurrency=max(getattr(config.worker, name), len(crons)),
        cron_jobs=crons,
        timers={"schedule": 1, "worker_info": 10, "sweep": 5, "abort": 1},
        dequeue_timeout=_DEQUEUE,
        shutdown_grace_period_s=config.worker.grace,
        cancellation_hard_deadline_s=5.0,
    )


class JobFailed(Exception):
    """A job raised. The text is how that came about, without secrets and whole phone numbers."""


Runner = Callable[..., Coroutine[Any, Any, None]]


def _runner(gateway: "Gateway", name: str, job: Job) -> Runner:
    async def run(context: dict[str, Any], **kwargs: Any) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(job=name)
        beat = asyncio.create_task(_beat(context["job"], job.heartbeat / 3))
        began, outcome = time.perf_counter(), "stopped"
        try:
            await _run_asked(gateway, name, job, context["job"].meta, kwargs)
            outcome = "done"
        except Exception as problem:  # noqa: BLE001 - whatever a job raises, it failed
            outcome = "failed"
            # SAQ keeps and logs what it sees of a failure as it is: a database's error can quote a whole row.
            raise JobFailed(trace(problem)) from None
        finally:
            beat.cancel()
            gateway.meter.count(JOBS, name, outcome)
            gateway.meter.time(JOB_SECONDS, time.perf_counter() - began, name)

    # SAQ names a cron, and the key that makes it fire once per cluster, after its function.
    run.__qualname__ = name
    return run


async def _run_asked(gateway: "Gateway", name: str, job: Job, meta: Mapping[str, Any], kwargs: dict[str, Any]) -> None:
    """Run a job for whoever asked for it, so that its log lines and its span say so."""
    request_id, tracer = meta.get(_REQUEST_ID, ""), gateway.tracer
    about: Attributes = {} if tracer is UNTRACED else _about(name, kwargs, request_id)
    with (
        coming_from(Origin(request_id, ""), UNTRACED),
        origins(read_origins(meta.get(_ORIGINS, {}))),
        tracer.job(name, about, carried=meta.get(_TRACE, ""), is_cron=job.cron is not None),
    ):
        await job.fn(gateway, **kwargs)


def _about(name: str, kwargs: Mapping[str, Any], request_id: str) -> Attributes:
    """What a span says of a job. Its kwargs are ids, or lists of them, of which it says how many there are."""
    said: dict[str, str | int | float | bool] = {
        **_SAQ,
        "messaging.destination.name": name,
        "messaging.operation.type": "process",
    }
    if request_id:
        said["mpesa.request_id"] = request_id
    for what, value in kwargs.items():
        if isinstance(value, str):
            said[f"mpesa.{what}"] = value
        elif isinstance(value, Sized):
            said["messaging.batch.message_count"] = len(value)
    return said


def _asked_by(tracer: Tracer, known: Mapping[str, Origin] | None) -> dict[str, Any]:
    """What a job is told of the requests that led to it."""
    origin = current_origin(tracer)
    meta: dict[str, Any] = {}
    if origin is not None:
        meta = {name: text for name, text in ((_REQUEST_ID, origin.request_id), (_TRACE, origin.carried)) if text}
    if known:
        meta[_ORIGINS] = {name: origin.as_meta() for name, origin in known.items()}
    return meta


async def _beat(job: SaqJob, every: float) -> None:
    """Tell Valkey that the job is alive, so that only a dead worker's jobs are given to another."""
    while True:
        await asyncio.sleep(every)
        try:
            await job.update()
        except (ValkeyError, OSError, TimeoutError) as problem:
            log.warning("queue_unavailable", error=type(problem).__name__)


class WorkerGroup:
    """The workers of one process, one for each queue that it serves."""

    def __init__(self, workers: Mapping[QueueName, GatewayWorker]) -> None:
        self.workers = dict(workers)

    def stop(self) -> None:
        """Tell all of them to take no more jobs."""
        for worker in self.workers.values():
            worker.event.set()


async def run_worker(group: WorkerGroup, started: Callable[[], Awaitable[None]] | None = None) -> None:
    """Work until the group is stopped, then finish or hand back what is running. Raises what one of them raises."""
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
        # If one has failed, the others finish what they do: the process is about to end.
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for worker in workers:
            await worker.queue.disconnect()


async def keep_working(builders: Sequence[Callable[[], GatewayWorker]]) -> None:
    """Work until cancelled, each worker for itself."""
    await asyncio.gather(*map(_keep_working, builders))


async def _run_one(worker: GatewayWorker) -> None:
    try:
        await worker.queue.connect()
        await worker.start()
    finally:
        await worker.queue.disconnect()


async def _keep_working(build: Callable[[], GatewayWorker]) -> None:
    """Work until cancelled. A worker that ends by itself is followed by a new one: no supervisor would notice."""
    task = asyncio.current_task()
    while True:
        try:
            await _run_one(build())
        except Exception as problem:  # noqa: BLE001 - another worker follows
            log.error("worker_ended", exception=trace(problem))
        # SAQ's worker takes a cancellation as the wish to stop, and returns.
        if task is not None and task.cancelling():
            return
        await asyncio.sleep(_AWAY)
