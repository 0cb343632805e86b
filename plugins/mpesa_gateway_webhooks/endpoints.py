"""A merchant's endpoint: set, rotated, tried and removed; its secret shown once."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from piccolo.columns import Column

from mpesa_gateway.db.outbox import public_body
from mpesa_gateway.errors import NotFound, checking
from mpesa_gateway.http.egress import Egress, EgressFailed, check_url
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_webhooks import signing, tables
from mpesa_gateway_webhooks.events import WebhookTest
from mpesa_gateway_webhooks.schemas import TestAnswer, WebhookView, WebhookWithSecret
from mpesa_gateway_webhooks.settings import WebhooksSettings
from mpesa_gateway_webhooks.tables import EndpointRow

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

SHOWN: tuple[Column, ...] = (
    EndpointRow.endpoint_id,
    EndpointRow.url,
    EndpointRow.secret,
    EndpointRow.previous_secret,
    EndpointRow.previous_until,
    EndpointRow.failures,
    EndpointRow.closed_until,
    EndpointRow.last_success_at,
    EndpointRow.last_failure_at,
    EndpointRow.created_at,
)


def aad(merchant_id: str) -> tuple[str, ...]:
    """What an endpoint's secret is sealed for."""
    return (merchant_id, "webhooks", "secret")


class Endpoints:
    """The use cases of endpoints."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._settings = gateway.settings(WebhooksSettings)

    async def set_url(self, caller: Caller, url: str) -> WebhookWithSecret:
        """Set where the merchant hears of events, with a new secret; one that was there signs too for a day.

        What is still owed goes to the new address. Raises Invalid for an address that is not called.
        """
        with checking() as checks:
            checks.take(
                "webhook_url", lambda text: check_url(text, allow_loopback=self.allows_loopback(caller.env)), url
            )
        secret = signing.new_secret(self._gateway.ids.token(32))
        now = self._gateway.clock.now()
        async with self._db.transaction():
            endpoint_id = await self._db.fetchval(
                tables.SET_ENDPOINT,
                self._gateway.ids.new("whe"),
                caller.merchant_id,
                url,
                self._gateway.sealer.seal(secret.reveal(), aad=aad(caller.merchant_id)),
                now,
                now + timedelta(hours=self._settings.overlap_hours),
            )
            await self._audit("webhook.set", caller, endpoint_id)
        return WebhookWithSecret(url, secret.reveal())

    async def rotate(self, caller: Caller) -> WebhookWithSecret:
        """A new secret; the old one signs too for a day. Raises NotFound without an endpoint."""
        secret = signing.new_secret(self._gateway.ids.token(32))
        now = self._gateway.clock.now()
        async with self._db.transaction():
            row = await self._db.fetchrow(
                tables.ROTATE,
                caller.merchant_id,
                self._gateway.sealer.seal(secret.reveal(), aad=aad(caller.merchant_id)),
                now + timedelta(hours=self._settings.overlap_hours),
                now,
            )
            if row is None:
                raise _none_set()
            await self._audit("webhook.rotated", caller, row["endpoint_id"])
        return WebhookWithSecret(row["url"], secret.reveal())

    async def remove(self, caller: Caller) -> None:
        """Deliver no more. What is owed is kept, and cancelled when its turn comes. Raises NotFound."""
        async with self._db.transaction():
            endpoint_id = await self._db.fetchval(tables.REMOVE, caller.merchant_id, self._gateway.clock.now())
            if endpoint_id is None:
                raise _none_set()
            await self._audit("webhook.removed", caller, endpoint_id)

    async def view(self, merchant_id: str) -> WebhookView:
        """The endpoint with its secret masked. Raises NotFound."""
        row = await self._find(merchant_id)
        now = self._gateway.clock.now()
        until, closed = row["previous_until"], row["closed_until"]
        return WebhookView(
            webhook_url=row["url"],
            webhook_secret=self.open(merchant_id, row["secret"]).masked,
            previous_secret_until=until if until is not None and until > now else None,
            failures=row["failures"],
            paused_until=closed if closed is not None and closed > now else None,
            last_success_at=row["last_success_at"],
            last_failure_at=row["last_failure_at"],
            created_at=row["created_at"],
        )

    async def test(self, caller: Caller, egress: Egress) -> TestAnswer:
        """Send a ``webhook.test`` now, outside the schedule, and say what the server answered. Raises NotFound."""
        self._gateway.db.refuse_transaction("sending a test webhook")
        row = await self._find(caller.merchant_id)
        now = self._gateway.clock.now()
        event = msgspec.structs.replace(
            WebhookTest(merchant_id=caller.merchant_id, subject_id=row["endpoint_id"]),
            event_id=self._gateway.ids.new("evt"),
            occurred_at=now,
        )
        body = public_body(event).encode()
        secrets = [self.open(caller.merchant_id, row["secret"])]
        if row["previous_secret"] is not None and row["previous_until"] > now:
            secrets.append(self.open(caller.merchant_id, row["previous_secret"]))
        try:
            answer = await egress.post(
                row["url"],
                body=body,
                headers=signing.headers(event.event_id, event.kind, body, now, secrets),
                allow_loopback=self.allows_loopback(caller.env),
            )
        except EgressFailed as failure:
            return TestAnswer(
                delivered=False, event_id=event.event_id, status=None, ms=None, error=str(failure), answer=""
            )
        return TestAnswer(
            delivered=200 <= answer.status < 300,
            event_id=event.event_id,
            status=answer.status,
            ms=answer.ms,
            error=None,
            answer=answer.body_start,
        )

    def open(self, merchant_id: str, sealed: str) -> Secret:
        """A sealed endpoint secret. Raises CannotOpen."""
        return Secret(self._gateway.sealer.open(sealed, aad=aad(merchant_id)))

    def allows_loopback(self, env: str) -> bool:
        """Whether webhooks of this env may go to this machine itself."""
        return env == "sandbox" and self._settings.allow_loopback

    async def _find(self, merchant_id: str) -> dict[str, Any]:
        row = await self._gateway.db.run(
            EndpointRow.select(*SHOWN)
            .where(EndpointRow.merchant_id == merchant_id, EndpointRow.is_active.eq(True))  # noqa: FBT003
            .first()
        )
        if row is None:
            raise _none_set()
        return row

    async def _audit(self, action: str, caller: Caller, endpoint_id: str) -> None:
        await self._gateway.audit.record(
            action, merchant_id=caller.merchant_id, actor=caller.actor, subject_id=endpoint_id
        )


def _none_set() -> NotFound:
    return NotFound("no webhook is set: PUT /v1/merchant/webhook first")
