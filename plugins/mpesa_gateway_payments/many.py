"""Takes many payments one step further at once, where nothing about them is odd; the odd ones go one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import asyncpg
import msgspec
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import OVERBURDENED, UNREACHABLE, Database, Row, reserve
from mpesa_gateway.db.outbox import Outbox
from mpesa_gateway.db.writes import Write
from mpesa_gateway.env import Env
from mpesa_gateway.meter import Meter
from mpesa_gateway.together import Together
from mpesa_gateway.tracing import POSTGRES, Tracer
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_payments import tables, transition_sql
from mpesa_gateway_payments.events import PaymentCompleted, PaymentEvent, PaymentFailed, StkResulted
from mpesa_gateway_payments.evidence import Proof, has_receipt_of_unknown, read_callback
from mpesa_gateway_payments.judging import judge, speaks_of
from mpesa_gateway_payments.measures import count_ended
from mpesa_gateway_payments.operations import StkAck
from mpesa_gateway_payments.result_codes import Outcome, stk_outcome
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import Cause, Status
from mpesa_gateway_payments.verdicts import Rules, Settles, payment_of
from mpesa_gateway_payments.views import event_fields

log = structlog.get_logger(__name__)

OPERATION = "payment"
"""What an Idempotency-Key of a payment was used for."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A payment as it is to be written, before its push. ``amount`` is in KES, ``metadata`` JSON."""

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


@dataclass(frozen=True)
class Accepted:
    """A payment whose push Daraja has taken. ``is_named`` says that its callback tells by its address whose it is."""

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
    *OVERBURDENED,
)
"""Why a batch of acknowledgements was not written, with nothing wrong in the program."""


class Steps:
    """The two steps of a create, each one statement for all payments that are at it: half of a busy process's work."""

    def __init__(
        self, *, db: Database, clock: Clock, tracer: Tracer, settings: PaymentsSettings, callbacks: Callbacks
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._callbacks = callbacks
        step = tracer.step
        self._inserts: Together[Wanted, Row | None] = Together(
            self._insert, told=partial(step, "postgres insert payment", POSTGRES, "client")
        )
        self._marks: Together[tuple[str, int], bool] = Together(
            self._mark, told=partial(step, "postgres mark payment", POSTGRES, "client")
        )
        self._acks: Together[Accepted, Row | None] = Together(
            self._accept, told=partial(step, "postgres accept payment", POSTGRES, "client")
        )

    async def insert(self, wanted: Wanted) -> Row | None:
        """Claim the key and write the payment; None, with nothing done, where the key has been seen before."""
        return await self._inserts.ask(wanted)

    async def mark_sending(self, payment_id: str, push_attempt: int) -> bool:
        """Commit that the push is about to be sent; False where the payment has changed meanwhile."""
        return await self._marks.ask((payment_id, push_attempt))

    async def _mark(self, pushes: Sequence[tuple[str, int]]) -> list[bool | Exception]:
        # Not from the reserve: a push that cannot be marked is not sent, and callbacks need those connections.
        rows = await self._db.fetch(tables.SENDING_MANY, [one for one, _ in pushes], [number for _, number in pushes])
        marked = {row["payment_id"] for row in rows}
        # Another session has the row of the others, or they have changed: each by itself tells which.
        return [payment_id in marked or await self._mark_one(payment_id, number) for payment_id, number in pushes]

    async def _mark_one(self, payment_id: str, push_attempt: int) -> bool | Exception:
        try:
            async with self._db.transaction():
                await self._db.execute("SET LOCAL lock_timeout = 500")
                return await self._db.fetchval(tables.SENDING, payment_id, push_attempt) is not None
        except (*UNREACHABLE, *OVERBURDENED) as problem:
            return cast("Exception", problem)

    async def accept(self, accepted: Accepted) -> Row | None:
        """Write that Daraja took the push; None where that has to be done by itself."""
        return await self._acks.ask(accepted)

    async def _insert(self, wanted: Sequence[Wanted]) -> list[Row | None]:
        try:
            rows = await self._insert_rows(wanted)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.DeadlockDetectedError):
            # Something is wrong with one of them: each by itself then, so that it spoils no others.
            return [None] * len(wanted)
        made = {row["payment_id"]: row for row in rows}
        return [made.get(one.payment_id) for one in wanted]

    async def _insert_rows(self, wanted: Sequence[Wanted]) -> list[Row]:
        hold = timedelta(seconds=self._settings.hold)
        expires = timedelta(seconds=self._settings.expire_after)
        rows = [
            vars(one)
            | {
                "leased_until": one.asked_at + hold,
                "due_at": one.asked_at + hold,
                "expires_at": one.asked_at + expires,
                "operation": OPERATION,
            }
            for one in wanted
        ]
        return await self._db.fetch(*tables.INSERT_MANY.bind_rows(rows))

    async def _accept(self, accepted: Sequence[Accepted]) -> list[Row | None]:
        now = self._clock.now()
        try:
            with reserve():
                rows = await self._db.fetch(
                    tables.ACCEPTED_MANY,
                    [one.payment_id for one in accepted],
                    [one.merchant_id for one in accepted],
                    [one.idempotency_key for one in accepted],
                    [one.ack.merchant_request_id for one in accepted],
                    [one.ack.checkout_request_id for one in accepted],
                    now,
                    now + timedelta(seconds=self._settings.ask_after[0]),
                    [one.env for one in accepted],
                )
        except _SINGLY as problem:
            # Each by itself then, so that one spoils no others.
            log.info("acks_one_by_one", count=len(accepted), error=type(problem).__name__)
            return [None] * len(accepted)
        known = {row["payment_id"]: row for row in rows}
        # A callback that came without a token, before we knew its CheckoutRequestID, has been waiting for this.
        handles = {
            one.ack.checkout_request_id: one.payment_id
            for one in accepted
            if not one.is_named and one.payment_id in known
        }
        if handles:
            try:
                for handle in await self._callbacks.waiting_among(list(handles)):
                    known[handles[handle]] = await self._apply(handles[handle], handle)
            except (*UNREACHABLE, *OVERBURDENED) as problem:
                # The acks are written. What waits is offered again by the sweep of callbacks.
                log.warning("waiting_callbacks_not_applied", error=type(problem).__name__)
        return [known.get(one.payment_id) for one in accepted]

    async def _apply(self, payment_id: str, handle: str) -> Row:
        """The payment after what waits under its handle has been offered."""
        async with self._db.transaction():
            await self._db.execute("SET LOCAL lock_timeout = 500")
            # The payment before its callbacks, as everywhere, so that nobody waits in a ring.
            await self._db.fetchrow(tables.LOCK, payment_id)
            await self._callbacks.apply_waiting(handle)
            row = await self._db.fetchrow(tables.LOCK, payment_id)
        if row is None:
            raise RuntimeError(f"{payment_id} is gone")
        return row


