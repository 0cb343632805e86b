"""Takes a payment from the merchant's wish to its one end, whatever crashes, repeats or comes late on the way."""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import asyncpg
import msgspec
import structlog

from mpesa_gateway.daraja.client import NotSent, OutcomeUnknown, Rejected
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import OVERBURDENED, UNREACHABLE, Row
from mpesa_gateway.db.idempotency import KeyMismatch
from mpesa_gateway.errors import (
    Checks,
    NotFound,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderUnavailable,
    checking,
)
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.places import Places
from mpesa_gateway.privacy import may_be_handle
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.stored import loads
from mpesa_gateway_callbacks.api import AnotherSubject, Callbacks
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials, ReceiverOwned
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.api import PaymentRequest, Requested
from mpesa_gateway_payments.errors import NotAsked, ShortcodeRetired
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.evidence import (
    Evidence,
    Handle,
    Proof,
    Source,
    has_receipt_of_unknown,
    read_amount,
    read_callback,
)
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.judging import Confirm, Mismatch, judge, judge_other_push, payment_of, speaks_of
from mpesa_gateway_payments.listing import export_payments, list_payments
from mpesa_gateway_payments.many import OPERATION, Accepted, Endings, Steps, Wanted, metadata_json
from mpesa_gateway_payments.operations import STK_PUSH, STK_QUERY, StkAck, StkPush, StkQuery
from mpesa_gateway_payments.result_codes import Outcome, stk_outcome
from mpesa_gateway_payments.schemas import (
    CreatePayment,
    PaymentFilters,
    PaymentQuery,
    PaymentView,
    PaymentWithTimeline,
    TimelineEntry,
)
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import Cause, Charge, Status
from mpesa_gateway_payments.transitions import Told, Transitions, told_of
from mpesa_gateway_payments.unacknowledged import Unacknowledged
from mpesa_gateway_payments.views import exported, view

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

_OPERATION = "payments.request"
_ASKING = timedelta(seconds=60)
"""For how long one worker has a payment to itself while it asks Daraja."""
_MARK_WITHIN = 5.0
"""Seconds that committing the mark before a push may take; nothing is sent without it."""
_REST = 10
"""Seconds without questions for a shortcode after Daraja took none, when it does not say how long."""
_ASK_FOR = 20.0
"""Seconds after which a shortcode's job begins no more questions: others have their turn."""
_LAST_ASK = timedelta(seconds=45)
"""How long before a payment's end it is asked about for the last time: longer than a call to Daraja takes."""


class _KeyOfOld(Exception):
    """A payment has this Idempotency-Key, and what we had noted about the key has been let go since."""


