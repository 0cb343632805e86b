"""STK pushes and their outcomes: accepted, refused, not sent or unknown."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, cast

import asyncpg
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.daraja.client import DarajaClient, NotSent, OutcomeUnknown, Rejected
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import OVERLOADED, UNREACHABLE, Database, Row
from mpesa_gateway.db.outcomes import OutcomeWriter
from mpesa_gateway.errors import ProviderRejected, ProviderUnavailable
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.create_steps import AcceptedPush, CreateSteps
from mpesa_gateway_payments.decisions import ReportedFailure
from mpesa_gateway_payments.listing import find_payment
from mpesa_gateway_payments.operations import STK_PUSH, StkAck, StkPush
from mpesa_gateway_payments.paused_shortcodes import PausedShortcodes
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import Cause, Charge
from mpesa_gateway_payments.transitions import Transitions

log = structlog.get_logger(__name__)

_MARK_WITHIN = 5.0
"""Timeout in seconds of the commit before a push."""


class StkPushSender:
    """Sends one push per payment. The mark is committed before the call, the outcome after it."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: PaymentsSettings,
        daraja: DarajaClient,
        outcomes: OutcomeWriter,
        callbacks: Callbacks,
        credentials: Credentials,
        steps: CreateSteps,
        transitions: Transitions,
        paused: PausedShortcodes,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._daraja = daraja
        self._outcomes = outcomes
        self._callbacks = callbacks
        self._credentials = credentials
        self._steps = steps
        self._transitions = transitions
        self._paused = paused

    async def push(self, row: Row, credentials: MpesaCredentials) -> Row:
        """Send the STK push of a payment, store its outcome and return the payment.

        Raises ProviderUnavailable if nothing was sent, ProviderRejected if M-Pesa refused it.
        """
        self._db.refuse_transaction("sending an STK push")
        payment_id = row["payment_id"]
        address = row["callback_url"] or self._callbacks.url_for(
            "stk", env=credentials.env, merchant_id=row["merchant_id"], subject_id=payment_id
        )
        try:
            await self._daraja.prepare(credentials.daraja)
            if not await self._mark_sending(row):
                return await self._return_unchanged(row)
            push = StkPush(
                amount=Kes(row["amount"]),
                phone=Msisdn(row["phone"]),
                callback_url=address,
                account_reference=row["reference"],
                description=row["description"],
            )
            ack = await self._daraja.call(STK_PUSH, credentials.daraja, push)
        except NotSent as fault:
            self._paused.pause(row["shortcode_id"], fault)
            await self._record("unsent", row, partial(self._write_unsent, row, fault))
            raise ProviderUnavailable(
                f"nothing was sent ({fault.explained}): try again with the same Idempotency-Key",
                retry_after=fault.retry_after or 5,
                provider=fault.provider,
                subject_id=payment_id,
            ) from None
        except Rejected as fault:
            await self._record("refusal", row, partial(self._write_refusal, row, fault))
            raise ProviderRejected(
                f"M-Pesa refused the request: {fault.explained}; {fault.mitigation}",
                retryable=fault.retryable,
                provider=fault.provider,
                subject_id=payment_id,
            ) from None
        except OutcomeUnknown as fault:
            return await self._record("unknown", row, partial(self._write_unknown, row, fault))
        self._paused.resume(row["shortcode_id"])
        handles = {"merchant_request_id": ack.merchant_request_id, "checkout_request_id": ack.checkout_request_id}
        return await self._record(
            "ack",
            row,
            partial(self._write_accepted, row, ack, credentials),
            # The first accepted push of a live receiver makes its owner, in its own transaction.
            at_once=None if credentials.wants_owner else partial(self._steps.accept, _accepted(row, ack)),
            known=handles,
        )

    async def _mark_sending(self, row: Row) -> bool:
        """Commit the mark; False if the payment must not be sent. Raises NotSent if Postgres cannot commit."""
        try:
            async with asyncio.timeout(_MARK_WITHIN):
                return await self._steps.mark_sending(row["payment_id"], row["push_attempt"])
        except (*UNREACHABLE, *OVERLOADED) as problem:
            log.warning("push_not_marked", payment_id=row["payment_id"], error=type(problem).__name__)
            raise NotSent("the gateway cannot write to its database now", retry_after=5) from None

    async def _return_unchanged(self, row: Row) -> Row:
        async def write() -> Row:
            await self._settle_key(row)
            return await find_payment(self._db, row["merchant_id"], row["env"], row["payment_id"])

        return await self._record("key", row, write)

    async def _record(
        self,
        outcome: str,
        row: Row,
        write: Callable[[], Awaitable[Row]],
        *,
        at_once: Callable[[], Awaitable[Row | None]] | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> Row:
        written = await self._outcomes.record(outcome, row["payment_id"], write, at_once=at_once)
        # Views read both types.
        return written if written is not None else cast("Row", dict(row) | dict(known or {}))

    async def _write_accepted(self, row: Row, ack: StkAck, credentials: MpesaCredentials) -> Row:
        payment_id, merchant_id = row["payment_id"], row["merchant_id"]
        await self._settle_key(row)
        try:
            async with self._db.savepoint():
                await self._steps.accept_alone(_accepted(row, ack))
        except asyncpg.UniqueViolationError:
            log.error("checkout_request_id_of_another", payment_id=payment_id, handle=ack.checkout_request_id)
            reason = "M-Pesa's acknowledgement has the CheckoutRequestID of another payment"
            return await self._write_unknown(row, OutcomeUnknown(reason))
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as problem:
            log.error("acknowledgement_not_stored", payment_id=payment_id, error=type(problem).__name__)
            return await self._write_unknown(row, OutcomeUnknown("M-Pesa's acknowledgement has no usable ids"))
        # A callback without a token may be waiting for its CheckoutRequestID.
        await self._callbacks.apply_waiting(ack.checkout_request_id)
        await self._credentials.accepted(credentials)
        return await find_payment(self._db, merchant_id, row["env"], payment_id)

    async def _write_unknown(self, row: Row, fault: OutcomeUnknown) -> Row:
        payment_id, now = row["payment_id"], self._clock.now()
        await self._settle_key(row)
        if await self._db.fetchrow(tables.OUTCOME_UNKNOWN, payment_id, now) is not None:
            await self._transitions.step(payment_id, now, "unknown", Cause.FAULT, fault.code, fault.meaning)
            log.warning("push_outcome_unknown", payment_id=payment_id, fault=fault.meaning)
        return await find_payment(self._db, row["merchant_id"], row["env"], payment_id)

    async def _write_unsent(self, row: Row, fault: NotSent) -> Row:
        """The key is released unless a report shows a prompt."""
        payment_id, merchant_id, now = row["payment_id"], row["merchant_id"], self._clock.now()
        key, attempt = row["idempotency_key"], row["push_attempt"]
        await idempotency.lock(self._db, merchant_id=merchant_id, env=row["env"], key=key)
        due = now + timedelta(seconds=self._settings.unsent_after)
        if await self._db.fetchrow(tables.RELEASE_PUSH, payment_id, attempt, now, due) is not None:
            await self._transitions.step(payment_id, now, "unsent", Cause.FAULT, fault.code, fault.explained)
            await idempotency.release(self._db, merchant_id=merchant_id, env=row["env"], key=key)
        found = await find_payment(self._db, merchant_id, row["env"], payment_id)
        is_under_way = found["charge"] in {Charge.READY.value, Charge.SENDING.value}
        if found["push_attempt"] == attempt and is_under_way:
            return await self._write_unknown(row, OutcomeUnknown(fault.meaning, code=fault.code))
        return found

    async def _write_refusal(self, row: Row, fault: Rejected) -> Row:
        await self._settle_key(row)
        report = ReportedFailure(
            code=fault.code or "refused",
            text=fault.explained,
            reason=fault.failure_reason,
            cause=Cause.FAULT,
            step="refused",
            is_final=True,
        )
        locked = await self._db.fetchrow(tables.LOCK, [row["payment_id"]])
        if locked is not None:
            await self._transitions.apply(locked, report)
        return await find_payment(self._db, row["merchant_id"], row["env"], row["payment_id"])

    async def _settle_key(self, row: Row) -> None:
        await idempotency.settle(self._db, merchant_id=row["merchant_id"], env=row["env"], key=row["idempotency_key"])


def _accepted(row: Row, ack: StkAck) -> AcceptedPush:
    return AcceptedPush(
        row["payment_id"],
        row["merchant_id"],
        row["env"],
        row["idempotency_key"],
        ack,
        is_named=row["callback_url"] is None,
    )
