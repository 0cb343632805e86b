"""Takes callbacks: checks who sends them and what they say, keeps each once, and tells who is waiting for it."""

import hashlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import structlog

from mpesa_gateway.daraja.wire import NotACallback, StkCallback, read_stk_callback
from mpesa_gateway.http.client_ip import read_address, read_networks, within
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.security.vault import CALLBACK_TOKENS
from mpesa_gateway_callbacks.api import Kind
from mpesa_gateway_callbacks.dedup import Dedup
from mpesa_gateway_callbacks.errors import CallbackRefused, ShapeRefused, SourceRefused, TokenRefused
from mpesa_gateway_callbacks.events import StkResulted
from mpesa_gateway_callbacks.settings import CallbacksSettings
from mpesa_gateway_callbacks.tables import (
    APPLIED,
    CLAIM_DUE,
    FORGET_REFUSED,
    GIVE_UP,
    KEEP,
    PUT_OFF,
    REFUSE,
    WAITING_FOR,
)
from mpesa_gateway_callbacks.tokens import make_token, read_token

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

PAUSES = (5, 15, 60, 300, 900, 3600)
"""Seconds until a callback that nobody could use is offered again; the last one repeats until the patience ends."""

LEASE = timedelta(seconds=60)
"""For how long one sweeper has a waiting callback to itself."""

_SHOWN = 2048
"""Characters of a refused callback that are kept."""

_REFUSALS_A_SECOND = 20
"""How many refused callbacks one process writes down in a second; a flood is only counted."""


