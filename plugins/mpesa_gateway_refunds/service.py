"""Sends money back: sets it aside, commits, asks M-Pesa to reverse, and follows each reversal to its one end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import structlog

from mpesa_gateway.daraja.client import Ack, DarajaFault, NotSent, OutcomeUnknown, Rejected
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import OVERBURDENED, UNREACHABLE, Row
from mpesa_gateway.db.idempotency import KeyMismatch, KeyRequired
from mpesa_gateway.errors import Conflict, NotFound, ProviderNotConfigured, Refused
from mpesa_gateway.http.confirmation import require_confirmed
from mpesa_gateway.http.csv import keyset_pages
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import decode_position, page_of
from mpesa_gateway.http.provider import refusal_of
from mpesa_gateway.money import Kes
from mpesa_gateway.places import Places
from mpesa_gateway.security.scopes import Caller, Env
from mpesa_gateway_callbacks.api import AnotherSubject, Callbacks
from mpesa_gateway_callbacks.events import QueryResulted
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_payments.api import (
    TRANSACTION_STATUS,
    Direction,
    RefundablePayments,
    TransactionStatus,
    read_direction,
    transaction_state,
)
from mpesa_gateway_payments.events import StatusResulted
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.errors import RefundEnded
from mpesa_gateway_refunds.events import RefundFailed, ReversalResulted
from mpesa_gateway_refunds.operations import REVERSAL, ReversalRequest
from mpesa_gateway_refunds.result_codes import ReversalOutcome, reversal_outcome
from mpesa_gateway_refunds.schemas import CreateRefund, RefundFilters, RefundQuery, RefundView, Resolution, read_amount
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.views import exported, view

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

_OPERATION = "refunds.request"
_DONE = ReversalOutcome("reversed", "the money went back to the payer", "")

_ABOUT_REVERSAL, _ABOUT_PAYMENT = "rfd", "rfp"
"""What a question of ours is about, in the address that its answer comes to: a refund's reversal, or its payment."""

_ASKING = timedelta(seconds=60)
"""For how long one worker has a refund to itself while it asks M-Pesa."""

_WOKEN_EACH = 20
"""Refunds of one merchant that one sweep hands over."""

_ASKED_EACH = 2
"""Refunds of one merchant that one worker asks about at the same time."""

_NEVER_SAID = "M-Pesa has not said what became of the reversal: look on its portal"
_NO_RECEIPT = "M-Pesa says that it is done, and does not name the transaction: look on its portal"
_CAME_IN = "M-Pesa says that it is done, and names money that came in: look on its portal"
_UNKNOWN_RESULT = "M-Pesa ended the reversal with a result that proves nothing about the money: look on its portal:"
_NOT_HOW_MUCH = "M-Pesa says that this payment was reversed before, and not how much of it: look on its portal"


_TRIES = 5
"""Attempts to make a refund while other requests make or end refunds of the same payment."""

_MARK_WITHIN = 5.0
"""Seconds that committing the mark before a reversal may take; nothing is sent without it."""


class _WholeMeanwhile(Exception):
    """Another request has made the refund of all that is left, since we looked for one."""


