"""Webhooks as operators look at them, of all merchants together, and what they do about them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.keyset import Conditions, KeysetPage, OperatorQuery
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.merchants import Merchant, Merchants
from mpesa_gateway_webhooks import endpoint_tables, tables
from mpesa_gateway_webhooks.endpoint_tables import EndpointRow
from mpesa_gateway_webhooks.endpoints import EndpointService
from mpesa_gateway_webhooks.schemas import AttemptView, DeliveryStatus
from mpesa_gateway_webhooks.settings import WebhooksSettings

ILL = 3
"""Failures in a row from which an endpoint is worth a look."""

_LATELY = timedelta(days=1)


class DeliveriesQuery(OperatorQuery, frozen=True, kw_only=True):
    """The filters of the operators' list of deliveries."""

    status: DeliveryStatus | None = None
    event_type: str | None = None


class WebhookOperatorService:
    """What operators ask of webhooks."""

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

    async def endpoints(self, env: Env, cursor: str | None, limit: int) -> KeysetPage[Row]:
        """Return active endpoints of ``env``, newest first, each with what it is owed and what died in the last day.

        Raises Invalid for a bad cursor.
        """
        found = Conditions(env)
        found.add("is_active")
        page = await endpoint_tables.ENDPOINTS.page(self._db, found, cursor, limit)
        rows = await self._health([row["endpoint_id"] for row in page.rows])
        return page.map(lambda row: rows[row["endpoint_id"]])

    async def endpoint(self, endpoint_id: str) -> Row:
        """One endpoint. Raises NotFound."""
        rows = await self._health([endpoint_id])
        if not rows:
            raise NotFound("there is no such endpoint")
        return rows[endpoint_id]

    async def endpoint_of(self, merchant_id: str, env: Env) -> Row | None:
        """A merchant's active endpoint in ``env``."""
        return await self._db.fetchrow(endpoint_tables.ENDPOINT_OF_MERCHANT, self._since(), merchant_id, env)

    async def owner_of(self, endpoint_id: str) -> tuple[Merchant, Env]:
        """The merchant and the env of an active endpoint. Raises NotFound, and Conflict for one that was removed."""
        row = await self.endpoint(endpoint_id)
        if not row["is_active"]:
            raise Conflict("this endpoint was removed")
        return await self._merchants.require(row["merchant_id"]), row["env"]

    def masked_secret(self, row: Row) -> str:
        """An endpoint's secret by its last four characters."""
        return self._endpoints.open(row["merchant_id"], row["secret"]).masked

    async def deliveries(self, env: Env, query: DeliveriesQuery, limit: int) -> KeysetPage[Row]:
        """A page of deliveries of ``env``. Raises Invalid for a bad cursor."""
        found = Conditions(env, query.merchant)
        found.equal(status=query.status, event_type=query.event_type)
        return await tables.DELIVERIES.page(self._db, found, query.cursor, limit)

    async def delivery(self, delivery_id: str) -> Row:
        """A delivery with its endpoint and the event that it carries. Raises NotFound."""
        row = await self._db.fetchrow(tables.FIND_ANY, delivery_id)
        if row is None:
            raise NotFound("there is no such delivery")
        return row

    async def attempts(self, delivery_id: str) -> list[AttemptView]:
        """What was tried."""
        return [AttemptView(**row) for row in await self._db.fetch(tables.ATTEMPTS_OF_DELIVERY, delivery_id)]

    async def of_payment(self, payment_id: str) -> list[Row]:
        """The deliveries about a payment, newest first."""
        return await self._db.fetch(tables.OF_PAYMENT, payment_id)

    async def of_event(self, event_id: str) -> list[Row]:
        """The deliveries of an event."""
        return await self._db.fetch(tables.OF_EVENT, event_id)

    async def attempts_of_payment(self, payment_id: str) -> list[Row]:
        """Every attempt to tell of a payment."""
        return await self._db.fetch(tables.ATTEMPTS_OF_PAYMENT, payment_id)

    async def owed(self, *envs: Env) -> tuple[int, datetime | None]:
        """How many deliveries of these envs are owed (10,000 at most), and since when the oldest of them is."""
        row = await self._db.fetchrow(tables.OWED, list(envs))
        return (0, None) if row is None else (row["owed"], row["oldest"])

    async def count_failing(self, env: Env) -> int:
        """How many endpoints of ``env`` do not take what they are sent."""
        count: int = await self._db.run(
            EndpointRow.count().where(
                EndpointRow.is_active.eq(value=True),
                EndpointRow.env == env,
                (EndpointRow.failures >= ILL) | (EndpointRow.closed_until > self._clock.now()),
            )
        )
        return count

    async def count_dead(self, *envs: Env) -> int:
        """How many deliveries of these envs and the last day have used up their attempts."""
        return int(await self._db.fetchval(tables.DEAD_SINCE, self._since(), list(envs)))

    async def waiting(self, env: Env) -> tuple[int, datetime | None]:
        """How many merchants have events of ``env`` that wait for an endpoint, and since when the oldest does."""
        wait = timedelta(days=self._settings.wait_days)
        row = await self._db.fetchrow(tables.WAITING, env, Ids.least("dlv", self._clock.now() - wait))
        return (0, None) if row is None else (row["merchants"], row["oldest"])

    async def _health(self, endpoint_ids: Sequence[str]) -> dict[str, Row]:
        rows = await self._db.fetch(endpoint_tables.HEALTH, self._since(), endpoint_ids)
        return {row["endpoint_id"]: row for row in rows}

    def _since(self) -> str:
        return Ids.least("dlv", self._clock.now() - _LATELY)


def health_of(row: Row, now: datetime) -> str:
    """A word for how an endpoint fares."""
    if row["closed_until"] is not None and row["closed_until"] > now:
        return "paused"
    if row["failures"] >= ILL:
        return "failing"
    return "healthy" if row["last_success_at"] is not None else "new"


def host_of(url: str | None) -> str:
    """The host of an endpoint's address: its path may hold what is nobody else's business."""
    return "no endpoint" if url is None else urlsplit(url).netloc
