"""How the kernel's parts stand at this moment: the servers, the queue and its workers, tokens, certificates."""

import asyncio
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from mpesa_gateway.daraja.certificates import CertificateRefused, certificate_for
from mpesa_gateway.db.migrator import MigrationRefused, pending
from mpesa_gateway.doctor.workers import crons_not_run
from mpesa_gateway.meter import Gauge, Value
from mpesa_gateway.readings import Reading
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env

BUILD = Gauge("mpesa_build_info", "1, with the release that this process runs.", ("version",))
POSTGRES = Gauge("mpesa_postgres_up", "Whether Postgres answers this process.")
MIGRATIONS = Gauge(
    "mpesa_migrations_pending", "Migrations that this process wants and Postgres lacks; -1: cannot tell."
)
VALKEY = Gauge("mpesa_valkey_up", "Whether Valkey answers this process.")
WORKERS = Gauge("mpesa_workers", "Workers of a queue whose heartbeat is not older than a minute.", ("queue",))
QUEUE = Gauge(
    "mpesa_queue_jobs",
    "Jobs of a queue by state: waiting, active, incomplete (with those for later), failed.",
    ("queue", "state"),
)
CRONS = Gauge(
    "mpesa_crons_not_run", "Tasks that run by the clock and have not run for a minute, or that no worker knows."
)
CALLS = Gauge("mpesa_http_calls", "API calls in this process by state: working, waiting, unanswered.", ("state",))
TOKENS = Gauge("mpesa_daraja_tokens", "Access tokens of Daraja that this process holds and still uses.")
TOKEN_AGE = Gauge("mpesa_daraja_token_age_seconds", "The age of the oldest of these; 0 where there is none.")
CERTIFICATE = Gauge(
    "mpesa_certificate_expires_seconds", "Until Safaricom's certificate ends; negative afterwards.", ("env",)
)


async def read_build(_: Runtime) -> Sequence[Value]:
    """Which release this is."""
    return [(BUILD, (version("mpesa-gateway"),), 1)]


async def read_postgres(runtime: Runtime) -> Sequence[Value]:
    """Whether Postgres is there, and as this release wants it."""
    try:
        missing = len(await pending(runtime.db, runtime.migrations))
    except MigrationRefused:
        missing = -1
    except Exception:  # noqa: BLE001 - whatever a driver raises, it is not there
        return [(POSTGRES, (), 0), (MIGRATIONS, (), -1)]
    return [(POSTGRES, (), 1), (MIGRATIONS, (), missing)]


async def read_queue(runtime: Runtime) -> Sequence[Value]:
    """Jobs and workers by queue."""
    values: list[Value] = [(VALKEY, (), 1)]
    try:
        await runtime.valkey.ping()
        for name, queue in runtime.jobs.queues.items():
            values += [
                (WORKERS, (name,), await queue.count_workers()),
                (QUEUE, (name, "waiting"), await queue.count("queued")),
                (QUEUE, (name, "active"), await queue.count("active")),
                (QUEUE, (name, "incomplete"), await queue.count("incomplete")),
                (QUEUE, (name, "failed"), await queue.count_failed()),
            ]
        missing, late = await crons_not_run(runtime, runtime.clock.now())
    except Exception:  # noqa: BLE001 - likewise
        return [(VALKEY, (), 0)]
    return [*values, (CRONS, (), len(missing) + len(late))]


async def read_process(runtime: Runtime) -> Sequence[Value]:
    """How this process is doing: its calls, its tokens."""
    load = runtime.load
    held, oldest = runtime.daraja.tokens_held()
    return [
        (CALLS, ("working",), load.working if load else 0),
        (CALLS, ("waiting",), load.waiting if load else 0),
        (CALLS, ("unanswered",), load.unanswered if load else 0),
        (TOKENS, (), held),
        (TOKEN_AGE, (), oldest.total_seconds()),
    ]


async def read_certificates(runtime: Runtime) -> Sequence[Value]:
    """Until when Safaricom's certificates are valid, those whose files are there."""
    return await asyncio.to_thread(lambda: list(_certificates(runtime)))


def _certificates(runtime: Runtime) -> Iterator[Value]:
    config, now = runtime.config.daraja, runtime.clock.now()
    envs: tuple[Env, ...] = get_args(Env)
    for env in envs:
        if Path(config.live_certificate if env == "live" else config.sandbox_certificate).exists():
            try:
                left = (certificate_for(config, env).not_after - now).total_seconds()
            except CertificateRefused:
                left = -1.0
            yield CERTIFICATE, (env,), left


READINGS = (
    Reading((BUILD,), read_build),
    Reading((POSTGRES, MIGRATIONS), read_postgres),
    Reading((VALKEY, WORKERS, QUEUE, CRONS), read_queue),
    Reading((CALLS, TOKENS, TOKEN_AGE), read_process),
    Reading((CERTIFICATE,), read_certificates),
)
