"""The throughput of one worker: webhooks a second to healthy endpoints, with and without dead ones."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from bench.speed.contests import Measure
from bench.speed.double import HOSTS
from bench.speed.load import call
from bench.speed.seed import connect, id_stem, tag
from bench.speed.site import Contestant, Site
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_webhooks.deliveries import DELIVER
from mpesa_gateway_webhooks.endpoints import EndpointService

_ACTOR = "cli:bench"

DEAD = 5
"""Of a hundred endpoints: some refuse connections, some never answer, some answer after seconds."""

_WARM_UP = 200
"""Deliveries of a worker before the measurement, which exclude its start."""

_PATIENCE = 120.0
"""Timeout of a round in seconds."""

# $1 the ids' common part in hexadecimal, $2 the number, $3 the merchants: one event and delivery each, to each merchant
# in turn.
_OWED = f"""
WITH made AS (
    SELECT n, ($1 || lpad(n::text, 8, '0'))::uuid AS payment_id,
        (overlay($1 PLACING '{tag("evt")}' FROM 13) || lpad(n::text, 8, '0'))::uuid AS event_id,
        (overlay($1 PLACING '{tag("dlv")}' FROM 13) || lpad(n::text, 8, '0'))::uuid AS delivery_id,
        ($3::uuid[])[1 + n % cardinality($3::uuid[])] AS merchant_id
    FROM generate_series(1, $2::bigint) AS n
), event AS (
    INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, stored_body)
    SELECT event_id, 'payment.completed', merchant_id, 'sandbox', payment_id, now(), true, NULL,
        '{{"id": "' || event_id || '", "type": "payment.completed", "data": "' || repeat('x', 400) || '"}}'
    FROM made
)
INSERT INTO delivery (delivery_id, event_id, endpoint_id, merchant_id, env, event_type, payment_id, due_at, created_at)
SELECT delivery_id, event_id, endpoint_id, merchant_id, env, 'payment.completed', payment_id, now(), now()
FROM made JOIN webhook_endpoint USING (merchant_id) WHERE is_active
RETURNING delivery_id
"""  # noqa: S608 - digits of this file

_OF_ROUND = f"""
delivery_id BETWEEN (overlay($1 PLACING '{tag("dlv")}' FROM 13) || '00000000')::uuid
    AND (overlay($1 PLACING '{tag("dlv")}' FROM 13) || 'ffffffff')::uuid AND url LIKE '%/hook'
"""

# $1 the ids' common part: the delay of delivered rows after they were due.
_TOOK = f"""
SELECT count(*) FILTER (WHERE status = 'delivered') AS delivered,
    coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY delivered_at - delivery.created_at), '0') AS p50,
    coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY delivered_at - delivery.created_at), '0') AS p99
