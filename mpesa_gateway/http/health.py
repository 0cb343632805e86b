"""Liveness and readiness of the gateway."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from mpesa_gateway.client_ip import is_within, read_address
from mpesa_gateway.daraja.certificates import describe_used
from mpesa_gateway.db.migrator import MigrationError, pending
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.http.request_id import SLOWED
from mpesa_gateway.http.self_probe import answer_challenge
from mpesa_gateway.runtime import Runtime

_TIMEOUT = 2.0

_REUSED_FOR = 1.0

_running_checks: "WeakKeyDictionary[Runtime, tuple[asyncio.Task[dict[str, Part]], float]]" = WeakKeyDictionary()


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of one dependency."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"ok": True}

    ok: bool
    detail: str | None = None


class Health(msgspec.Struct, frozen=True):
    """State of all dependencies. Without Valkey payments continue; rate limits and wake-ups pause."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"ready": True, "parts": {"postgres": {"ok": True}, "valkey": {"ok": True}}}

    ready: bool
    parts: dict[str, Part]


class Seen(msgspec.Struct, frozen=True):
    """How a request arrived: connected peer and derived client."""

    peer: str
    client: str
    peer_is_trusted: bool
    was_forwarded: bool


class Live(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process answers. ``proof`` and ``seen`` are for the doctor."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"live": True}

    live: bool
    proof: str | None = None
    seen: Seen | None = None


@get("/health/live", public=True, priority=True, probe=True, tags=["Operators"])
async def live(
    request: Request[Any, Any, Any], gateway: NamedDependency[Any], challenge: FromQuery[str | None] = None
) -> Success[Live]:
    """Report that the process answers. `mpesa-gateway doctor` sends ``challenge`` to identify this gateway."""
    proof = None if challenge is None else answer_challenge(gateway.vault, challenge)
    return Success(data=Live(live=True) if proof is None else Live(live=True, proof=proof, seen=_seen(request)))


def _seen(request: Request[Any, Any, Any]) -> Seen:
    peer = read_address(request.client.host if request.client else "")
    return Seen(
        peer=str(peer or "unknown"),
        client=address_of(request),
        peer_is_trusted=peer is not None and is_within(peer, request.app.state.gateway.trusted_proxies),
        was_forwarded="x-forwarded-for" in request.headers,
    )


@get("/health/ready", public=True, priority=True, probe=True, tags=["Operators"], answers={503: Success[Health]})
async def ready(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[Success[Health]]:
    """Report Postgres, migrations, Valkey, queue and certificates. 503: send no requests here."""
    parts = await _examine_shared(gateway, may_be_old=bool(cast("dict[str, Any]", request.scope).get(SLOWED)))
    if gateway.is_draining:
        parts["process"] = Part(ok=False, detail="shutting down: send no new requests")
    is_ready = gateway.is_running and not gateway.is_draining and parts["postgres"].ok and parts["migrations"].ok
    return Response(Success(data=Health(ready=is_ready, parts=parts)), status_code=200 if is_ready else 503)


async def _examine_shared(runtime: Runtime, *, may_be_old: bool) -> dict[str, Part]:
    """Concurrent requests share one result.

    With ``may_be_old``, for addresses above their rate, it is reused for _REUSED_FOR seconds.
    """
    now = asyncio.get_running_loop().time()
    running, began = _running_checks.get(runtime, (None, now))
    if running is None or (running.done() and not (may_be_old and now - began < _REUSED_FOR)):
        running = asyncio.create_task(check_parts(runtime))
        _running_checks[runtime] = running, now
    # A client that disconnects must not cancel the shared task.
    return dict(await asyncio.shield(running))


async def check_parts(runtime: Runtime) -> dict[str, Part]:
    checks = {
        "postgres": _postgres(runtime),
        "migrations": _migrations(runtime),
        "valkey": _valkey(runtime),
        "queue": _queue(runtime),
        "certificates": _certificates(runtime),
    }
    return dict(zip(checks, await asyncio.gather(*map(_part, checks.values())), strict=True))


async def _part(check: Awaitable[str | None]) -> Part:
    try:
        async with asyncio.timeout(_TIMEOUT):
            return Part(ok=True, detail=await check)
    except NotReady as problem:
        return Part(ok=False, detail=str(problem))
    except Exception as problem:  # noqa: BLE001 - any driver error means the part is not ready
        return Part(ok=False, detail=type(problem).__name__)


class NotReady(Exception):
    """The part answers but is not ready."""


async def _postgres(runtime: Runtime) -> str | None:
    # raw SQL: hot path - each probe, on no table.
    await runtime.db.fetchval("SELECT 1")
    return None


async def _migrations(runtime: Runtime) -> str | None:
    try:
        missing = await pending(runtime.db, runtime.migrations)
    except MigrationError as problem:
        raise NotReady(str(problem)) from None
    if missing:
        raise NotReady(f"{len(missing)} to apply: run `mpesa-gateway migrate`")
    return None


async def _valkey(runtime: Runtime) -> str | None:
    await runtime.valkey.ping()
    return None


async def _queue(runtime: Runtime) -> str | None:
    queues = runtime.jobs.queues
    workers = {name: await queue.count_workers() for name, queue in queues.items()}
    if not any(workers.values()):
        raise NotReady("no worker is running: start `mpesa-gateway worker`")
    if unserved := [name for name, count in workers.items() if not count]:
        raise NotReady(f"no worker serves {', '.join(unserved)}: see --queues of `mpesa-gateway worker`")
    waiting = sum([await queue.count("queued") for queue in queues.values()])
    return f"{min(workers.values())} working, {waiting} waiting"


async def _certificates(runtime: Runtime) -> str | None:
    has_live = await runtime.merchants.any_live()
    is_fine, text = await asyncio.to_thread(
        describe_used, runtime.config.daraja, runtime.clock.now(), has_live=has_live
    )
    if not is_fine:
        raise NotReady(text)
    return text


routes = (live, ready)