class _KeyOfOld(Exception):
    """A refund has this Idempotency-Key, and what we had noted about the key has been let go since."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row


class RefundService:
    """The use cases of refunds. A reversal is sent once: what became of it is asked, never repeated."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._db = gateway.db
        self._reads = gateway.reads
        self._settings = gateway.settings(RefundsSettings)
        self._places = Places(max(1, gateway.config.worker.daraja // 2), each=_ASKED_EACH)

    # -- asking for one -------------------------------------------------------------------------------------------

    async def request(self, caller: Caller, body: CreateRefund, key: str | None) -> tuple[RefundView, bool]:
        """Ask M-Pesa to send money back; gives the refund, and whether an earlier request made it.

        Without ``amount`` the call is idempotent by itself: a refund of the whole rest that is pending or completed is
        the answer. With ``amount`` it needs a key. Raises KeyRequired, NotFound, Conflict where the payment does not
        allow it, KeyMismatch, KeyInProgress, ProviderNotConfigured, ProviderRejected, ProviderUnavailable when nothing
        was sent, and CalledInTransaction inside a transaction of the caller.
        """
        self._db.refuse_transaction("asking for a refund")
        self._gateway.outcomes.require_room()
        amount = read_amount(body.amount)
        if amount is not None and key is None:
            raise KeyRequired(
                "send an Idempotency-Key header with `amount`: without it a repeated request would refund twice. "
                "Leave `amount` out to refund all that is left"
            )
        try:
            row, credentials = await self._claim(caller, body, key)
        except _KeyOfOld as found:
            return view(_same(found.row, body)), True
        if credentials is not None:
            # A caller that hangs up must not tear the reversal from its record.
            row = await self._gateway.see_through(self._reverse(row, credentials, key))
        return view(row), credentials is None

    async def _claim(self, caller: Caller, body: CreateRefund, key: str | None) -> tuple[Row, MpesaCredentials | None]:
        """The refund of this request with its money set aside, and its payment's credentials; None for a replay."""
        for _ in range(_TRIES):
            try:
                async with self._db.transaction():
                    return await self._claim_now(caller, body, key)
            except _WholeMeanwhile:
                # Another request made the refund of the whole rest: the next look finds it.
                continue
        raise Conflict("this payment's refunds change at this moment: try again")

    async def _claim_now(
        self, caller: Caller, body: CreateRefund, key: str | None
    ) -> tuple[Row, MpesaCredentials | None]:
        now, refund_id = self._gateway.clock.now(), self._gateway.ids.new("rfd")
        amount = read_amount(body.amount)
        # A key stands for what it was claimed for: where a refund of the whole rest exists, for that.
        of_payment, is_again = (caller.merchant_id, caller.env, body.payment_id), False
        found = None if amount is not None else await self._db.fetchval(tables.FIND_WHOLE, *of_payment)
        subject_id: str = found or refund_id
        if key is not None:
            claim = await idempotency.claim(
                self._db,
                merchant_id=caller.merchant_id,
                env=caller.env,
                key=key,
                operation="refund",
                fingerprint=idempotency.fingerprint(
                    _OPERATION,
                    {
                        "payment_id": body.payment_id,
                        "amount": None if amount is None else int(amount),
                        "reason": body.reason,
                    },
                ),
                subject_id=subject_id,
                now=now,
                lease=timedelta(seconds=self._settings.hold),
            )
            if not claim.is_ours:
                return await self._require(caller.merchant_id, caller.env, claim.subject_id), None
            if claim.subject_id == subject_id:
                await self._refuse_old(caller.merchant_id, caller.env, key)
            else:
                # A result locks its refund and then the payment: whoever comes from here goes the same way.
                refund_id, is_again = claim.subject_id, True
                await self._db.fetchrow(tables.LOCK, refund_id)
        whole = None if amount is not None else await self._db.fetchrow(tables.LOCK_WHOLE, *of_payment)
        if whole is None and not is_again and subject_id != refund_id:
            # It has failed since we looked for it.
            raise _WholeMeanwhile
        if whole is not None:
            if key is not None and is_again:
                # The key's own refund was never sent: it stays free to be sent should this one fail.
                await idempotency.release(self._db, merchant_id=caller.merchant_id, env=caller.env, key=key)
            elif key is not None and subject_id != whole["refund_id"]:
                raise _WholeMeanwhile
            elif key is not None:
                await idempotency.settle(self._db, merchant_id=caller.merchant_id, env=caller.env, key=key)
            return whole, None
        return await self._insert(caller, body, key, refund_id)

    async def _insert(
        self, caller: Caller, body: CreateRefund, key: str | None, refund_id: str
    ) -> tuple[Row, MpesaCredentials]:
        """Set the money aside and write the refund. Raises _WholeMeanwhile where one of the whole rest came first."""
        now, amount = self._gateway.clock.now(), read_amount(body.amount)
        payments = self._gateway.services.get(RefundablePayments)
        try:
            async with self._db.savepoint():
                refundable = await payments.reserve(caller.merchant_id, caller.env, body.payment_id, amount, refund_id)
        except Conflict:
            if amount is None and await self._db.fetchval(tables.HAS_WHOLE, body.payment_id):
                raise _WholeMeanwhile from None
            raise
        # The payment is locked from here on, so no other refund of it is made.
        has_whole = bool(await self._db.fetchval(tables.HAS_WHOLE, body.payment_id))
        if has_whole and amount is None:
            raise _WholeMeanwhile
        credentials = await self._gateway.services.get(Credentials).of_shortcode(refundable.shortcode_id)
        credentials.initiator_for("a refund")
        row = await self._db.fetchrow(
            tables.INSERT,
            refund_id,
            caller.merchant_id,
            body.payment_id,
            refundable.env,
            int(refundable.amount),
            int(refundable.payment_amount),
            refundable.receipt,
            body.reason or "",
            key,
            now + timedelta(seconds=self._settings.hold),
            now,
            refundable.shortcode,
            refundable.shortcode_id,
            not has_whole and refundable.left == 0,
        )
        if row is None:
            raise Conflict("this refund is under way: look at it before asking again")
        await self._gateway.audit.record(
            "refund.requested",
            merchant_id=caller.merchant_id,
            actor=caller.actor,
            subject_id=refund_id,
            env=caller.env,
            detail={"payment_id": body.payment_id, "amount": refundable.amount.wire},
        )
        return row, credentials

    async def _refuse_old(self, merchant_id: str, env: Env, key: str) -> None:
        """Raises _KeyOfOld for the key of an old refund: it never makes a second one."""
        row = await self._db.fetchrow(tables.FIND_BY_KEY, merchant_id, env, key)
        if row is not None:
            raise _KeyOfOld(row)

    async def _reverse(self, row: Row, credentials: MpesaCredentials, key: str | None) -> Row:
        """Send the one reversal of a refund and record what came of it."""
        refund_id = row["refund_id"]
        structlog.contextvars.bind_contextvars(payment_id=row["payment_id"])
        self._gateway.tracer.begins(refund_id)
        try:
            await self._gateway.daraja.prepare(credentials.daraja)
            if not await self._mark_sending(row):
                # It was given up meanwhile, because this request took longer than its lease.
                return await self._require(row["merchant_id"], row["env"], refund_id)
            reversal = ReversalRequest(
                initiator=credentials.initiator_for("a refund"),
                receipt=row["receipt"],
                amount=Kes(row["amount"]),
                result_url=credentials.result_url or self._address("reversal", credentials, refund_id),
                timeout_url=credentials.timeout_url or self._address("reversal-timeout", credentials, refund_id),
                remarks=row["reason"] or f"Refund {refund_id[-12:]}",
            )
            ack = await self._gateway.daraja.ask(REVERSAL, credentials.daraja, reversal)
        except OutcomeUnknown as fault:
            return await self._record("unknown", row, partial(self._write_unknown, row, key, fault))
        except (NotSent, Rejected) as fault:
            await self._record("refusal", row, partial(self._write_refusal, row, key, fault))
            raise refusal_of(fault) from None
        known = {
            "originator_conversation_id": ack.originator_conversation_id,
            "conversation_id": ack.conversation_id,
        }
        return await self._record("ack", row, partial(self._write_ack, row, key, ack), known)

    async def _mark_sending(self, row: Row) -> bool:
        """Commit that the reversal is about to be sent; False where it must not be. Raises NotSent without Postgres."""
        try:
            async with asyncio.timeout(_MARK_WITHIN):
                marked = await self._db.fetchval(tables.SENDING, row["refund_id"], row["attempt"])
        except (*UNREACHABLE, *OVERBURDENED) as problem:
            log.warning("reversal_not_marked", refund_id=row["refund_id"], error=type(problem).__name__)
            raise NotSent("the gateway cannot write to its database at the moment", retry_after=5) from None
        return marked is not None

    def _address(self, kind: str, credentials: MpesaCredentials, refund_id: str) -> str:
        return self._gateway.services.get(Callbacks).url_for(
            kind, env=credentials.env, merchant_id=credentials.merchant_id, subject_id=refund_id
        )

    async def _record(
        self, what: str, row: Row, write: Callable[[], Awaitable[None]], known: Mapping[str, Any] | None = None
    ) -> Row:
        """Write an outcome of the reversal; gives the refund, with what is ``known`` where it is written later."""

        async def written() -> Row:
            await write()
            return await self._require(row["merchant_id"], row["env"], row["refund_id"])

        found = await self._gateway.outcomes.record(f"reversal {what}", row["refund_id"], written)
        # A view reads either in the same way.
        return found if found is not None else cast("Row", dict(row) | dict(known or {}))

    async def _write_ack(self, row: Row, key: str | None, ack: Ack) -> None:
        now = self._gateway.clock.now()
        await self._settle_key(row, key)
        due = now + timedelta(seconds=self._settings.ask_after[0])
        originator, conversation = ack.originator_conversation_id, ack.conversation_id
        await self._db.execute(tables.ACCEPTED, row["refund_id"], originator, conversation, now, due)
        callbacks = self._gateway.services.get(Callbacks)
        for handle in sorted({originator, conversation}):
            await callbacks.apply_waiting(handle)

    async def _write_unknown(self, row: Row, key: str | None, fault: OutcomeUnknown) -> None:
        now = self._gateway.clock.now()
        await self._settle_key(row, key)
        due = now + timedelta(seconds=self._settings.ask_after[0])
        await self._db.execute(tables.UNKNOWN, row["refund_id"], fault.meaning, now, due)
        log.warning("reversal_outcome_unknown", refund_id=row["refund_id"], fault=fault.meaning)

    async def _write_refusal(self, row: Row, key: str | None, fault: DarajaFault) -> None:
        """Nothing was done: the money is free again. What was never sent may be asked for again with the same key."""
        if key is not None:
            await idempotency.lock(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)
        found = await self._db.fetchrow(tables.LOCK, row["refund_id"])
        if found is None or found["attempt"] != row["attempt"] or found["status"] != "pending":
            # This has been written before, or M-Pesa's result was quicker.
            await self._settle_key_of(found, row, key)
            return
        if isinstance(fault, NotSent):
            outcome = ReversalOutcome("other", fault.meaning, "ask for it again")
            await self._fail(row, outcome, code="unsent", text=fault.meaning, reversal="unsent")
            if key is not None:
                await idempotency.release(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)
        else:
            outcome = ReversalOutcome("rejected_by_provider", fault.meaning, fault.mitigation)
            await self._fail(row, outcome, code=fault.code or "refused", text=fault.meaning, reversal="refused")
            await self._settle_key(row, key)

    async def _settle_key_of(self, found: Row | None, row: Row, key: str | None) -> None:
        """Settle the key unless a later attempt has it, or it was released for one."""
        if found is not None and found["attempt"] == row["attempt"] and found["reversal"] != "unsent":
            await self._settle_key(row, key)

    async def _settle_key(self, row: Row, key: str | None) -> None:
        if key is not None:
            await idempotency.settle(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)

    async def _close_unsent(self, row: Row) -> None:
        """The process that was to send the reversal ended before the call: nothing was sent, and the money is free."""
        key = row["idempotency_key"]
        async with self._db.transaction():
            if key is not None:
                await idempotency.close(self._db, merchant_id=row["merchant_id"], env=row["env"], key=key)
            found = await self._db.fetchrow(tables.LOCK, row["refund_id"])
            if found is None or found["reversal"] != "ready" or found["attempt"] != row["attempt"]:
                return
            outcome = ReversalOutcome("other", "the reversal was never sent", "ask for it again")
            await self._fail(found, outcome, code="unsent", text=outcome.meaning, reversal="refused")

    # -- what ends one --------------------------------------------------------------------------------------------

    async def take_result(self, result: ReversalResulted) -> None:
        """How a reversal ended, inside the transaction that keeps the callback. One not known yet is left waiting."""
        row = await self._find(result)
        if row is None:
            return
        if result.receipt is not None and result.receipt != row["receipt"]:
            raise AnotherSubject("this result is about another payment's reversal")
        if result.timed_out:
            await self._db.execute(tables.ASK_NOW, row["refund_id"], self._gateway.clock.now())
        elif result.is_final and not await self._end(row, result):
            # Its money is promised to another refund: offered again until that one has ended.
            return
        await self._gateway.services.get(Callbacks).mark_applied(result.callback_id)

    async def _end(self, row: Row, result: ReversalResulted) -> bool:
        """What M-Pesa says is done. False when it cannot be taken yet."""
        outcome = reversal_outcome(result.result_code, result.result_desc)
        code, text = result.result_code, result.result_desc
        if outcome.word == "reversed":
            if result.amount_text is not None and result.amount != row["amount"]:
                await self._needs_attention(row, f"M-Pesa reports KES {result.amount_text} as sent back")
                return True
            if result.receipt is None:
                # The result of a payout or a balance query has no OriginalTransactionID.
                await self._needs_attention(row, _NO_RECEIPT)
                return True
            return await self._complete(row, outcome, code, text, result.reversal_receipt)
        if row["status"] == "completed":
            if outcome.word != "already_reversed":
                await self._needs_attention(row, f"M-Pesa said later that this refund failed: {code} {text}")
        elif not outcome.is_known and row["status"] == "pending":
            # An unknown code does not prove that no money went back: its amount stays reserved.
            await self._needs_attention(row, f"{_UNKNOWN_RESULT} {code} {text}".rstrip())
        elif outcome.word != "already_reversed":
            await self._fail(row, outcome, code=code, text=text)
        elif await self._says_how_much(row):
            await self._db.execute(tables.VERIFY, row["refund_id"], code, text, self._gateway.clock.now())
        else:
            await self._needs_attention(row, _NOT_HOW_MUCH)
        return True

    async def _says_how_much(self, row: Row) -> bool:
        """Whether a payment that is reversed can only be so by the whole of this refund.

        M-Pesa says that a payment was reversed, and not of which part it speaks.
        """
        return row["amount"] == row["payment_amount"] and not await self._db.fetchval(
            tables.MAY_HAVE_GONE_BACK_IN_PART, row["payment_id"], row["refund_id"]
        )

    async def take_status(self, result: StatusResulted) -> None:
        """The answer to a question of ours about a reversal, inside the transaction that keeps the callback."""
        prefix, _, name = result.subject_id.partition("_")
        if prefix not in {_ABOUT_REVERSAL, _ABOUT_PAYMENT}:
            return
        row = await self._db.fetchrow(tables.LOCK, f"{_ABOUT_REVERSAL}_{name}")
        if row is None:
            return
        if result.is_final and not result.timed_out and row["status"] == "pending" and result.result_code == "0":
            # What was asked decides what the answer is about, unless it names the payment's own receipt.
            if prefix == _ABOUT_PAYMENT or result.receipt == row["receipt"]:
                await self._take_answer_about_payment(row, result)
            else:
                await self._take_answer_about_reversal(row, result)
        await self._gateway.services.get(Callbacks).mark_applied(result.callback_id)

    async def _take_answer_about_payment(self, row: Row, result: StatusResulted) -> None:
        """How the payment stands that a reversal was asked for: ``Reversed`` is proof, and after R000001 all is."""
        state = transaction_state(result.transaction_status)
        if result.receipt not in {None, row["receipt"]} or state == "pending":
            return
        is_verifying = row["reversal"] == "verifying"
        if state == "partially_reversed":
            # Of which refund the part is, M-Pesa does not say.
            if is_verifying:
                await self._needs_attention(row, _NOT_HOW_MUCH)
            return
        if not is_verifying and state != "reversed":
            return
        if result.receipt is None:
            # It need not be about this payment.
            await self._needs_attention(row, _NO_RECEIPT)
            return
        is_other_amount = result.amount_text is not None and result.amount != row["payment_amount"]
        if is_other_amount or (is_verifying and state == "failed"):
            of = "" if result.amount_text is None else f" of KES {result.amount_text}"
            said = f"M-Pesa says {'both already reversed and ' if is_verifying else ''}{result.transaction_status}{of}"
            await self._needs_attention(row, said)
        elif not await self._says_how_much(row):
            await self._needs_attention(row, _NOT_HOW_MUCH)
        elif is_verifying:
            await self._complete(row, reversal_outcome("R000001"), row["result_code"], row["result_desc"], None)
        else:
            await self._complete(row, _DONE, result.result_code, result.result_desc, None)

    async def _take_answer_about_reversal(self, row: Row, result: StatusResulted) -> None:
        """How the reversal itself stands, by the conversation that its ack named."""
        state = transaction_state(result.transaction_status)
        if state == "failed":
            outcome = ReversalOutcome("other", f"M-Pesa reports {result.transaction_status}", "ask for it again")
            await self._fail(row, outcome, code=result.result_code, text=outcome.meaning)
        elif state == "completed" and result.amount_text is not None and result.amount != row["amount"]:
            await self._needs_attention(row, f"M-Pesa reports KES {result.amount_text} as sent back")
        elif state == "completed" and result.receipt is None:
            await self._needs_attention(row, _NO_RECEIPT)
        elif state == "completed" and read_direction(result.payees, await self._numbers(row)) is Direction.IN:
            await self._needs_attention(row, _CAME_IN)
        elif state == "completed":
            await self._complete(row, _DONE, result.result_code, result.result_desc, result.receipt)

    async def _numbers(self, row: Row) -> set[str]:
        """The numbers by which M-Pesa may name the receiver: the one that payers pay, and the store's."""
        numbers = {row["shortcode"]}
        with suppress(ProviderNotConfigured):
            known = await self._gateway.services.get(Credentials).of_shortcode(row["shortcode_id"])
            numbers |= {known.shortcode, known.store_number or known.shortcode}
        return numbers

    async def _complete(
        self, row: Row, outcome: ReversalOutcome, code: str | None, text: str | None, receipt: str | None
    ) -> bool:
        """The one way to ``completed``; a refund that was given up and went through after all gets there as well.

        False when the payment has no money left for it, which another refund may still free.
        """
        shown = None if receipt == row["receipt"] else receipt
        if row["status"] == "completed":
            known = row["reversal_receipt"]
            if known is not None and shown not in {None, known}:
                await self._needs_attention(row, f"M-Pesa gives it a second receipt, {shown}: look on its portal")
            return True
        now = self._gateway.clock.now()
        payments = self._gateway.services.get(RefundablePayments)
        payment_id, refund_id, amount = row["payment_id"], row["refund_id"], Kes(row["amount"])
        if shown is not None and await payments.has_paid(row["env"], shown):
            await self._needs_attention(row, _CAME_IN)
            return True
        try:
            async with self._db.savepoint():
                if row["status"] == "failed":
                    await payments.reserve(row["merchant_id"], row["env"], payment_id, amount, refund_id)
                await self._db.fetchrow(tables.COMPLETE, refund_id, outcome.word, code, text, shown, now)
        except Conflict as problem:
            why = f"M-Pesa carried this refund out after all, and its money is promised to another: {problem.message}"
            await self._needs_attention(row, why)
            return False
        except asyncpg.UniqueViolationError:
            await self._needs_attention(row, f"M-Pesa gives it the receipt {shown}, which another refund has")
            return True
        await payments.reverse(payment_id, refund_id, amount, shown)
        log.info("refund_completed", refund_id=refund_id, outcome=outcome.word)
        return True

    async def _fail(self, row: Row, outcome: ReversalOutcome, *, code: str, text: str, reversal: str = "ended") -> None:
        """The one way to ``failed``: what was set aside is free again, and the merchant hears of it."""
        now = self._gateway.clock.now()
        failed = await self._db.fetchrow(
            tables.FAIL, row["refund_id"], outcome.word, code, text, reversal, now, outcome.advice
        )
        if failed is None:
            return
        payments = self._gateway.services.get(RefundablePayments)
        await payments.release(row["payment_id"], row["refund_id"], Kes(row["amount"]), outcome.meaning)
        if reversal == "unsent":
            return
        await self._gateway.outbox.publish(
            RefundFailed(
                merchant_id=row["merchant_id"],
                env=row["env"],
                subject_id=row["refund_id"],
                refund_id=row["refund_id"],
                payment_id=row["payment_id"],
                amount=Kes(row["amount"]).wire,
                currency="KES",
                provider="mpesa",
                status="failed",
                outcome=outcome.word,
                advice=outcome.advice,
                result_code=code,
                result_desc=text,
            )
        )
        log.info("refund_failed", refund_id=row["refund_id"], outcome=outcome.word)

    async def _needs_attention(self, row: Row, why: str) -> None:
        now = self._gateway.clock.now()
        if await self._db.fetchval(tables.NEEDS_ATTENTION, row["refund_id"], why, now) is not None:
            log.error("refund_needs_attention", refund_id=row["refund_id"], why=why)

    async def _find(self, result: QueryResulted) -> Row | None:
        if result.subject_id:
            row = await self._db.fetchrow(tables.LOCK, result.subject_id)
        else:
            row = await self._db.fetchrow(
                tables.LOCK_BY_HANDLE, result.originator_conversation_id, result.conversation_id
            )
        if row is None:
            return None
        if result.merchant_id and (result.merchant_id, result.env) != (row["merchant_id"], row["env"]):
            raise AnotherSubject("this result is about a refund of another merchant or env")
        pairs = (
            (row["originator_conversation_id"], result.originator_conversation_id),
            (row["conversation_id"], result.conversation_id),
        )
        known = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
        if known and all(ours != theirs for ours, theirs in known):
            raise AnotherSubject("this result is about another refund than its address")
        return row

    # -- asking M-Pesa --------------------------------------------------------------------------------------------

    async def wake_due(self) -> int:
        """Hand the refunds whose result is overdue to the queue, some of each merchant; gives their count."""
        rows = await self._db.fetch(tables.DUE, self._gateway.clock.now(), 200, _WOKEN_EACH)
        for row in rows:
            refund_id, merchant_id = row["refund_id"], row["merchant_id"]
            await self._gateway.jobs.enqueue(
                "refunds.ask", once=refund_id, refund_id=refund_id, merchant_id=merchant_id
            )
        return len(rows)

    async def ask_in_turn(self, refund_id: str, merchant_id: str) -> bool:
        """Like ``ask``. False, and the refund stays due, while enough of its merchant's refunds are asked about."""
        with self._places.take(merchant_id) as has_place:
            return has_place and await self.ask(refund_id)

    async def ask(self, refund_id: str, *, is_forced: bool = False) -> bool:
        """Ask M-Pesa what became of a reversal; False when it is not due, has ended, or another worker is asking.

        By its conversation where the ack is known, else by the payment's receipt. It is never sent again. Raises
        ProviderNotConfigured, ProviderRejected and ProviderUnavailable where somebody ``is_forced`` to hear of it.
        """
        self._db.refuse_transaction("asking M-Pesa about a refund")
        now = self._gateway.clock.now()
        leased_until = now + _ASKING
        row = await self._db.fetchrow(tables.CLAIM_DUE, refund_id, now, leased_until)
        if row is None:
            return False
        structlog.contextvars.bind_contextvars(payment_id=row["payment_id"])
        self._gateway.tracer.concerns(refund_id)
        if row["asked"] > len(self._settings.ask_after) and not is_forced:
            async with self._db.transaction():
                await self._needs_attention(row, row["attention"] or _NEVER_SAID)
            return True
        if row["reversal"] == "ready":
            await self._close_unsent(row)
            return True
        refusal: Refused | None = None
        try:
            await self._question(row)
        except DarajaFault as fault:
            self._places.note(row["merchant_id"], answered=fault.code is not None)
            log.info("refund_question_unanswered", refund_id=refund_id, fault=fault.meaning)
            refusal = refusal_of(fault)
        except Refused as problem:
            # Such as: the credentials were removed meanwhile, or have no initiator any more.
            log.warning("refund_question_not_asked", refund_id=refund_id, problem=problem.message)
            refusal = problem
        except asyncio.CancelledError:
            # We are told to stop: who takes the job over asks at once.
            await self._db.execute(tables.ASK_AGAIN, refund_id, leased_until, now)
            raise
        else:
            self._places.note(row["merchant_id"], answered=True)
        # Unless the answer, or a result, was quicker.
        await self._db.execute(tables.ASK_AGAIN, refund_id, leased_until, self._next_ask(row, now))
        if is_forced and refusal is not None:
            raise refusal
        return True

    async def _question(self, row: Row) -> None:
        """Ask about the reversal by its conversation where the ack told it, else about the payment by its receipt."""
        credentials = await self._gateway.services.get(Credentials).of_shortcode(row["shortcode_id"])
        by_conversation = row["reversal"] == "accepted" and row["originator_conversation_id"] is not None
        about_reversal, about_payment = subjects_of(row["refund_id"])
        subject = about_reversal if by_conversation else about_payment
        question = TransactionStatus(
            initiator=credentials.initiator_for("a refund"),
            receipt=None if by_conversation else row["receipt"],
            conversation_id=row["originator_conversation_id"] if by_conversation else None,
            result_url=self._address("status", credentials, subject),
            timeout_url=self._address("status-timeout", credentials, subject),
            remarks=f"reversal of {row['receipt']}",
        )
        await self._gateway.daraja.ask(TRANSACTION_STATUS, credentials.daraja, question)

    def _next_ask(self, row: Row, now: datetime) -> datetime:
        schedule = self._settings.ask_after
        return now + timedelta(seconds=schedule[min(int(row["asked"]), len(schedule) - 1)])

    async def ask_now(self, merchant_id: str, env: Env, refund_id: str) -> RefundView:
        """Ask at once. Raises NotFound, RefundEnded without anything to ask about, and why M-Pesa was not asked."""
        self._db.refuse_transaction("asking M-Pesa about a refund")
        row = await self._require(merchant_id, env, refund_id)
        if row["status"] != "pending":
            raise RefundEnded("this refund has ended")
        await self._db.execute(tables.ASK_BY_HAND, refund_id, self._gateway.clock.now())
        await self.ask(refund_id, is_forced=True)
        return await self.get(merchant_id, env, refund_id)

    async def resolve(self, env: Env, refund_id: str, resolution: Resolution, actor: str) -> RefundView:
        """End a refund of ``env`` by hand, from what a person saw on M-Pesa's portal.

        Raises NotFound, Invalid, RefundEnded.
        """
        require_confirmed(resolution.confirm, refund_id)
        async with self._db.transaction():
            row = await self._db.fetchrow(tables.LOCK, refund_id)
            if row is None or row["env"] != env:
                raise NotFound("there is no such refund")
            await self._resolve(row, resolution)
            # Last: whoever waits for the audit log holds nothing that others need.
            await self._gateway.audit.record(
                "refund.resolved",
                merchant_id=row["merchant_id"],
                actor=actor,
                subject_id=refund_id,
                env=env,
                detail={"outcome": resolution.outcome, "note": resolution.note},
            )
        return await self.get(row["merchant_id"], env, refund_id)

    async def _resolve(self, row: Row, resolution: Resolution) -> None:
        if row["attention"] is None:
            raise RefundEnded("only a refund that needs attention is decided by hand")
        note = resolution.note
        if row["status"] == resolution.outcome:
            await self._db.execute(tables.LOOKED_AT, row["refund_id"], self._gateway.clock.now())
        elif resolution.outcome == "completed":
            if not await self._complete(row, _DONE, "operator", note, None):
                raise RefundEnded("this payment has no money left for this refund: another one has it")
        elif row["status"] == "pending":
            outcome = ReversalOutcome("other", "an operator found that no money went back", "ask for it again")
            await self._fail(row, outcome, code="operator", text=note)
        else:
            raise RefundEnded("this refund is completed and its payment reversed, which is not taken back")

    # -- reading --------------------------------------------------------------------------------------------------

    async def get(self, merchant_id: str, env: Env, refund_id: str) -> RefundView:
        """A refund of this merchant in ``env``. Raises NotFound."""
        return view(await self._require(merchant_id, env, refund_id))

    def url_of(self, refund_id: str) -> str:
        """Where a refund is found."""
        return self._gateway.url(f"/v1/refunds/{refund_id}")

    async def page(self, merchant_id: str, env: Env, filters: RefundQuery) -> Page[RefundView]:
        """One page of the merchant's refunds, newest first. Raises Invalid for a bad cursor."""
        after = decode_position(filters.cursor, env) if filters.cursor else None
        chosen = _chosen(merchant_id, env, filters)
        rows = await self._read(chosen, after, filters.limit + 1)
        total = await self._reads.fetchval(tables.COUNT, *chosen) if filters.count else None
        return page_of(rows, filters.limit, env=env, view=view, position=_position, total=total)

    def export(self, merchant_id: str, env: Env, filters: RefundFilters) -> AsyncGenerator[list[Sequence[Any]]]:
        """All of the merchant's refunds that the filters let through, newest first, in pages."""
        chosen = _chosen(merchant_id, env, filters)
        return keyset_pages(lambda after, limit: self._read(chosen, after, limit), _position, exported)

    async def _read(self, chosen: tuple[Any, ...], after: tuple[datetime, str] | None, limit: int) -> list[Row]:
        return await self._reads.fetch(tables.PAGE, *chosen, *(after or (None, "")), limit)

    async def _require(self, merchant_id: str, env: Env, refund_id: str) -> Row:
        row = await self._db.fetchrow(tables.FIND, merchant_id, env, refund_id)
        if row is None:
            raise NotFound("there is no such refund")
        return row


def subjects_of(refund_id: str) -> list[str]:
    """What callbacks about a refund are addressed to: the refund, and our questions about its payment."""
    return [refund_id, f"{_ABOUT_PAYMENT}_{refund_id.partition('_')[2]}"]


def _same(row: Row, body: CreateRefund) -> Row:
    """The refund, if it is what this body asks for, as far as the refund itself tells. Raises KeyMismatch."""
    amount = read_amount(body.amount)
    if row["payment_id"] != body.payment_id or amount not in {None, row["amount"]}:
        raise KeyMismatch("this Idempotency-Key was used with another request: send a new key, or the same body")
    return row


def _chosen(merchant_id: str, env: Env, filters: RefundFilters) -> tuple[Any, ...]:
    return (
        merchant_id,
        env,
        filters.payment_id,
        filters.status,
        filters.since,
        filters.until,
        filters.needs_attention,
    )


def _position(row: Row) -> tuple[datetime, str]:
    return row["created_at"], row["refund_id"]
