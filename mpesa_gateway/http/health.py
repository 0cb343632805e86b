"""Whether the gateway lives, and whether it can do its work: each part with its state."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from mpesa_gateway.client_ip import read_address, within
from mpesa_gateway.daraja.certificates import describe_used
from mpesa_gateway.db.migrator import MigrationError, pending
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.http.request_id import SLOWED
from mpesa_gateway.http.self_probe import answer
from mpesa_gateway.runtime import Runtime

_PATIENCE = 2.0

_KEPT = 1.0
"""Seconds for which an answer will do."""

_examining: "WeakKeyDictionary[Runtime, tuple[asyncio.Task[dict[str, Part]], float]]" = WeakKeyDictionary()


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that the gateway needs."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"ok": True}

    ok: bool
    detail: str | None = None


class Health(msgspec.Struct, frozen=True):
    """Everything that the gateway needs, by name. Valkey may be away: payments go on, limits and wake-ups wait."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"ready": True, "parts": {"postgres": {"ok": True}, "valkey": {"ok": True}}}

    ready: bool
    parts: dict[str, Part]


class Seen(msgspec.Struct, frozen=True):
    """How a request reached us: who was connected, and whom we took for its client."""

    peer: str
    client: str
    peer_is_trusted: bool
    was_forwarded: bool


class Live(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process answers. ``proof`` and ``seen`` are for the doctor only."""

    EXAMPLE: ClassVar[Mapping[str, Any]] = {"live": True}

    live: bool
    proof: str | None = None
    seen: Seen | None = None


@get("/health/live", public=True, priority=True, probe=True, tags=["Operators"])
async def live(
    request: Request[Any, Any, Any], gateway: NamedDependency[Any], challenge: FromQuery[str | None] = None
) -> Success[Live]:
    """The process answers. `mpesa-gateway doctor` sends a ``challenge`` to find out whether it is this gateway."""
    proof = None if challenge is None else answer(gateway.vault, challenge)
    return Success(data=Live(live=True) if proof is None else Live(live=True, proof=proof, seen=_seen(request)))


def _seen(request: Request[Any, Any, Any]) -> Seen:
    peer = read_address(request.client.host if request.client else "")
    return Seen(
        peer=str(peer or "unknown"),
        client=address_of(request),
        peer_is_trusted=peer is not None and within(peer, request.app.state.gateway.trusted_proxies),
        was_forwarded="x-forwarded-for" in request.headers,
    )


@get("/health/ready", public=True, priority=True, probe=True, tags=["Operators"], answers={503: Success[Health]})
async def ready(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[Success[Health]]:
    """Postgres, migrations, Valkey, queue and certificates, each with its state; 503: send nothing here."""
    parts = await _examine_once(gateway, may_be_old=bool(cast("dict[str, Any]", request.scope).get(SLOWED)))
    if gateway.is_draining:
        parts["process"] = Part(ok=False, detail="about to stop: send nothing new here")
    is_ready = gateway.is_running and not gateway.is_draining and parts["postgres"].ok and parts["migrations"].ok
    return Response(Success(data=Health(ready=is_ready, parts=parts)), status_code=200 if is_ready else 503)


async def _examine_once(runtime: Runtime, *, may_be_old: bool) -> dict[str, Part]:
    """Like ``examine``; requests that come meanwhile share its answer: anybody may ask, as often as they like.

    ``may_be_old``: for _KEPT seconds the last answer will do, for an address that asks faster than it may.
    """
    now = asyncio.get_running_loop().time()
    running, began = _examining.get(runtime, (None, now))
    if running is None or (running.done() and not (may_be_old and now - began < _KEPT)):
        running = asyncio.create_task(examine(runtime))
        _examining[runtime] = running, now
    # Whoever hangs up does not end what the others wait for.
    return dict(await asyncio.shield(running))


async def examine(runtime: Runtime) -> dict[str, Part]:
    """Ask each part, at most two seconds."""
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
        async with asyncio.timeout(_PATIENCE):
            return Part(ok=True, detail=await check)
    except NotReady as problem:
        return Part(ok=False, detail=str(problem))
    except Exception as problem:  # noqa: BLE001 - whatever a driver raises, this part does not work
        return Part(ok=False, detail=type(problem).__name__)


class NotReady(Exception):
    """A part that answers and is not as it must be."""


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
    """Safaricom's, as far as they are in use: a live merchant needs its own; what is there must not run out unseen."""
    has_live = await runtime.merchants.any_live()
    is_fine, said = await asyncio.to_thread(
        describe_used, runtime.config.daraja, runtime.clock.now(), has_live=has_live
    )
    if not is_fine:
        raise NotReady(said)
    return said


routes = (live, ready)
