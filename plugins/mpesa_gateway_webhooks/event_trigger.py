"""Triggers of sandbox events, for developers who test their endpoints."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec
import niquests

from mpesa_gateway.db.event_bodies import EVENT_BODY
from mpesa_gateway.db.outbox_admin import EventRow
from mpesa_gateway.errors import Conflict
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.standalone.sample_credentials import CREDENTIALS
from mpesa_gateway.standalone.stage import Api, UnexpectedAnswer
from mpesa_gateway_webhooks.event_recipes import RECIPES
from mpesa_gateway_webhooks.events import WebhookTest

PATIENCE = 30.0
"""Seconds to wait for a triggered event."""

_LOOK = 0.1
_KEY_LIVES = timedelta(minutes=5)


@dataclass(frozen=True)
class TriggeredEvent:
    """A triggered event; ``subject_id`` is its payment, or the merchant for a test."""

    event_id: str
    subject_id: str


class EventTrigger:
    """Triggers events of one sandbox merchant over HTTP, with a temporary API key."""

    def __init__(self, runtime: Runtime, merchant: Merchant, *, actor: str) -> None:
        self._runtime = runtime
        self._merchant = merchant
        self._actor = actor

    async def make(self, kind: str, amount: int) -> TriggeredEvent:
        """Trigger one event, for a payment of ``amount`` KES if the event is about a payment.

        Raises Conflict without the simulator, and UnexpectedAnswer if the event does not occur in time.
        """
        if kind == WebhookTest.kind:
            return await self._test()
        if not urlsplit(self._runtime.config.daraja.sandbox_url).path.endswith("/simulator"):
            raise Conflict(
                f"{kind} needs the simulator, which is not the Daraja of this gateway (daraja.sandbox_url): "
                f"start `mpesa-gateway up`, or trigger {WebhookTest.kind}"
            )
        key, secret = await self._runtime.api_keys.create(
            self._merchant.merchant_id,
            name="webhooks trigger",
            scopes=self._runtime.scopes.of_merchants,
            env="sandbox",
            expires_at=self._runtime.clock.now() + _KEY_LIVES,
            actor=self._actor,
        )
        try:
            async with niquests.AsyncSession(disable_http3=True) as http:
                http.trust_env = False
                api = Api(http, self._runtime.config.public_url, secret)
                simulator = Api(http, self._runtime.config.daraja.sandbox_url)
                return await self._play(api, simulator, kind, amount)
        finally:
            await self._runtime.api_keys.revoke(self._merchant.merchant_id, key.key_id, actor=self._actor)

    async def _test(self) -> TriggeredEvent:
        merchant_id = self._merchant.merchant_id
        async with self._runtime.db.transaction():
            (event,) = await self._runtime.outbox.publish(
                [WebhookTest(merchant_id=merchant_id, env="sandbox", subject_id=merchant_id)]
            )
            await self._runtime.audit.record(
                "webhook.triggered", merchant_id=merchant_id, actor=self._actor, subject_id=event.event_id
            )
        return TriggeredEvent(event.event_id, merchant_id)

    async def _play(self, api: Api, simulator: Api, kind: str, amount: int) -> TriggeredEvent:
        recipe = RECIPES[kind]
        started = self._runtime.clock.now()
        if not await api.data("GET", "/v1/merchant/providers"):
            # The first payment of a new sandbox merchant needs the public shortcode and passkey.
            await api.data("PUT", "/v1/merchant/providers", CREDENTIALS)
        body = {"amount": amount, "phone": recipe.phone, "reference": "TRIGGERED", "metadata": {"triggered": kind}}
        key = {"Idempotency_Key": f"trigger-{self._runtime.ids.new('evt')}"}
        payment = await api.data("POST", "/v1/payments", body, status=201, **key)
        payment_id = str(payment["id"])
        if recipe.refunded:
            await self._await("payment.completed", payment_id, started)
            await self._refund(api, simulator, payment_id, refused=recipe.refused)
        return TriggeredEvent(await self._await(kind, payment_id, started), payment_id)

    async def _refund(self, api: Api, simulator: Api, payment_id: str, *, refused: bool) -> None:
        body, key = {"payment_id": payment_id}, {"Idempotency_Key": f"trigger-{payment_id}"}
        if not refused:
            await api.data("POST", "/v1/refunds", body, status=201, **key)
            return
        fault = {"operation": "reversal", "fault": "400.002.02"}
        await simulator.data("POST", "/control/faults", fault | {"times": 1})
        try:
            await api.call("POST", "/v1/refunds", body, status=502, **key)
        finally:
            await simulator.data("POST", "/control/faults", fault | {"times": 0})

    async def _await(self, kind: str, payment_id: str, since: datetime) -> str:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for row in await self._runtime.db.run(
                EventRow.select(EventRow.event_id, EVENT_BODY)
                .where(
                    EventRow.merchant_id == self._merchant.merchant_id,
                    EventRow.env == "sandbox",
                    EventRow.is_public.eq(value=True),
                    EventRow.kind == kind,
                    EventRow.occurred_at >= since,
                )
                .order_by(EventRow.occurred_at)
                .order_by(EventRow.event_id)
                .limit(100)
            ):
                data: dict[str, Any] = msgspec.json.decode(row["body"])["data"]
                if data.get("payment_id") == payment_id:
                    return str(row["event_id"])
            await asyncio.sleep(_LOOK)
        raise UnexpectedAnswer(
            f"{kind} of {payment_id} was expected within {PATIENCE:g} seconds and did not come: "
            "check that a worker runs (`mpesa-gateway doctor`)"
        )
