"""Gauges of the kernel: Postgres, Valkey with the queues, this process, and certificates."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily

from mpesa_gateway.daraja.certificates import CertificateError, certificate_for
from mpesa_gateway.db.migrator import MigrationError, pending
from mpesa_gateway.doctor.workers import crons_not_run
from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.metrics.collector import Collector, Gauges
from mpesa_gateway.runtime import Runtime


def _build_gauges() -> Gauges:
    return (GaugeMetricFamily("mpesa_build_info", "1, with the version that this process runs.", labels=("version",)),)


async def collect_build(_: Runtime, gauges: Gauges) -> None:
    (build,) = gauges
    build.add_metric((version("mpesa-gateway"),), 1)


def _postgres_gauges() -> Gauges:
    return (
        GaugeMetricFamily("mpesa_postgres_up", "1 if Postgres answers this process, else 0."),
        GaugeMetricFamily(
            "mpesa_migrations_pending", "Migrations of this version that Postgres lacks; -1 if that is not known."
        ),
    )


async def collect_postgres(gateway: Runtime, gauges: Gauges) -> None:
    up, migrations = gauges
    missing = -1
    with suppress(MigrationError):
        missing = len(await pending(gateway.db, gateway.migrations))
    up.add_metric((), 1)
    migrations.add_metric((), missing)


def _fail_postgres(gauges: Gauges) -> None:
    up, migrations = gauges
    up.add_metric((), 0)
    migrations.add_metric((), -1)


def _queue_gauges() -> Gauges:
    return (
        GaugeMetricFamily("mpesa_valkey_up", "1 if Valkey answers this process, else 0."),
        GaugeMetricFamily(
            "mpesa_workers", "Workers of a queue that sent a heartbeat in the last minute.", labels=("queue",)
        ),
        GaugeMetricFamily(
            "mpesa_queue_jobs",
            "Jobs of a queue by state: waiting, active, incomplete (scheduled jobs included), failed.",
            labels=("queue", "state"),
        ),
        GaugeMetricFamily(
            "mpesa_crons_not_run", "Cron jobs that have not run for a minute, or that no worker has registered."
        ),
    )


async def collect_queues(gateway: Runtime, gauges: Gauges) -> None:
    up, workers, jobs, crons = gauges
    await gateway.valkey.ping()
    for name, queue in gateway.jobs.queues.items():
        workers.add_metric((name,), await queue.count_workers())
        jobs.add_metric((name, "waiting"), await queue.count("queued"))
        jobs.add_metric((name, "active"), await queue.count("active"))
        jobs.add_metric((name, "incomplete"), await queue.count("incomplete"))
        jobs.add_metric((name, "failed"), await queue.count_failed())
    missing, late = await crons_not_run(gateway, gateway.clock.now())
    crons.add_metric((), len(missing) + len(late))
    up.add_metric((), 1)


def _fail_queues(gauges: Gauges) -> None:
    gauges[0].add_metric((), 0)


def _process_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_http_calls", "API calls in this process by state: working, waiting, unanswered.", labels=("state",)
        ),
        GaugeMetricFamily("mpesa_daraja_tokens", "Access tokens of Daraja that this process holds and uses."),
        GaugeMetricFamily("mpesa_daraja_token_age_seconds", "Age of the oldest of these tokens; 0 without one."),
    )


async def collect_process(gateway: Runtime, gauges: Gauges) -> None:
    calls, tokens, token_age = gauges
    load = gateway.load
    calls.add_metric(("working",), load.working if load else 0)
    calls.add_metric(("waiting",), load.waiting if load else 0)
    calls.add_metric(("unanswered",), load.unanswered if load else 0)
    held, oldest = gateway.daraja.count_tokens()
    tokens.add_metric((), held)
    token_age.add_metric((), oldest.total_seconds())


def _certificate_gauges() -> Gauges:
    return (
        GaugeMetricFamily(
            "mpesa_certificate_expires_seconds",
            "Time until Safaricom's certificate expires; negative afterwards.",
            labels=("env",),
        ),
    )


async def collect_certificates(gateway: Runtime, gauges: Gauges) -> None:
    (expires,) = gauges
    for env, seconds in await asyncio.to_thread(lambda: list(_certificates(gateway))):
        expires.add_metric((env,), seconds)


def _certificates(gateway: Runtime) -> Iterator[tuple[Env, float]]:
    config, now = gateway.config.daraja, gateway.clock.now()
    for env in ENVS:
        if Path(config.live_certificate if env == "live" else config.sandbox_certificate).exists():
            try:
                yield env, (certificate_for(config, env).not_after - now).total_seconds()
            except CertificateError:
                yield env, -1.0


COLLECTORS = (
    Collector(_build_gauges, collect_build, reads_postgres=False),
    Collector(_postgres_gauges, collect_postgres, _fail_postgres),
    Collector(_queue_gauges, collect_queues, _fail_queues, reads_postgres=False),
    Collector(_process_gauges, collect_process, reads_postgres=False),
    Collector(_certificate_gauges, collect_certificates, reads_postgres=False),
)