class CallbackInbox:
    """Everything between Safaricom's POST and the plugin that asked for the callback."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._settings = gateway.settings(CallbacksSettings)
        self._allowlist = read_networks(self._settings.allowlist, "callbacks.allowlist")
        self._dedup = Dedup(gateway, timedelta(hours=self._settings.dedup_hours))
        self._refusals = (0, 0)

    def url_for(self, kind: Kind, *, env: Env, subject_id: str) -> str:
        """The address to give Daraja for one request; free of the words that Daraja's portal warns of."""
        token = make_token(self._gateway.vault.secret(CALLBACK_TOKENS), kind, env, subject_id)
        return self._gateway.url(f"/v1/cb/{kind}/{token}")

    async def receive(self, kind: Kind, token: str | None, body: bytes, source: str) -> None:
        """Check a callback and keep it; returns only once it is committed.

        Raises CallbackRefused (kept, for the operator to see why), and what the database raises when it is away.
        """
        try:
            env, subject_id = self._check_sender(kind, token, source)
            # The signature's place in the chain: after the sender, before the content is believed.
            result = self._check_shape(body)
        except CallbackRefused as refusal:
            await self._keep_refused(kind, source, refusal, body)
            raise
        handle = result.checkout_request_id or ""
        fingerprint = _fingerprint(kind, subject_id, result)
        if await self._dedup.has_seen(fingerprint):
            log.info("callback_repeated", kind=kind, checkout_request_id=handle)
            return
        now = self._gateway.clock.now()
        async with self._gateway.db.transaction():
            row = await self._gateway.db.fetchrow(
                KEEP,
                self._gateway.ids.new("cbk"),
                kind,
                fingerprint,
                now,
                source,
                env,
                subject_id,
                handle,
                result.result_code,
                body.decode("utf-8", "replace").replace("\x00", ""),
                now + timedelta(seconds=PAUSES[0]),
            )
            if row is not None and row["is_new"]:
                await self._offer(row["callback_id"], env, subject_id, result, now)
        await self._dedup.remember(fingerprint)
        log.info("callback_accepted", kind=kind, checkout_request_id=handle, result_code=result.result_code)

    async def mark_applied(self, callback_id: str) -> None:
        """A subscriber has used this callback."""
        await self._gateway.db.execute(APPLIED, callback_id, self._gateway.clock.now())

    async def apply_waiting(self, handle: str) -> int:
        """Offer what waits under a CheckoutRequestID that has just become known."""
        rows = await self._gateway.db.fetch(WAITING_FOR, handle)
        for row in rows:
            await self._offer_row(row)
        return len(rows)

    async def sweep(self) -> int:
        """Offer again what nobody could use yet, and forget old refusals; gives how many were offered."""
        now = self._gateway.clock.now()
        rows = await self._gateway.db.fetch(CLAIM_DUE, now, now + LEASE, 200)
        for row in rows:
            async with self._gateway.db.transaction():
                await self._offer_row(row)
                if now - row["received_at"] > timedelta(hours=self._settings.patience_hours):
                    await self._gateway.db.execute(GIVE_UP, row["callback_id"])
                else:
                    pause = PAUSES[min(int(row["tries"]), len(PAUSES) - 1)]
                    await self._gateway.db.execute(PUT_OFF, row["callback_id"], now + timedelta(seconds=pause))
        await self._gateway.db.execute(FORGET_REFUSED, self._settings.keep_refused)
        return len(rows)

    def _check_sender(self, kind: Kind, token: str | None, source: str) -> tuple[Env | None, str]:
        """The env and subject of the token, (None, "") without one. Raises SourceRefused or TokenRefused."""
        mode = self._settings.enforce_allowlist
        address = read_address(source)
        is_listed = address is not None and within(address, self._allowlist)
        if mode == "always" and not is_listed:
            raise SourceRefused("this address is not on the allowlist of Safaricom's addresses")
        if token is None:
            # Without a token the address is all the proof there is.
            if mode != "never" and not is_listed:
                raise SourceRefused("a callback without token is taken from allowlisted addresses only")
            return None, ""
        known = read_token(self._gateway.vault.secret(CALLBACK_TOKENS), kind, token)
        if known is None:
            raise TokenRefused("there is nothing at this address")
        if mode == "live" and known[0] == "live" and not is_listed:
            raise SourceRefused("this address is not on the allowlist of Safaricom's addresses")
        return known

    def _check_shape(self, body: bytes) -> StkCallback:
        try:
            return read_stk_callback(body)
        except NotACallback as problem:
            raise ShapeRefused(f"not an STK callback: {problem}") from None

    async def _offer_row(self, row: Any) -> None:
        result = read_stk_callback(row["body"].encode())
        await self._offer(row["callback_id"], row["env"], row["subject_id"], result, row["received_at"])

    async def _offer(
        self, callback_id: str, env: Env | None, subject_id: str, result: StkCallback, received_at: datetime
    ) -> None:
        """Publish inside the open transaction. A subscriber that fails is tried again later; the callback stays."""
        event = StkResulted(
            merchant_id="",
            subject_id=subject_id,
            callback_id=callback_id,
            env=env,
            checkout_request_id=result.checkout_request_id,
            merchant_request_id=result.merchant_request_id,
            result_code=result.result_code,
            result_desc=result.result_desc,
            amount=result.amount,
            amount_text=result.amount_text,
            receipt=result.receipt,
            phone=result.phone,
            paid_at=result.paid_at,
            received_at=received_at,
        )
        try:
            async with self._gateway.db.savepoint():
                await self._gateway.outbox.publish(event)
        except Exception:
            log.exception("callback_not_applied", callback_id=callback_id)

    async def _keep_refused(self, kind: str, source: str, refusal: CallbackRefused, body: bytes) -> None:
        now = self._gateway.clock.now()
        second, count = self._refusals
        self._refusals = (int(now.timestamp()), count + 1 if second == int(now.timestamp()) else 1)
        log.warning("callback_refused", kind=kind, source=source, reason=refusal.reason)
        if self._refusals[1] > _REFUSALS_A_SECOND:
            return
        text = mask_phones(body[: _SHOWN * 4].decode("utf-8", "replace").replace("\x00", ""))[:_SHOWN]
        await self._gateway.db.execute(REFUSE, self._gateway.ids.new("ref"), kind, now, source, refusal.reason, text)


def _fingerprint(kind: str, subject_id: str, result: StkCallback) -> bytes:
    """What makes two callbacks the same: about the same push, and saying the same.

    A callback for the same CheckoutRequestID that says something else is another one: late proof of money counts.
    """
    parts = (
        kind,
        result.checkout_request_id or subject_id,
        result.result_code,
        result.receipt or "",
        result.amount_text or "",
        result.phone or "",
    )
    return hashlib.sha256("\x1f".join(parts).encode()).digest()