_TOLD = ("status", "receipt", "result_code", "result_desc", "failure_reason", "outcome_is_final")
"""What ``END_MANY`` takes of each payment, in this order."""


class Endings:
    """What callbacks do to payments, for several at once: one trip to look, one to write, whatever their number.

    Nothing is locked in between. A payment that somebody else has changed by then lets the whole of the transaction
    fail, and its callbacks are offered one by one.
    """

    def __init__(
        self, *, db: Database, clock: Clock, outbox: Outbox, meter: Meter, rules: Rules, callbacks: Callbacks
    ) -> None:
        self._db = db
        self._clock = clock
        self._outbox = outbox
        self._meter = meter
        self._callbacks = callbacks
        self._rules = rules

    async def take(self, results: Sequence[StkResulted]) -> None:
        """Take results in the open transaction. The odd ones are put aside, to be offered one by one."""
        by_payment = {result.subject_id: result for result in results if result.subject_id}
        plain: list[tuple[Row, StkResulted, Outcome]] = []
        for row in await self._db.look(tables.FIND_MANY, list(by_payment)):
            result = by_payment[row["payment_id"]]
            outcome = stk_outcome(result.result_code, result.result_desc)
            if self._is_plain(row, result, outcome):
                plain.append((row, result, outcome))
        taken = {result.callback_id for _, result, _ in plain}
        for result in results:
            if result.callback_id not in taken:
                self._callbacks.put_aside(result.callback_id)
        if plain:
            await self._end(plain)

    def _is_plain(self, row: Row, result: StkResulted, outcome: Outcome) -> bool:
        """Whether a payment simply ends: everything fits, and nothing has happened to it but its push.

        What ``END_MANY`` does not look at again is told once for each payment.
        """
        if (
            row["status"] != Status.PENDING.value
            or row["mismatch"] is not None
            or row["claim"] is not None
            or (row["merchant_id"], row["env"]) != (result.merchant_id, result.env)
            or row["checkout_request_id"] is None
            or result.checkout_request_id is None
            or outcome.is_pending
            or has_receipt_of_unknown(result, outcome)
        ):
            return False
        evidence, payment = read_callback(result), payment_of(row)
        if not outcome.is_paid:
            return evidence.proof is not Proof.NONE and speaks_of(evidence, payment)
        verdict = judge(evidence, (payment,), rules=self._rules)
        return isinstance(verdict, Settles) and not verdict.is_other_payer and evidence.amount is not None

    async def _end(self, plain: Sequence[tuple[Row, StkResulted, Outcome]]) -> None:
        now = self._clock.now()
        changes = [_change(result, outcome, now) for _, result, outcome in plain]
        ids = [row["payment_id"] for row, _, _ in plain]
        told = {name: [change[name] for change in changes] for name in _TOLD}
        ends = Write(transition_sql.END_MANY, (ids, *told.values(), now), expects=len(ids))
        await self._db.put_off(ends)
        await self._db.put_off(
            Write(transition_sql.END_STEPS, (ids, told["status"], told["result_code"], told["result_desc"], now))
        )
        events: list[PaymentEvent] = [
            (PaymentFailed if change["failure_reason"] else PaymentCompleted)(**event_fields(dict(row) | change))
            for (row, _, _), change in zip(plain, changes, strict=True)
        ]
        await self._outbox.publish_many(events)

        async def ended() -> None:
            for (row, _, _), change in zip(plain, changes, strict=True):
                reason = change["failure_reason"]
                count_ended(self._meter, row, reason, now)
                word = "payment_completed" if reason is None else "payment_failed"
                log.info(word, payment_id=row["payment_id"], cause=Cause.CALLBACK.value, reason=reason)

        # Not before: it may turn out that somebody else has ended one of them.
        await self._db.after_commit(ended)
        for _, result, _ in plain:
            await self._callbacks.mark_applied(result.callback_id)


def _change(result: StkResulted, outcome: Outcome, now: datetime) -> dict[str, Any]:
    return {
        "status": (Status.COMPLETED if outcome.is_paid else Status.FAILED).value,
        "receipt": result.receipt if outcome.is_paid else None,
        "result_code": result.result_code,
        "result_desc": result.result_desc,
        "failure_reason": None if outcome.is_paid else outcome.failure_reason,
        "outcome_is_final": not outcome.is_paid and outcome.is_final,
        "completed_at": now if outcome.is_paid else None,
        "updated_at": now,
    }


def metadata_json(metadata: Mapping[str, str] | None) -> str:
    """A payment's metadata as it is stored."""
    return msgspec.json.encode(dict(metadata or {})).decode()