FROM delivery JOIN webhook_endpoint USING (endpoint_id) WHERE {_OF_ROUND}
"""  # noqa: S608 - the clause above

# Pending deliveries of dead endpoints are deleted, so that no round affects the next.
_CLEAR = """
WITH cleared AS (
    UPDATE delivery SET status = 'cancelled', due_at = NULL, leased_until = NULL
    WHERE merchant_id = ANY($1::uuid[]) AND status = 'pending'
)
UPDATE webhook_endpoint SET failures = 0, closed_until = NULL WHERE merchant_id = ANY($1::uuid[])
"""


@dataclass(frozen=True)
class _Crowd:
    """Merchants with an endpoint each."""

    healthy: list[str]
    dead: list[str]


class DeliveryRounds:
    """Runs the rounds: the deliveries, a new worker, and the clock."""

    def __init__(self, site: Site, count: int) -> None:
        """``count`` deliveries to healthy endpoints in each round."""
        self._site = site
        self._count = count
        self._crowd: _Crowd | None = None

    def deliver(self, *, has_dead: bool, each: int) -> Measure:
        """Send to healthy endpoints, ``each`` deliveries in a job, with or without dead endpoints."""

        async def measure() -> dict[str, Any]:
            async with Gateway(GatewayConfig.from_values(self._site.values)).running() as gateway:
                return await self._round(gateway, has_dead=has_dead, each=each)

        return measure

    async def _round(self, gateway: Gateway, *, has_dead: bool, each: int) -> dict[str, Any]:
        if self._crowd is None:
            self._crowd = _Crowd(
                [await self._merchant(gateway, host, self._site.double, "/hook") for host in HOSTS[DEAD:]],
                [await self._merchant(gateway, HOSTS[number], *self._dead(number)) for number in range(DEAD)],
            )
        crowd, stem = self._crowd, id_stem()
        await self._clear()
        worker = self._site.worker()
        try:
            await self._owe(gateway, id_stem(), _WARM_UP, crowd.healthy, each)
            await self._until(worker, await self._hooks() + _WARM_UP)
            before = self._site.cpu() | {"app": worker.cpu()}
            arrived = await self._hooks()
            merchants = crowd.healthy + (crowd.dead if has_dead else [])
            owed = self._count * len(merchants) // len(crowd.healthy)
            began = time.perf_counter()
            await self._owe(gateway, stem, owed, merchants, each)
            healthy = await self._healthy(stem)
            await self._until(worker, arrived + healthy)
            seconds = time.perf_counter() - began
            after = self._site.cpu() | {"app": worker.cpu()}
            p50, p99 = await self._noted(stem, healthy)
        finally:
            worker.stop()
        await self._clear()
        return {
            "rate": healthy / seconds,
            "p50_ms": p50,
            "p99_ms": p99,
            "cpu_us": {part: (after[part] - before[part]) / healthy * 1e6 for part in before},
        }

    def _dead(self, number: int) -> tuple[int, str]:
        """Return addresses without a server, without an answer, and with a late answer, in turn."""
        return ((1, "/refused"), (self._site.double, "/silent"), (self._site.double, "/slow"))[number % 3]

    async def _merchant(self, gateway: Gateway, host: str, port: int, path: str) -> str:
        merchant = await gateway.merchants.create("Bench", actor=_ACTOR)
        caller = Caller(merchant.merchant_id, "key_bench", frozenset(map(str, gateway.scopes.of_merchants)), "sandbox")
        await gateway.services.get(EndpointService).set_url(caller, f"http://{host}:{port}{path}")
        return merchant.merchant_id

    async def _owe(self, gateway: Gateway, stem: str, count: int, merchants: list[str], each: int) -> None:
        ids = [row["delivery_id"] for row in await self._ask(_OWED, stem, count, merchants)]
        # Enqueued as after events: at once, in order.
        for start in range(0, len(ids), each):
            await gateway.jobs.enqueue(DELIVER, delivery_ids=ids[start : start + each])

    async def _healthy(self, stem: str) -> int:
        (row,) = await self._ask(
            f"SELECT count(*) FROM delivery JOIN webhook_endpoint USING (endpoint_id) WHERE {_OF_ROUND}",  # noqa: S608 - the clause above
            stem,
        )
        return int(row[0])

    async def _noted(self, stem: str, healthy: int) -> tuple[float, float]:
        """Return the median and the 99th percentile of the delay, in milliseconds.

        Raises RuntimeError for a missing delivery.
        """
        until = time.perf_counter() + _PATIENCE
        while time.perf_counter() < until:
            (row,) = await self._ask(_TOOK, stem)
            if row["delivered"] == healthy:
                return row["p50"].total_seconds() * 1000, row["p99"].total_seconds() * 1000
            await asyncio.sleep(0.1)
        raise RuntimeError("deliveries that were taken have not been noted")

    async def _hooks(self) -> int:
        return int(await call(self._site.double, "GET", "/hooks"))

    async def _until(self, worker: Contestant, hooks: int) -> None:
        until = time.perf_counter() + _PATIENCE
        while await self._hooks() < hooks:
            if time.perf_counter() > until or worker.processes[0].poll() is not None:
                raise RuntimeError("the worker has not delivered everything: see worker.log")
            await asyncio.sleep(0.02)

    async def _clear(self) -> None:
        if self._crowd is not None:
            await self._ask(_CLEAR, self._crowd.healthy + self._crowd.dead)

    async def _ask(self, sql: str, *values: Any) -> Any:
        connection = await connect(self._site.database("gateway"), "mpesa")
        try:
            return await connection.fetch(sql, *values)
        finally:
            await connection.close()
