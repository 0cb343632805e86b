"""Use cases of endpoints."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
from piccolo.columns import Column

from mpesa_gateway.bulkhead import Bulkhead
from mpesa_gateway.db.event_bodies import public_body
from mpesa_gateway.env import Env
from mpesa_gateway.errors import NotFound, RateLimited, check_fields
from mpesa_gateway.http.egress import Egress, EgressBusy, EgressFailed, normal_url
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_webhooks import endpoint_tables, signing
from mpesa_gateway_webhooks.endpoint_tables import EndpointRow, active_of
from mpesa_gateway_webhooks.events import WebhookTest, chosen_types, money_types
from mpesa_gateway_webhooks.schemas import TestAnswer, WebhookView, WebhookWithSecret
from mpesa_gateway_webhooks.settings import WebhooksSettings

ASSIGN_UNDELIVERED = "webhooks.assign_undelivered"

SHOWN: tuple[Column, ...] = (
    EndpointRow.endpoint_id,
    EndpointRow.address_id,
    EndpointRow.env,
    EndpointRow.url,
    EndpointRow.secret,
    EndpointRow.previous_secret,
    EndpointRow.previous_until,
    EndpointRow.failures,
    EndpointRow.closed_until,
    EndpointRow.last_success_at,
    EndpointRow.last_failure_at,
    EndpointRow.created_at,
    EndpointRow.event_types,
)


def aad(merchant_id: str) -> tuple[str, ...]:
    """Return the associated data of the sealed secret."""
    return (merchant_id, "webhooks", "secret")


_TEST = WebhookTest.kind

_TESTS, _TESTS_EACH = 32, 2
"""Concurrent tests of one process, in all and per merchant."""


class EndpointService:
    """A merchant's endpoint in each env."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._db = runtime.db
        self._settings = runtime.settings(WebhooksSettings)
        self._tests = Bulkhead(_TESTS, _TESTS_EACH)

    async def set_url(self, caller: Caller, url: str, event_types: Sequence[str] | None = None) -> WebhookWithSecret:
        """Set the endpoint with a new secret; the old one also signs for ``overlap_hours``.

        Pending and waiting deliveries go to the new address. ``event_types``: None for all. Raises InvalidFields.
        """
        allow_loopback = await self.allows_loopback(caller.env)
        with check_fields() as checks:
            accepted: str | None = checks.take(
                "webhook_url", lambda text: normal_url(text, allow_loopback=allow_loopback), url
            )
            wanted = checks.take("event_types", self._known_types, event_types)
        url = accepted or url
        secret = signing.new_secret(self._runtime.ids.token(32))
        now = self._runtime.clock.now()
        async with self._db.transaction():
            endpoint_id = await self._db.fetchval(
                endpoint_tables.SET_ENDPOINT,
                self._runtime.ids.new("whe"),
                caller.merchant_id,
                url,
                self._runtime.sealer.seal(secret.reveal(), aad=aad(caller.merchant_id)),
                now,
                now + timedelta(hours=self._settings.overlap_hours),
                caller.env,
                wanted,
            )
            await self._audit("webhook.set", caller, endpoint_id)
            await self._db.after_commit(self._assign_undelivered)
        return WebhookWithSecret(url, secret.reveal(), caller.env)

    async def set_event_types(self, caller: Caller, event_types: Sequence[str] | None) -> WebhookView:
        """Choose the event types of the endpoint, None for all. Raises InvalidFields and NotFound.

        New events count; deliveries that exist are sent.
        """
        with check_fields() as checks:
            wanted = checks.take("event_types", self._known_types, event_types)
        async with self._db.transaction():
            values = {EndpointRow.event_types: wanted, EndpointRow.updated_at: self._runtime.clock.now()}
            row = await self._change(caller, values)
            await self._audit("webhook.event_types_set", caller, row["endpoint_id"])
        return await self.view(caller.merchant_id, caller.env)

    @property
    def event_types(self) -> list[str]:
        return chosen_types(self._runtime)

    @property
    def money_types(self) -> list[str]:
        """The types that report moved money."""
        return money_types(self._runtime)

    def missing_money_types(self, event_types: Sequence[str] | None) -> list[str]:
        return [] if event_types is None else [kind for kind in self.money_types if kind not in event_types]

    def _known_types(self, event_types: Sequence[str] | None) -> list[str] | None:
        if event_types is None:
            return None
        known = self.event_types
        if any(kind not in {*known, _TEST} for kind in event_types):
            # An unknown type may be a secret of another field.
            raise ValueError(f"each event type must be one of {', '.join(known)}")
        if not set(event_types) - {_TEST}:
            raise ValueError(f"choose at least one of {', '.join(known)}, or leave it out for all")
        return sorted({*event_types, _TEST})

    async def rotate(self, caller: Caller) -> WebhookWithSecret:
        """Create a new secret; the old one also signs for ``overlap_hours``. Raises NotFound."""
        secret = signing.new_secret(self._runtime.ids.token(32))
        now = self._runtime.clock.now()
        async with self._db.transaction():
            row = await self._change(
                caller,
                {
                    EndpointRow.previous_secret: EndpointRow.secret,
                    EndpointRow.previous_until: now + timedelta(hours=self._settings.overlap_hours),
                    EndpointRow.secret: self._runtime.sealer.seal(secret.reveal(), aad=aad(caller.merchant_id)),
                    EndpointRow.updated_at: now,
                },
            )
            await self._audit("webhook.rotated", caller, row["endpoint_id"])
        return WebhookWithSecret(row["url"], secret.reveal(), caller.env)

    async def remove(self, caller: Caller) -> None:
        """Remove the endpoint; its deliveries and new events wait for the next one. Raises NotFound."""
        async with self._db.transaction():
            row = await self._change(
                caller, {EndpointRow.is_active: False, EndpointRow.updated_at: self._runtime.clock.now()}
            )
            await self._audit("webhook.removed", caller, row["endpoint_id"])
            await self._db.after_commit(self._assign_undelivered)

    async def _assign_undelivered(self) -> None:
        # The same job also runs each minute.
        self._runtime.jobs.wake(ASSIGN_UNDELIVERED)

    async def view(self, merchant_id: str, env: Env) -> WebhookView:
        """Return the endpoint with a masked secret. Raises NotFound."""
        row = await self._find(merchant_id, env)
        now = self._runtime.clock.now()
        until, closed = row["previous_until"], row["closed_until"]
        return WebhookView(
            env=row["env"],
            webhook_url=row["url"],
            webhook_secret=self.open(merchant_id, row["secret"]).masked,
            previous_secret_until=until if until is not None and until > now else None,
            failures=row["failures"],
            paused_until=closed if closed is not None and closed > now else None,
            last_success_at=row["last_success_at"],
            last_failure_at=row["last_failure_at"],
            event_types=row["event_types"] and [kind for kind in row["event_types"] if kind != _TEST],
            created_at=row["created_at"],
        )

    async def test(self, caller: Caller, egress: Egress) -> TestAnswer:
        """Send a test at once, and return the response.

        Raises NotFound, and RateLimited while too many tests run or above ``tests_per_minute``.
        """
        self._db.refuse_transaction("sending a test webhook")
        await self._runtime.limits.count_action("webhook.test", caller.merchant_id, self._settings.tests_per_minute)
        with self._tests.acquire(caller.merchant_id) as has_place:
            if not has_place:
                raise _busy()
            try:
                answer = await self._test(caller, egress)
            except EgressBusy:
                raise _busy() from None
            self._tests.record_answer(caller.merchant_id, answered=answer.status is not None)
            return answer

    async def _test(self, caller: Caller, egress: Egress) -> TestAnswer:
        row = await self._find(caller.merchant_id, caller.env)
        now = self._runtime.clock.now()
        event = msgspec.structs.replace(
            WebhookTest(merchant_id=caller.merchant_id, env=caller.env, subject_id=row["endpoint_id"]),
            event_id=self._runtime.ids.new("evt"),
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
                allow_loopback=await self.allows_loopback(caller.env),
                account=caller.merchant_id,
            )
        except EgressFailed as failure:
            return TestAnswer(
                env=caller.env,
                delivered=False,
                event_id=event.event_id,
                status=None,
                ms=None,
                error=str(failure),
                answer="",
            )
        is_delivered = 200 <= answer.status < 300
        if is_delivered:
            # The address works: a paused endpoint resumes.
            await self._db.execute(endpoint_tables.RECORD_SUCCESSES, [row["address_id"]], self._runtime.clock.now())
        return TestAnswer(
            env=caller.env,
            delivered=is_delivered,
            event_id=event.event_id,
            status=answer.status,
            ms=answer.ms,
            error=None,
            answer=answer.body_start,
        )

    def open(self, merchant_id: str, sealed: str) -> Secret:
        """Unseal an endpoint's secret. Raises UnsealError."""
        return Secret(self._runtime.sealer.open(sealed, aad=aad(merchant_id)))

    async def allows_loopback(self, env: str) -> bool:
        """Return True if webhooks may go to this machine: only while no merchant is live.

        Checked for each call, since a merchant may have gone live since.
        """
        return env == "sandbox" and self._settings.allow_loopback and await self._runtime.merchants.is_sandbox_only()

    async def _change(self, caller: Caller, values: dict[Any, Any]) -> dict[str, Any]:
        changed: list[dict[str, Any]] = await self._db.run(
            EndpointRow.update(values)
            .where(*active_of(caller.merchant_id, caller.env))
            .returning(EndpointRow.endpoint_id, EndpointRow.url)
        )
        if not changed:
            raise _none_set(caller.env)
        return changed[0]

    async def _find(self, merchant_id: str, env: Env) -> dict[str, Any]:
        row: dict[str, Any] | None = await self._db.run(
            EndpointRow.select(*SHOWN).where(*active_of(merchant_id, env)).first()
        )
        if row is None:
            raise _none_set(env)
        return row

    async def _audit(self, action: str, caller: Caller, endpoint_id: str) -> None:
        await self._runtime.audit.record(
            action, merchant_id=caller.merchant_id, actor=caller.actor, subject_id=endpoint_id, env=caller.env
        )


def _busy() -> RateLimited:
    return RateLimited("other calls to this webhook still wait for its server or for DNS: wait", retry_after=10)


def _none_set(env: Env) -> NotFound:
    return NotFound(
        f"no {env} webhook is set: set one on the merchant's page under /ops, or with PUT /v1/merchant/webhook, first"
    )
