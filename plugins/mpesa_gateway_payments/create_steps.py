"""Steps of creates, written in batches; locked rows are written alone."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import cast

import asyncpg
import msgspec
import structlog
from opentelemetry.trace import Tracer

from mpesa_gateway.batching import Batcher
from mpesa_gateway.clock import Clock
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE, Database, Row, reserve
from mpesa_gateway.env import Env
from mpesa_gateway.tracing import postgres_span
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.operations import StkAck
from mpesa_gateway_payments.settings import PaymentsSettings

log = structlog.get_logger(__name__)

OPERATION = "payment"
"""The operation of payments' Idempotency-Keys."""


@dataclass(frozen=True, kw_only=True)
class NewPayment:
    """A payment to insert. ``amount`` is in KES; ``metadata`` is JSON."""

    payment_id: str
    merchant_id: str
    env: Env
    shortcode_id: str
    shortcode: str
    amount: int
    phone: str
    reference: str
    reference_is_ours: bool
    description: str
    callback_url: str | None
    metadata: str
    idempotency_key: str
    fingerprint: bytes
    asked_at: datetime
    requested_by: str | None


@dataclass(frozen=True)
class AcceptedPush:
    """An accepted push. ``is_named``: its callback address names the payment."""

    payment_id: str
    merchant_id: str
    env: Env
    idempotency_key: str
    ack: StkAck
    is_named: bool


_SINGLY: tuple[type[BaseException], ...] = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    *UNREACHABLE,
    *OVERLOADED,
)
"""Errors of a batch whose items are written alone."""


class CreateSteps:
    """The steps of a create: one statement for all payments at the same step."""

    def __init__(
        self, *, db: Database, clock: Clock, tracer: Tracer, settings: PaymentsSettings, callbacks: Callbacks
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._callbacks = callbacks
        self._inserts: Batcher[NewPayment, Row | None] = Batcher(
            self._insert, span=partial(postgres_span, tracer, "insert payment")
        )
        self._marks: Batcher[tuple[str, int], bool] = Batcher(
            self._mark, span=partial(postgres_span, tracer, "mark payment")
        )
        self._acks: Batcher[AcceptedPush, Row | None] = Batcher(
            self._accept, span=partial(postgres_span, tracer, "accept payment")
        )

    async def insert(self, wanted: NewPayment) -> Row | None:
        """Claim the key and insert the payment; None if the key was used before."""
        return await self._inserts.submit(wanted)

    async def mark_sending(self, payment_id: str, push_attempt: int) -> bool:
        """Commit the mark before a push; False if the payment has changed."""
        return await self._marks.submit((payment_id, push_attempt))

    async def _mark(self, pushes: Sequence[tuple[str, int]]) -> list[bool | Exception]:
        # Without the reserved connections: callbacks need them, and an unmarked push is not sent.
        rows = await self._db.fetch(tables.SENDING, [one for one, _ in pushes], [number for _, number in pushes])
        marked = {row["payment_id"] for row in rows}
        # The others are locked or have changed.
        return [payment_id in marked or await self._mark_alone(payment_id, number) for payment_id, number in pushes]

    async def _mark_alone(self, payment_id: str, push_attempt: int) -> bool | Exception:
        try:
            async with self._db.transaction():
                await self._db.execute("SET LOCAL lock_timeout = 500")
                await self._db.fetchrow(tables.LOCK, [payment_id])
                return bool(await self._db.fetch(tables.SENDING, [payment_id], [push_attempt]))
        except (*UNREACHABLE, *OVERLOADED) as problem:
            return cast("Exception", problem)

    async def accept(self, accepted: AcceptedPush) -> Row | None:
        """Store an acceptance; None if ``accept_alone`` is needed."""
        return await self._acks.submit(accepted)

    async def _insert(self, wanted: Sequence[NewPayment]) -> list[Row | Exception | None]:
        try:
            rows = await self._insert_rows(wanted)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.DeadlockDetectedError) as problem:
            if len(wanted) == 1:
                return [problem]
            # One is invalid: each alone, so that the others succeed without waiting.
            return await asyncio.gather(*map(self._insert_alone, wanted))
        made = {row["payment_id"]: row for row in rows}
        return [made.get(one.payment_id) for one in wanted]

    async def _insert_alone(self, wanted: NewPayment) -> Row | Exception | None:
        try:
            (result,) = await self._insert([wanted])
        except Exception as problem:  # noqa: BLE001 - raised again for its caller: others are committed
            return problem
        return result

    async def _insert_rows(self, wanted: Sequence[NewPayment]) -> list[Row]:
        lease = timedelta(seconds=self._settings.create_lease)
        expires = timedelta(seconds=self._settings.expire_after)
        rows = [
            vars(one)
            | {
                "leased_until": one.asked_at + lease,
                "due_at": one.asked_at + lease,
                "expires_at": one.asked_at + expires,
                "operation": OPERATION,
            }
            for one in wanted
        ]
        return await self._db.fetch(*tables.INSERT.bind_rows(rows))

    async def accept_alone(self, accepted: AcceptedPush) -> None:
        """Store an acceptance in the open transaction. Locks the key, then the payment."""
        key, merchant_id, env = accepted.idempotency_key, accepted.merchant_id, accepted.env
        await idempotency.lock(self._db, merchant_id=merchant_id, env=env, key=key)
        await self._db.fetchrow(tables.LOCK, [accepted.payment_id])
        await self._write_accepted([accepted])

    async def _write_accepted(self, accepted: Sequence[AcceptedPush]) -> list[Row]:
        now = self._clock.now()
        return await self._db.fetch(
            tables.ACCEPTED,
            [one.payment_id for one in accepted],
            [one.merchant_id for one in accepted],
            [one.idempotency_key for one in accepted],
            [one.ack.merchant_request_id for one in accepted],
            [one.ack.checkout_request_id for one in accepted],
            now,
            now + timedelta(seconds=self._settings.query_after[0]),
            [one.env for one in accepted],
        )

    async def _accept(self, accepted: Sequence[AcceptedPush]) -> list[Row | None]:
        try:
            with reserve():
                rows = await self._write_accepted(accepted)
        except _SINGLY as problem:
            # Each alone, so that one failure affects no other.
            log.info("acknowledgements_stored_singly", count=len(accepted), error=type(problem).__name__)
            return [None] * len(accepted)
        known = {row["payment_id"]: row for row in rows}
        # A callback without a token may be waiting for its CheckoutRequestID.
        handles = {
            one.ack.checkout_request_id: one.payment_id
            for one in accepted
            if not one.is_named and one.payment_id in known
        }
        if handles:
            try:
                for handle in await self._callbacks.find_waiting(list(handles)):
                    known[handles[handle]] = await self._apply(handles[handle], handle)
            except (*UNREACHABLE, *OVERLOADED) as problem:
                # The acceptances are committed; the callbacks' sweep retries the results.
                log.warning("waiting_callbacks_failed", error=type(problem).__name__)
        return [known.get(one.payment_id) for one in accepted]

    async def _apply(self, payment_id: str, handle: str) -> Row:
        async with self._db.transaction():
            await self._db.execute("SET LOCAL lock_timeout = 500")
            # Payments are locked before their callbacks everywhere, to avoid deadlocks.
            await self._db.fetchrow(tables.LOCK, [payment_id])
            await self._callbacks.apply_waiting(handle)
            row = await self._db.fetchrow(tables.LOCK, [payment_id])
        if row is None:
            raise RuntimeError(f"{payment_id} is gone")
        return row


def metadata_json(metadata: Mapping[str, str] | None) -> str:
    return msgspec.json.encode(dict(metadata or {})).decode()