class PaymentService:
    """The use cases of payments. Each writes its intent, commits, calls, and writes the outcome."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._reads = gateway.reads
        self._settings = gateway.settings(PaymentsSettings)
        self._places = Places(gateway.config.worker.daraja, each=1)
        self._moves = Transitions(gateway)
        self._expiry = Expiry(gateway, self._moves)
        self._resting: dict[str, datetime] = {}
        self._steps = Steps(gateway)
        self._unacknowledged = Unacknowledged(gateway)
        self._rules = self._settings.rules
        self._endings = Endings(gateway, self._rules)

    # -- asking the payer -----------------------------------------------------------------------------------------

    def read(self, body: CreatePayment) -> PaymentRequest:
        """A payment request from a body whose fields are right by themselves. Raises Invalid for its callback_url."""
        if body.callback_url is not None:
            with checking() as checks:
                self._check_callback_url(checks, body.callback_url)
        return PaymentRequest(
            amount=Kes.parse_json(body.amount),
            phone=Msisdn.parse(body.phone),
            reference=body.reference,
            description=body.description,
            callback_url=body.callback_url,
            metadata=body.metadata,
        )

    def _check_callback_url(self, checks: Checks, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            checks.fail("callback_url", "must be an https address")
            return
        own = urlsplit(self._gateway.config.public_url)
        is_ours = (parts.scheme, host, port) == (own.scheme, own.hostname, own.port)
        is_allowed = parts.scheme == "https" and host in self._settings.allowed_callback_hosts
        if not is_ours and not is_allowed:
            checks.fail(
                "callback_url",
                f"its host must be this gateway's ({own.netloc}) or allowed in its configuration "
                "(payments.allowed_callback_hosts); leave it out to use the gateway's own address",
            )

    async def request(self, merchant_id: str, env: Env, request: PaymentRequest, *, idempotency_key: str) -> Requested:
        """See the port."""
        self._db.refuse_transaction("asking for a payment")
        self._gateway.outcomes.require_room()
        row, credentials = await self._insert_first(merchant_id, env, request, idempotency_key)
        if row is None:
            row, credentials = await self._claim(merchant_id, env, request, idempotency_key)
        if credentials is None:
            return Requested(view(row), is_replay=True)
        structlog.contextvars.bind_contextvars(payment_id=row["payment_id"])
        self._gateway.tracer.begins(row["payment_id"])
        # A caller that hangs up must not tear the push from its record.
        pushed = await self._gateway.see_through(self._push(row, credentials))
        return Requested(view(pushed), is_replay=False)

    async def _insert_first(
        self, merchant_id: str, env: Env, request: PaymentRequest, key: str
    ) -> tuple[Row | None, MpesaCredentials | None]:
        """The payment of a key that nobody has used before, as almost every key; None for any other."""
        try:
            credentials = await self._gateway.services.get(Credentials).get(merchant_id, env)
            credentials.check_use()
        except (ProviderNotConfigured, ReceiverOwned):
            # A host may name any merchant. Raises NotFound for one that does not exist.
            await self._gateway.merchants.require(merchant_id)
            # A key that has been used is answered with what it made, whatever is configured now.
            return None, None
        payment_id = self._gateway.ids.new("pay")
        reference = request.reference or credentials.account_reference
        wanted = Wanted(
            payment_id=payment_id,
            merchant_id=merchant_id,
            env=credentials.env,
            shortcode_id=credentials.shortcode_id,
            shortcode=credentials.shortcode,
            amount=int(request.amount),
            phone=str(request.phone),
            reference=reference or own_reference(payment_id),
            reference_is_ours=reference is None,
            description=request.description or self._settings.description,
            callback_url=request.callback_url,
            metadata=metadata_json(request.metadata),
            idempotency_key=key,
            fingerprint=idempotency.fingerprint(_OPERATION, _canonical(request)),
            asked_at=self._gateway.clock.now(),
        )
        return await self._steps.insert(wanted), credentials

    async def _claim(
        self, merchant_id: str, env: Env, request: PaymentRequest, key: str
    ) -> tuple[Row, MpesaCredentials | None]:
        """The payment of this key, with the credentials to push it where that is ours to do, None for a replay."""
        try:
            return await self._claim_now(merchant_id, env, request, key)
        except _KeyOfOld:
            return await self._find_old(merchant_id, env, request, key), None

    async def _find_old(self, merchant_id: str, env: Env, request: PaymentRequest, key: str) -> Row:
        """The payment whose key has been let go: it never makes a second one. Raises KeyMismatch for another body.

        The fingerprint went with the key, so the requests are compared by what the payment itself has kept.
        """
        row = await self._db.fetchrow(tables.FIND_BY_KEY, merchant_id, env, key)
        if row is None:
            raise NotFound("there is no such payment")
        is_same = row["amount"] == request.amount and (row["erased_at"] is not None or row["phone"] == request.phone)
        if not is_same or request.reference not in {None, row["reference"]}:
            raise KeyMismatch("this Idempotency-Key was used with another request: send a new key, or the same body")
        return row

    async def _claim_now(
        self, merchant_id: str, env: Env, request: PaymentRequest, key: str
    ) -> tuple[Row, MpesaCredentials | None]:
        now = self._gateway.clock.now()
        payment_id = self._gateway.ids.new("pay")
        async with self._db.transaction():
            claim = await idempotency.claim(
                self._db,
                merchant_id=merchant_id,
                env=env,
                key=key,
                operation=OPERATION,
                fingerprint=idempotency.fingerprint(_OPERATION, _canonical(request)),
                subject_id=payment_id,
                now=now,
                lease=timedelta(seconds=self._settings.hold),
            )
            if not claim.is_ours:
                row = await self._require(merchant_id, env, claim.subject_id)
                if row["charge"] in {Charge.READY.value, Charge.SENDING.value}:
                    # The lease has ended and there is no record: the process that had it is gone.
                    row = await self._unacknowledged.close(claim.subject_id, now) or row
                return row, None
            if claim.subject_id != payment_id:
                credentials = await self._credentials_again(merchant_id, claim.subject_id, env)
                due = now + timedelta(seconds=self._settings.hold)
                expires = now + timedelta(seconds=self._settings.expire_after)
                again = await self._db.fetchrow(tables.RESEND, claim.subject_id, now, due, expires)
                if again is not None:
                    return again, credentials
                # It was given up meanwhile: what it is now is the answer.
                await idempotency.settle(self._db, merchant_id=merchant_id, env=env, key=key)
                return await self._require(merchant_id, env, claim.subject_id), None
            credentials = await self._gateway.services.get(Credentials).get(merchant_id, env)
            credentials.check_use()
            return await self._insert(payment_id, merchant_id, request, key, credentials, now), credentials

    async def _credentials_again(self, merchant_id: str, payment_id: str, env: Env) -> MpesaCredentials:
        """What a payment that was not sent is pushed with now: its own shortcode's newest credentials.

        Raises ShortcodeRetired where that shortcode takes no payments any more.
        """
        row = await self._require(merchant_id, env, payment_id)
        told = f"this payment is of {row['env']} shortcode {row['shortcode']}"
        try:
            credentials = await self._gateway.services.get(Credentials).of_shortcode(row["shortcode_id"])
        except ProviderNotConfigured:
            credentials = None
        if credentials is None or credentials.retired_at is not None:
            raise ShortcodeRetired(
                f"{told}, which is not configured any more: store it again with PUT /v1/merchant/providers, or send "
                "a new Idempotency-Key to ask at the present shortcode"
            )
        credentials.check_use()
        return credentials

    async def _insert(
        self,
        payment_id: str,
        merchant_id: str,
        request: PaymentRequest,
        key: str,
        credentials: MpesaCredentials,
        now: datetime,
    ) -> Row:
        reference = request.reference or credentials.account_reference
        row = await self._db.fetchrow(
            tables.INSERT,
            payment_id,
            merchant_id,
            credentials.env,
            credentials.shortcode,
            int(request.amount),
            str(request.phone),
            reference or own_reference(payment_id),
            reference is None,
            request.description or self._settings.description,
            request.callback_url,
            metadata_json(request.metadata),
            key,
            now + timedelta(seconds=self._settings.hold),
            now + timedelta(seconds=self._settings.expire_after),
            now,
            credentials.shortcode_id,
        )
        if row is None:
            raise _KeyOfOld
        return row

    async def _push(self, row: Row, credentials: MpesaCredentials) -> Row:
        """Send the one STK push of a payment and record what came of it."""
        payment_id = row["payment_id"]
        address = row["callback_url"] or self._gateway.services.get(Callbacks).url_for(
            "stk", env=credentials.env, merchant_id=row["merchant_id"], subject_id=payment_id
        )
        try:
            await self._gateway.daraja.prepare(credentials.daraja)
            if not await self._mark_sending(row):
                return await self._leave(row)
            push = StkPush(
                amount=Kes(row["amount"]),
                phone=Msisdn(row["phone"]),
                callback_url=address,
                account_reference=row["reference"],
                description=row["description"],
            )
            ack = await self._gateway.daraja.ask(STK_PUSH, credentials.daraja, push)
        except NotSent as fault:
            self._rest(row["shortcode_id"], fault)
            await self._record("unsent", row, partial(self._write_unsent, row, fault))
            raise ProviderUnavailable(
                f"nothing was sent ({fault.meaning}): try again with the same Idempotency-Key",
                retry_after=fault.retry_after or 5,
                provider=fault.provider,
            ) from None
        except Rejected as fault:
            await self._record("refusal", row, partial(self._write_refusal, row, fault))
            raise ProviderRejected(
                f"M-Pesa refused the request: {fault.mitigation}", retryable=fault.retryable, provider=fault.provider
            ) from None
        except OutcomeUnknown as fault:
            return await self._record("unknown", row, partial(self._write_unknown, row, fault))
        self._resting.pop(row["shortcode_id"], None)
        handles = {"merchant_request_id": ack.merchant_request_id, "checkout_request_id": ack.checkout_request_id}
        accepted = Accepted(
            payment_id,
            row["merchant_id"],
            row["env"],
            row["idempotency_key"],
            ack,
            is_named=row["callback_url"] is None,
        )
        return await self._record(
            "ack",
            row,
            partial(self._write_accepted, row, ack, credentials),
            # The first accepted push of a live receiver also makes its owner, which needs a transaction of its own.
            at_once=None if credentials.wants_owner else partial(self._steps.accept, accepted),
            known=handles,
        )

    async def _mark_sending(self, row: Row) -> bool:
        """Commit that the push is about to be sent; False where it must not be: the payment has changed meanwhile.

        Raises NotSent where Postgres cannot commit it.
        """
        try:
            async with asyncio.timeout(_MARK_WITHIN):
                return await self._steps.mark_sending(row["payment_id"], row["push_attempt"])
        except (*UNREACHABLE, *OVERBURDENED) as problem:
            log.warning("push_not_marked", payment_id=row["payment_id"], error=type(problem).__name__)
            raise NotSent("the gateway cannot write to its database at the moment", retry_after=5) from None

    async def _leave(self, row: Row) -> Row:
        """A payment that is not to be pushed any more, as it is; its key is settled."""

        async def write() -> Row:
            await self._settle_key(row)
            return await self._require(row["merchant_id"], row["env"], row["payment_id"])

        return await self._record("key", row, write)

    async def _record(
        self,
        what: str,
        row: Row,
        write: Callable[[], Awaitable[Row]],
        *,
        at_once: Callable[[], Awaitable[Row | None]] | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> Row:
        """Write an outcome of the push; returns the payment, with what is ``known`` where it will be written later."""
        written = await self._gateway.outcomes.record(what, row["payment_id"], write, at_once=at_once)
        # A view reads either in the same way.
        return written if written is not None else cast("Row", dict(row) | dict(known or {}))

    async def _write_accepted(self, row: Row, ack: StkAck, credentials: MpesaCredentials) -> Row:
        payment_id, merchant_id, now = row["payment_id"], row["merchant_id"], self._gateway.clock.now()
        await self._settle_key(row)
        try:
            async with self._db.savepoint():
                due = now + timedelta(seconds=self._settings.ask_after[0])
                taken = await self._db.fetchrow(
                    tables.ACCEPTED, payment_id, ack.merchant_request_id, ack.checkout_request_id, now, due
                )
        except asyncpg.UniqueViolationError:
            log.error("checkout_request_id_of_another", payment_id=payment_id, handle=ack.checkout_request_id)
            why = "M-Pesa's acknowledgement has the CheckoutRequestID of another payment"
            return await self._write_unknown(row, OutcomeUnknown(why))
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as problem:
            log.error("acknowledgement_not_kept", payment_id=payment_id, error=type(problem).__name__)
            return await self._write_unknown(row, OutcomeUnknown("M-Pesa's acknowledgement has no usable ids"))
        if taken is not None:
            await self._moves.step(payment_id, now, "sent", Cause.ACK, "0", "")
        # A callback that came without a token, before we knew its CheckoutRequestID, has been waiting for this.
        await self._gateway.services.get(Callbacks).apply_waiting(ack.checkout_request_id)
        await self._gateway.services.get(Credentials).accepted(credentials)
        return await self._require(merchant_id, row["env"], payment_id)

    async def _write_unknown(self, row: Row, fault: OutcomeUnknown) -> Row:
        payment_id, now = row["payment_id"], self._gateway.clock.now()
        await self._settle_key(row)
        if await self._db.fetchrow(tables.OUTCOME_UNKNOWN, payment_id, now) is not None:
            await self._moves.step(payment_id, now, "unknown", Cause.FAULT, fault.code, fault.meaning)
            log.warning("charge_outcome_unknown", payment_id=payment_id, fault=fault.meaning)
        return await self._require(row["merchant_id"], row["env"], payment_id)

    async def _write_unsent(self, row: Row, fault: NotSent) -> Row:
        """Nothing was sent: the same key may try again, unless something says that there was a prompt after all."""
        payment_id, merchant_id, now = row["payment_id"], row["merchant_id"], self._gateway.clock.now()
        key, attempt = row["idempotency_key"], row["push_attempt"]
        await idempotency.lock(self._db, merchant_id=merchant_id, env=row["env"], key=key)
        due = now + timedelta(seconds=self._settings.unsent_after)
        if await self._db.fetchrow(tables.RELEASE_PUSH, payment_id, attempt, now, due) is not None:
            await self._moves.step(payment_id, now, "unsent", Cause.FAULT, fault.code, fault.meaning)
            await idempotency.release(self._db, merchant_id=merchant_id, env=row["env"], key=key)
        found = await self._require(merchant_id, row["env"], payment_id)
        is_under_way = found["charge"] in {Charge.READY.value, Charge.SENDING.value}
        if found["push_attempt"] == attempt and is_under_way:
            return await self._write_unknown(row, OutcomeUnknown(fault.meaning, code=fault.code))
        return found

    async def _write_refusal(self, row: Row, fault: Rejected) -> Row:
        await self._settle_key(row)
        await self._moves.fail(
            row["payment_id"],
            code=fault.code or "refused",
            text=fault.meaning,
            reason=fault.failure_reason,
            cause=Cause.FAULT,
            step="refused",
            is_final=True,
        )
        return await self._require(row["merchant_id"], row["env"], row["payment_id"])

    async def _settle_key(self, row: Row) -> None:
        await idempotency.settle(self._db, merchant_id=row["merchant_id"], env=row["env"], key=row["idempotency_key"])

    # -- what ends a payment --------------------------------------------------------------------------------------

    async def take_result(self, result: StkResulted) -> None:
        """A callback, inside the transaction that keeps it: the payment moves, or nothing does.

        A callback for a payment that we do not know (yet) is left waiting. So is one without a token whose handle both
        a sandbox and a live payment have.
        """
        if result.subject_id:
            row = await self._db.fetchrow(tables.LOCK, result.subject_id)
        else:
            rows = await self._db.fetch(tables.LOCK_BY_CHECKOUT, result.checkout_request_id)
            row = rows[0] if len(rows) == 1 else None
        if row is None:
            log.warning("callback_without_payment", callback_id=result.callback_id)
            return
        if result.merchant_id and (row["merchant_id"], row["env"]) != (result.merchant_id, result.env):
            raise AnotherSubject("this callback is about a payment of another merchant or env")
        evidence = read_callback(result)
        known, told = row["checkout_request_id"], result.checkout_request_id
        outcome = stk_outcome(result.result_code, result.result_desc)
        structlog.contextvars.bind_contextvars(payment_id=row["payment_id"])
        if not speaks_of(evidence, payment_of(row)):
            await self._take_other_push(row, evidence, result, outcome)
            return
        if told and not known:
            await self._learn_checkout(row["payment_id"], result)
        is_applied = True
        if outcome.is_paid and told and told != known and row["status"] == Status.FAILED.value:
            # Who was asked has been erased, and now somebody says that they paid: by this name M-Pesa can be asked.
            await self._db.execute(tables.RELEARN_CHECKOUT, row["payment_id"], told)
        if outcome.is_paid:
            is_applied = await self._take_callback(row, evidence, result)
        elif evidence.proof is Proof.NONE:
            # Nothing proves who says so. M-Pesa is asked at once.
            await self._db.execute(tables.ASK_NOW, row["payment_id"], self._gateway.clock.now())
        elif payment_of(row).is_open and has_receipt_of_unknown(result, outcome):
            # The code says nothing that we know, and the receipt that money moved: a person decides.
            held = told_of(evidence, code=result.result_code, text=result.result_desc)
            await self._moves.take(row, Mismatch(row["payment_id"], "unconfirmed"), held, Cause.CALLBACK)
        elif not outcome.is_pending:
            await self._moves.fail(
                row["payment_id"],
                code=result.result_code,
                text=result.result_desc,
                reason=outcome.failure_reason,
                cause=Cause.CALLBACK,
                is_final=outcome.is_final,
            )
        if is_applied:
            await self._gateway.services.get(Callbacks).mark_applied(result.callback_id)

    async def _take_other_push(self, row: Row, evidence: Evidence, result: StkResulted, outcome: Outcome) -> None:
        """A callback that names another push than the one we know. Raises AnotherSubject for one that is not ours.

        Money reported at a payment's own address is never refused. It completes the payment where amount, receipt and
        payer fit, and is held for a person otherwise.
        """
        is_own = bool(result.subject_id) and not await self._db.fetchval(
            tables.IS_CHECKOUT_OF_ANOTHER, result.checkout_request_id, row["env"], row["payment_id"]
        )
        if not outcome.is_paid or not is_own:
            raise AnotherSubject("this callback is about another payment than its address")
        log.error("paid_callback_of_another_push", payment_id=row["payment_id"])
        verdict = judge_other_push(evidence, payment_of(row), self._rules)
        told = told_of(evidence, code=result.result_code, text=result.result_desc)
        await self._moves.take(row, verdict, told, Cause.CALLBACK)
        await self._gateway.services.get(Callbacks).mark_applied(result.callback_id)

    async def take_results(self, results: Sequence[StkResulted]) -> None:
        """The same for several callbacks of one transaction; the odd ones among them are put aside."""
        await self._endings.take(results)

    async def _learn_checkout(self, payment_id: str, result: StkResulted) -> None:
        """The ack was lost, and the callback's token says whose it is: keep Daraja's ids, so that it can be asked."""
        try:
            async with self._db.savepoint():
                await self._db.execute(
                    tables.LEARN_CHECKOUT, payment_id, result.merchant_request_id, result.checkout_request_id
                )
        except asyncpg.UniqueViolationError:
            raise AnotherSubject("this callback is about another payment than its address") from None

    async def _take_callback(self, row: Row, evidence: Evidence, result: StkResulted) -> bool:
        """Take a callback that says that the payer paid.

        Returns False when it has to wait, because what another callback says is being confirmed.
        """
        told = told_of(evidence, code=result.result_code, text=result.result_desc)
        verdict = judge(evidence, (payment_of(row),), rules=self._rules)
        if isinstance(verdict, Confirm):
            return await self._moves.claim(row, told, timedelta(seconds=self._settings.confirm_within))
        await self._moves.take(row, verdict, told, Cause.CALLBACK)
        return True

    # -- asking Daraja --------------------------------------------------------------------------------------------

    async def wake_due(self) -> int:
        """Wake one job for each shortcode with payments that are due; gives their count."""
        rows = await self._db.fetch(tables.DUE_SHORTCODES, self._gateway.clock.now())
        for row in rows:
            shortcode_id = row["shortcode_id"]
            await self._gateway.jobs.enqueue("payments.ask", once=shortcode_id, shortcode_id=shortcode_id)
        return len(rows)

    async def end_due(self) -> int:
        """End the payments whose time is up; gives their count. Asks nothing, and does not depend on Daraja."""
        return await self._unacknowledged.close_due() + await self._expiry.end_due()

    async def ask_due(self, shortcode_id: str) -> int:
        """Ask Daraja about a shortcode's due payments, ``asks_at_once`` side by side; gives how many were asked about.

        What is left after a while, or after a question without an answer, stays due for the next job. Raises what was
        raised for one of the payments, after the others.
        """
        self._db.refuse_transaction("asking M-Pesa about payments")
        count = 0
        failed: list[BaseException] = []
        with self._places.take(shortcode_id) as has_place:
            until = time.monotonic() + _ASK_FOR
            while has_place and time.monotonic() < until:
                now = self._gateway.clock.now()
                rows = await self._db.fetch(
                    tables.CLAIM_DUE_OF, shortcode_id, now, now + _ASKING, self._settings.asks_at_once
                )
                asked = await asyncio.gather(*(self._ask_claimed(row, now) for row in rows), return_exceptions=True)
                failed += [one for one in asked if one is not None]
                count += len(rows)
                rests = self._places.is_silent(shortcode_id) or shortcode_id in self._resting
                if rests or len(rows) < self._settings.asks_at_once:
                    break
        if failed:
            raise failed[0]
        return count

    async def ask(self, payment_id: str, *, is_forced: bool = False) -> bool:
        """Ask Daraja how a pending payment stands, or expire it once its time is up.

        False when it is not due, has ended, or another worker is asking.
        """
        self._db.refuse_transaction("asking M-Pesa about a payment")
        now = self._gateway.clock.now()
        row = await self._db.fetchrow(tables.CLAIM_DUE, payment_id, now, now + _ASKING, is_forced)
        if row is None:
            return False
        await self._ask_claimed(row, now)
        return True

    async def _ask_claimed(self, row: Row, now: datetime) -> None:
        """Ask about a payment that is this worker's own for ``_ASKING``."""
        payment_id = row["payment_id"]
        structlog.contextvars.bind_contextvars(payment_id=payment_id)
        self._gateway.tracer.concerns(payment_id)
        if row["checkout_request_id"] is None:
            await self._unacknowledged.close(payment_id, now)
            return
        try:
            outcome, again_at = await self._ask_daraja(row)
        except asyncio.CancelledError:
            # We are told to stop: who takes the job over asks at once.
            await self._db.execute(tables.ASK_AGAIN, payment_id, now)
            raise
        async with self._db.transaction():
            # Meanwhile a callback may have come, or have left something to confirm.
            locked = await self._db.fetchrow(tables.LOCK, payment_id)
            if locked is not None and again_at is not None and now < locked["expires_at"]:
                await self._db.execute(tables.ASK_AGAIN, payment_id, again_at)
            elif locked is not None:
                await self._take_answer(locked, outcome, now)

    async def _take_answer(self, row: Row, outcome: Outcome | None, now: datetime) -> None:
        """What Daraja answered, or that it did not, about a locked payment."""
        payment_id = row["payment_id"]
        claim = None if row["claim"] is None else loads(row["claim"], Told)
        is_expired = row["status"] == Status.FAILED.value and row["failure_reason"] == "expired"
        if outcome is not None and outcome.is_paid:
            await self._take_paid(row, outcome, claim)
        elif outcome is not None and not outcome.is_pending:
            if claim is not None:
                await self._moves.drop_claim(payment_id, refuted=True, text=f"M-Pesa says: {outcome.meaning}")
            await self._moves.fail(
                payment_id,
                code=outcome.code,
                text=outcome.meaning,
                reason=outcome.failure_reason,
                cause=Cause.STK_QUERY,
            )
            if is_expired:
                # M-Pesa has said how it ended. Its merchant knows that it failed.
                await self._db.execute(tables.ASK_AGAIN, payment_id, None)
        elif now < row["expires_at"]:
            await self._db.execute(tables.ASK_AGAIN, payment_id, self._next_ask(row, now))
        elif row["status"] == Status.PENDING.value or claim is not None:
            await self._expiry.end(row)
        elif is_expired:
            await self._db.execute(tables.ASK_AGAIN, payment_id, self._expiry.next_ask(row, now))

    async def _take_paid(self, row: Row, outcome: Outcome, claim: Told | None) -> None:
        """M-Pesa answered our STK query with 0: the push was paid, and what a callback claimed of it is confirmed."""
        handle = Handle(row["payment_id"], row["checkout_request_id"])
        if claim is None or not claim.is_proven:
            told, cause = Told(code=outcome.code, text=outcome.meaning), Cause.STK_QUERY
            evidence = Evidence(source=Source.STK_QUERY, proof=Proof.ANSWER, handle=handle)
        else:
            told, cause = claim, Cause.CALLBACK
            evidence = Evidence(
                source=Source.STK_CALLBACK,
                proof=Proof.CONFIRMED,
                handle=handle,
                receipt=claim.receipt,
                amount=read_amount(claim.amount, claim.amount_text),
                payer=claim.phone,
            )
        if claim is not None:
            await self._moves.drop_claim(row["payment_id"], refuted=False)
        await self._moves.take(row, judge(evidence, (payment_of(row),), rules=self._rules), told, cause)

    async def _ask_daraja(self, row: Row) -> tuple[Outcome | None, datetime | None]:
        """Daraja's answer, None when there was none; and when to ask again where it could not even be asked."""
        shortcode_id, now = row["shortcode_id"], self._gateway.clock.now()
        rests_until = self._resting.get(shortcode_id)
        if rests_until is not None and rests_until > now:
            return None, rests_until
        self._resting.pop(shortcode_id, None)
        try:
            credentials = await self._gateway.services.get(Credentials).of_shortcode(shortcode_id)
            question = StkQuery(row["checkout_request_id"])
            answer = await self._gateway.daraja.ask(STK_QUERY, credentials.daraja, question)
        except NotSent as fault:
            self._places.note(shortcode_id, answered=fault.code is not None)
            again_at = self._rest(shortcode_id, fault)
            log.info("stk_query_not_sent", payment_id=row["payment_id"], fault=fault.meaning)
            return None, again_at
        except (OutcomeUnknown, Rejected) as fault:
            self._places.note(shortcode_id, answered=fault.code is not None)
            log.info("stk_query_unanswered", payment_id=row["payment_id"], fault=fault.meaning)
            return None, None
        except ProviderNotConfigured:
            log.warning("stk_query_without_credentials", payment_id=row["payment_id"])
            return None, None
        self._places.note(shortcode_id, answered=True)
        handle = Handle(row["payment_id"], answer.checkout_request_id)
        named = Evidence(source=Source.STK_QUERY, proof=Proof.ANSWER, handle=handle)
        # A success has to name the push: what is absent proves no payment.
        is_named = bool(answer.checkout_request_id) or not answer.outcome.is_paid
        told, known = answer.merchant_request_id, row["merchant_request_id"]
        is_other = told is not None and known is not None and not may_be_handle(told, known)
        if is_named and not is_other and speaks_of(named, payment_of(row)):
            return answer.outcome, None
        log.error("stk_query_about_another_push", payment_id=row["payment_id"])
        return None, None

    def _rest(self, shortcode_id: str, fault: NotSent) -> datetime:
        """Ask nothing about this shortcode until the returned time: Daraja's spike arrest counts every call."""
        again_at = self._gateway.clock.now() + timedelta(seconds=fault.retry_after or _REST)
        self._resting[shortcode_id] = again_at
        return again_at

    def _next_ask(self, row: Row, now: datetime) -> datetime:
        """When to ask again: counted from the push, the last pause repeating, and once more before the end."""
        schedule = self._settings.ask_after
        expires_at: datetime = row["expires_at"]
        # A push that was made later than the payment, because nothing had been sent at first, has its time from then.
        pushed_at = max(row["created_at"], expires_at - timedelta(seconds=self._settings.expire_after))
        age = (now - pushed_at).total_seconds()
        later = next((pause for pause in schedule if pause > age), None)
        at = pushed_at + timedelta(seconds=later) if later is not None else now + timedelta(seconds=schedule[-1])
        # The last question comes before the end, so that its answer does; after it the payment only expires.
        last: datetime = expires_at - min(_LAST_ASK, (expires_at - pushed_at) / 10)
        if last <= now:
            return expires_at + _ASKING
        return min(at, max(last, now + timedelta(seconds=1)))

    async def ask_now(self, merchant_id: str, env: Env, payment_id: str) -> PaymentWithTimeline:
        """Ask Daraja at once. Raises NotFound, ProviderNotConfigured, and NotAsked without anything to ask about."""
        self._db.refuse_transaction("asking M-Pesa about a payment")
        row = await self._require(merchant_id, env, payment_id)
        await self._gateway.services.get(Credentials).of_shortcode(row["shortcode_id"])
        is_open = row["status"] == Status.PENDING.value or row["failure_reason"] == "expired"
        if not is_open or row["checkout_request_id"] is None:
            raise NotAsked("only a pending or expired payment that M-Pesa has acknowledged can be asked about")
        await self.ask(payment_id, is_forced=True)
        return await self.get(merchant_id, env, payment_id)

    # -- reading --------------------------------------------------------------------------------------------------

    async def get(self, merchant_id: str, env: Env, payment_id: str) -> PaymentWithTimeline:
        """See the port."""
        row = await self._require(merchant_id, env, payment_id)
        steps = await self._db.fetch(tables.TIMELINE, payment_id)
        timeline = [TimelineEntry(**dict(step)) for step in steps]
        return PaymentWithTimeline(**msgspec.structs.asdict(view(row)), timeline=timeline)

    def url_of(self, payment_id: str) -> str:
        """Where a payment is found."""
        return self._gateway.url(f"/v1/payments/{payment_id}")

    async def find(self, payment_id: str) -> PaymentView | None:
        """See the port."""
        row = await self._db.fetchrow(tables.FIND_ANY, payment_id)
        return None if row is None else view(row)

    async def page(self, merchant_id: str, env: Env, filters: PaymentQuery) -> Page[PaymentView]:
        """One page of the merchant's payments of ``env``; raises Invalid for filters that cannot be read."""
        return await list_payments(self._reads, merchant_id, env, filters, view)

    def export(self, merchant_id: str, env: Env, filters: PaymentFilters) -> AsyncGenerator[list[Sequence[Any]]]:
        """All of the merchant's payments of ``env`` that pass the filters, in pages; raises Invalid."""
        return export_payments(self._reads, merchant_id, env, filters, exported)

    async def _require(self, merchant_id: str, env: Env, payment_id: str) -> Row:
        row = await self._db.fetchrow(tables.FIND, merchant_id, env, payment_id)
        if row is None:
            raise NotFound("there is no such payment")
        return row


def own_reference(payment_id: str) -> str:
    """The AccountReference of a payment whose merchant gave none: 12 characters, as good as unique, from its id.

    Daraja's push takes no id of ours, but Pull statements carry this (``billreference``): it finds the payment again.
    """
    digest = hashlib.sha256(payment_id.encode()).digest()
    return base64.b32encode(digest)[:12].decode()


def _canonical(request: PaymentRequest) -> dict[str, Any]:
    """What two requests must agree in to be the same."""
    return {
        "amount": int(request.amount),
        "phone": str(request.phone),
        "reference": request.reference,
        "description": request.description,
        "callback_url": request.callback_url,
        "metadata": dict(request.metadata or {}),
    }
