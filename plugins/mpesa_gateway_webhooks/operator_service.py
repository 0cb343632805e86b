"""Operators' use cases of webhooks, for all merchants."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetPage, OperatorQuery
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, NotFound, require_found
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.merchants import Merchant, Merchants
from mpesa_gateway_webhooks import count_sql, endpoint_tables, tables
from mpesa_gateway_webhooks.endpoint_tables import EndpointRow
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.schemas import AttemptView, DeliveryStatus
from mpesa_gateway_webhooks.settings import WebhooksSettings

FAILING = 3
"""Consecutive failures of a failing endpoint."""

_RECENT = timedelta(days=1)


class DeliveriesQuery(OperatorQuery, frozen=True, kw_only=True):
    """Filters of the operators' list of deliveries."""

    status: DeliveryStatus | None = None
    event_type: str | None = None


class WebhookOperatorService:
    """Lists, finds and counts endpoints and deliveries."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        merchants: Merchants,
        settings: WebhooksSettings,
        endpoints: EndpointService,
    ) -> None:
        self._db = db
        self._clock = clock
        self._merchants = merchants
        self._settings = settings
        self._endpoints = endpoints

    async def endpoints(self, env: Env, merchant: str | None, cursor: str | None, limit: int) -> KeysetPage[Row]:
        """Return active endpoints with their pending and dead deliveries, newest first. Raises InvalidFields."""
        found = Conditions(env, merchant)
        found.add("is_active")
        page = await endpoint_tables.ENDPOINTS.page(self._db, found, cursor, limit)
        rows = await self._health([row["endpoint_id"] for row in page.rows])
        return page.map(lambda row: rows[row["endpoint_id"]])

    async def endpoint(self, endpoint_id: str) -> Row:
        """Raises NotFound."""
        rows = await self._health([endpoint_id])
        if not rows:
            raise NotFound("there is no such endpoint")
        return rows[endpoint_id]

    async def endpoint_of(self, merchant_id: str, env: Env) -> Row | None:
        return await self._db.fetchrow(endpoint_tables.ENDPOINT_OF_MERCHANT, self._since(), merchant_id, env)

    async def owner_of(self, endpoint_id: str) -> tuple[Merchant, Env]:
        """Raises NotFound, and Conflict for a removed endpoint."""
        row = await self.endpoint(endpoint_id)
        if not row["is_active"]:
            raise Conflict("this endpoint was removed")
        return await self._merchants.require(row["merchant_id"]), row["env"]

    def masked_secret(self, row: Row) -> str:
        return self._endpoints.open(row["merchant_id"], row["secret"]).masked

    async def deliveries(self, env: Env, query: DeliveriesQuery, limit: int) -> KeysetPage[Row]:
        """Raises InvalidFields for a bad cursor."""
        found = Conditions(env, query.merchant)
        found.equal(status=query.status, event_type=query.event_type)
        return await tables.DELIVERIES.page(self._db, found, query.cursor, limit)

    async def delivery(self, delivery_id: str) -> Row:
        """Raises NotFound."""
        return require_found(await self._db.fetchrow(tables.FIND_ANY, delivery_id), "there is no such delivery")

    async def attempts(self, delivery_id: str) -> list[AttemptView]:
        return [AttemptView(**row) for row in await self._db.fetch(tables.ATTEMPTS_OF_DELIVERY, delivery_id)]

    async def of_payment(self, payment_id: str) -> list[Row]:
        return await self._db.fetch(tables.OF_PAYMENT, payment_id)

    async def of_event(self, event_id: str) -> list[Row]:
        return await self._db.fetch(tables.OF_EVENT, event_id)

    async def attempts_of_payment(self, payment_id: str) -> list[Row]:
        return await self._db.fetch(tables.ATTEMPTS_OF_PAYMENT, payment_id)

    async def owed(self, env: Env, merchant_id: str | None = None) -> tuple[int, datetime | None]:
        """Return the number of pending deliveries, at most 10,000, and the oldest's time."""
        if merchant_id is None:
            row = await self._db.fetchrow(count_sql.OWED, [env])
        else:
            row = await self._db.fetchrow(count_sql.OWED_TO, env, merchant_id)
        return (0, None) if row is None else (row["owed"], row["oldest"])

    async def count_failing(self, env: Env, merchant_id: str | None) -> int:
        failing = EndpointRow.count().where(
            EndpointRow.is_active.eq(value=True),
            EndpointRow.env == env,
            (EndpointRow.failures >= FAILING) | (EndpointRow.closed_until > self._clock.now()),
        )
        count: int = await self._db.run(
            failing if merchant_id is None else failing.where(EndpointRow.merchant_id == merchant_id)
        )
        return count

    async def count_without_money(self, env: Env, merchant_id: str | None = None) -> int:
        """Count the endpoints that leave out a type of event about moved money."""
        types = self._endpoints.money_types
        return int(await self._db.fetchval(endpoint_tables.COUNT_WITHOUT, env, types, merchant_id))

    def missing_types(self, row: Row) -> list[str]:
        """Return the types about moved money that an endpoint leaves out."""
        return self._endpoints.missing_money_types(row["event_types"])

    async def count_dead(self, env: Env, merchant_id: str | None = None) -> int:
        """Count the last day's dead deliveries."""
        return int(await self._db.fetchval(count_sql.DEAD_SINCE, self._since(), [env], merchant_id))

    async def waiting(self, env: Env, merchant_id: str | None = None) -> tuple[int, datetime | None]:
        """Return the number of merchants with waiting events, and the oldest's time."""
        wait = timedelta(days=self._settings.wait_days)
        row = await self._db.fetchrow(count_sql.WAITING, env, Ids.least("dlv", self._clock.now() - wait), merchant_id)
        return (0, None) if row is None else (row["merchants"], row["oldest"])

    async def _health(self, endpoint_ids: Sequence[str]) -> dict[str, Row]:
        rows = await self._db.fetch(endpoint_tables.HEALTH, self._since(), endpoint_ids)
        return {row["endpoint_id"]: row for row in rows}

    def _since(self) -> str:
        return Ids.least("dlv", self._clock.now() - _RECENT)


def health_of(row: Row, now: datetime) -> str:
    """Return ``paused``, ``failing``, ``healthy`` or ``new``."""
    if row["closed_until"] is not None and row["closed_until"] > now:
        return "paused"
    if row["failures"] >= FAILING:
        return "failing"
    return "healthy" if row["last_success_at"] is not None else "new"


def host_of(url: str | None) -> str:
    """Return the host of an address, whose path may contain a secret."""
    return "no endpoint" if url is None else urlsplit(url).netloc
