"""Transaction status queries and their results."""

import re
from datetime import datetime
from functools import partial

import structlog

from mpesa_gateway.daraja.client import Ack, DarajaFault, Initiator, NotSent, Rejected
from mpesa_gateway.daraja.refusals import api_error_of
from mpesa_gateway.daraja.wire import read_receipt
from mpesa_gateway.db.engine import Found, Row
from mpesa_gateway.errors import InvalidFields, require_found
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_callbacks.api import Callbacks, DifferentSubject
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_payments import status_query_sql, tables
from mpesa_gateway_payments.decisions import ReportedFailure, result_of
from mpesa_gateway_payments.errors import NotQueryable
from mpesa_gateway_payments.events import StatusResulted
from mpesa_gateway_payments.evidence import (
    Direction,
    Evidence,
    unallocated_transaction,
)
from mpesa_gateway_payments.external_reversals import ExternalReversals
from mpesa_gateway_payments.matching import contradicts
from mpesa_gateway_payments.operations import TRANSACTION_STATUS, TransactionStatus
from mpesa_gateway_payments.result_codes import NOT_FOUND_RESULTS, TransactionState, transaction_state
from mpesa_gateway_payments.schemas import CheckStarted, CheckView
from mpesa_gateway_payments.statement_matching import PaymentStatementMatching
from mpesa_gateway_payments.states import Cause, Status
from mpesa_gateway_payments.status_evidence import StatusEvidence
from mpesa_gateway_payments.tables import PaymentRow, StatusCheckRow
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.verdicts import payment_of
from mpesa_gateway_transactions.api import Allocations

log = structlog.get_logger(__name__)

_PAYMENT_ID = re.compile(r"pay_[0-9a-z]{26}\Z", re.ASCII)


class StatusQueryService:
    """Sends status queries and applies their results to at most one payment each."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        callbacks: Callbacks,
        credentials: Credentials,
        transitions: Transitions,
        external_reversals: ExternalReversals,
        statement_matching: PaymentStatementMatching,
        allocations: Allocations,
    ) -> None:
        self._runtime = runtime
        self._db = runtime.db
        self._callbacks = callbacks
        self._credentials = credentials
        self._transitions = transitions
        self._external_reversals = external_reversals
        self._statement_matching = statement_matching
        self._allocations = allocations
        self._evidence = StatusEvidence(runtime.db, credentials)

    async def ask(
        self, merchant_id: str, env: Env, subject: str, *, reference: str | None = None, shortcode: str | None = None
    ) -> CheckStarted:
        """Send a status query about a receipt or payment id; return Daraja's acknowledgement.

        A payment is asked about at its own shortcode, another receipt at ``shortcode``, by default the default one.
        Raises InvalidFields, NotFound, NotQueryable, ProviderNotConfigured, ProviderRejected or ProviderUnavailable.
        """
        self._db.refuse_transaction("sending a status query")
        self._runtime.outcomes.require_room()
        payment, receipt, conversation_id = await self._subject(merchant_id, env, subject)
        credentials = await self._credentials_of(merchant_id, env, payment, shortcode)
        initiator = credentials.initiator_for("a status query")
        now = self._runtime.clock.now()
        check_id = self._runtime.ids.new("chk", now)
        payment_id = None if payment is None else payment["payment_id"]
        check = StatusCheckRow(
            check_id=check_id,
            merchant_id=merchant_id,
            env=credentials.env,
            shortcode=credentials.shortcode,
            payment_id=payment_id,
            receipt=receipt,
            asked_for=subject[:64],
            reference=reference,
            state="sending",
            created_at=now,
        )
        await self._db.run(StatusCheckRow.insert(check))
        self._runtime.trace_links.begin(check_id)
        # A disconnected caller must not cancel the query before its outcome is stored.
        return await self._runtime.run_to_completion(
            self._ask(check_id, payment_id, credentials, initiator, receipt, conversation_id)
        )

    async def _ask(
        self,
        check_id: str,
        payment_id: str | None,
        credentials: MpesaCredentials,
        initiator: Initiator,
        receipt: str | None,
        conversation_id: str | None,
    ) -> CheckStarted:
        outcomes = self._runtime.outcomes
        try:
            question = TransactionStatus(
                initiator=initiator,
                receipt=receipt,
                conversation_id=None if receipt is not None else conversation_id,
                result_url=credentials.result_url or self._address("status", credentials, check_id),
                timeout_url=credentials.timeout_url or self._address("status-timeout", credentials, check_id),
                remarks=f"status of {receipt or payment_id}",
            )
            ack = await self._runtime.daraja.call(TRANSACTION_STATUS, credentials.daraja, question)
        except DarajaFault as fault:
            await outcomes.record("status query fault", check_id, partial(self._write_fault, check_id, fault))
            raise api_error_of(fault) from None
        await outcomes.record("status query ack", check_id, partial(self._write_ack, check_id, payment_id, ack))
        return CheckStarted(
            originator_conversation_id=ack.originator_conversation_id,
            conversation_id=ack.conversation_id,
            response_code=ack.response_code,
            response_description=ack.response_description,
            check_id=check_id,
            payment_id=payment_id,
            env=credentials.env,
        )

    async def get(self, merchant_id: str, env: Env, check_id: str) -> CheckView:
        """Raises NotFound."""
        row = require_found(
            await self._db.run(
                StatusCheckRow.select()
                .where(
                    StatusCheckRow.check_id == check_id,
                    StatusCheckRow.merchant_id == merchant_id,
                    StatusCheckRow.env == env,
                )
                .first()
            ),
            "there is no such status query",
        )
        return CheckView(**{name: row[name] for name in CheckView.__struct_fields__})

    async def _credentials_of(
        self, merchant_id: str, env: Env, payment: Found | None, shortcode: str | None
    ) -> MpesaCredentials:
        port = self._credentials
        if payment is not None:
            if shortcode not in {None, payment["shortcode"]}:
                raise InvalidFields.field_error("shortcode", f"this payment is of shortcode {payment['shortcode']}")
            return await port.of_shortcode(payment["shortcode_id"])
        credentials = await port.get(merchant_id, env, shortcode)
        credentials.check_use()
        return credentials

    async def _subject(self, merchant_id: str, env: Env, subject: str) -> tuple[Found | None, str | None, str | None]:
        if _PAYMENT_ID.match(subject):
            payment = require_found(
                await self._db.fetchrow(tables.FIND, merchant_id, env, subject), "there is no such payment"
            )
            if payment["receipt"] is None and payment["merchant_request_id"] is None:
                raise NotQueryable(
                    "M-Pesa has not acknowledged this payment, so it cannot be queried: wait for its result"
                )
            return payment, payment["receipt"], payment["merchant_request_id"]
        receipt = read_receipt(subject)
        if receipt is None:
            raise InvalidFields.field_error("receipt", "send an M-Pesa receipt such as TKN4A1B2C3, or a payment's id")
        return await self._paid_by(merchant_id, env, receipt), receipt, None

    async def _paid_by(self, merchant_id: str, env: Env, receipt: str) -> Found | None:
        row: Found | None = await self._db.run(
            PaymentRow.select()
            .where(PaymentRow.env == env, PaymentRow.receipt == receipt, PaymentRow.merchant_id == merchant_id)
            .first()
        )
        return row

    def _address(self, kind: str, credentials: MpesaCredentials, check_id: str) -> str:
        return self._callbacks.url_for(
            "status" if kind == "status" else "status-timeout",
            env=credentials.env,
            merchant_id=credentials.merchant_id,
            subject_id=check_id,
        )

    async def _write_ack(self, check_id: str, payment_id: str | None, ack: Ack) -> None:
        now = self._runtime.clock.now()
        asked = await self._db.fetchval(
            status_query_sql.STORE_ACKNOWLEDGEMENT, check_id, ack.originator_conversation_id, ack.conversation_id
        )
        if asked is None:
            payment_id = None
        if payment_id is not None:
            # Locked first: a result that waits for this acknowledgement locks the payment too.
            await self._db.fetchrow(tables.LOCK, [payment_id])
        callbacks = self._callbacks
        for handle in sorted({ack.originator_conversation_id, ack.conversation_id}):
            await callbacks.apply_waiting(handle)
        if payment_id is not None:
            # Last: a waiting result may record a transaction.
            await self._transitions.step(payment_id, now, "asked", Cause.MERCHANT, None, check_id)

    async def _write_fault(self, check_id: str, fault: DarajaFault) -> None:
        state = "refused" if isinstance(fault, Rejected) else "unsent" if isinstance(fault, NotSent) else "unknown"
        ended = None if state == "unknown" else self._runtime.clock.now()
        await self._db.run(
            StatusCheckRow.update(
                {
                    StatusCheckRow.state: state,
                    StatusCheckRow.result_code: fault.code,
                    StatusCheckRow.result_desc: fault.meaning,
                    StatusCheckRow.finished_at: ended,
                }
            ).where(StatusCheckRow.check_id == check_id, StatusCheckRow.state == "sending")
        )

    async def apply_result(self, result: StatusResulted) -> None:
        """Apply a result in the transaction that stores its callback; results of other subjects stay waiting."""
        if result.subject_id and not result.subject_id.startswith("chk_"):
            return
        if result.subject_id:
            check = await self._db.fetchrow(status_query_sql.LOCK_CHECK, result.subject_id)
        else:
            check = await self._db.fetchrow(
                status_query_sql.LOCK_CHECK_BY_HANDLE, result.originator_conversation_id, result.conversation_id
            )
        if check is None:
            return
        if _is_of_another(check, result):
            raise DifferentSubject("this result is about another query than its address")
        if result.is_final:
            now = self._runtime.clock.now()
            if result.timed_out:
                await self._finish(check, "timed_out", result, None, now)
            else:
                await self._finish(check, "answered", result, await self._settle(check, result), now)
        await self._callbacks.mark_applied(result.callback_id)

    async def _finish(self, check: Row, state: str, result: StatusResulted, finding: str | None, now: datetime) -> None:
        await self._db.run(
            StatusCheckRow.update(
                {
                    StatusCheckRow.state: state,
                    StatusCheckRow.result_code: result.result_code,
                    StatusCheckRow.result_desc: result.result_desc,
                    StatusCheckRow.transaction_status: result.transaction_status,
                    StatusCheckRow.finding: finding,
                    StatusCheckRow.answered_receipt: result.receipt,
                    StatusCheckRow.answered_amount: result.amount_text,
                    StatusCheckRow.finished_at: now,
                }
            ).where(StatusCheckRow.check_id == check["check_id"], StatusCheckRow.state != "answered")
        )

    async def _settle(self, check: Row, result: StatusResulted) -> str:
        state, asked = transaction_state(result.transaction_status), check["receipt"]
        if (finding := _finding_without_statement(result, state, asked)) is not None:
            return finding
        evidence = await self._evidence.read(check, result)
        matching = self._statement_matching
        if state == "completed":
            # `apply` requires a receipt that M-Pesa stated itself.
            settle = matching.apply if result.receipt is not None else matching.apply_named
            settled = await settle(evidence)
            if settled.payment_id is None:
                seen = unallocated_transaction(evidence, check["merchant_id"])
                await self._allocations.receive([] if seen is None else [seen])
            is_own = settled.merchant_id in {None, check["merchant_id"]}
            return "not_ours" if settled.finding == "not_found" or not is_own else settled.finding
        payment = await self._named(check, evidence)
        if state in {"reversed", "partially_reversed"}:
            return await self._withdraw(payment, check, evidence, state, result)
        if payment is None:
            # The payer's next attempt may pay.
            return "not_ours"
        return await self._fail(payment, evidence, result)

    async def _withdraw(
        self, payment: Row | None, check: Row, evidence: Evidence, state: TransactionState, result: StatusResulted
    ) -> str:
        """Record money that was received and sent back; return the finding.

        A named payment is completed first: its merchant gets both events. Otherwise no later report completes a payment
        with the receipt, or, if part of the money stayed, one that does is followed by the reversal.
        """
        text = f"M-Pesa reports {result.transaction_status}"
        has_money = payment is not None and evidence.receipt is not None and payment["receipt"] == evidence.receipt
        if payment is None or not has_money or evidence.amount not in {None, payment["amount"]}:
            if evidence.direction is Direction.OUT:
                return "not_ours"
            matching = self._statement_matching
            settled = await matching.apply_named(evidence)
            if settled.finding not in {"recovered", "already_known"} or settled.payment_id is None:
                if evidence.receipt is not None and evidence.receiver is not None and settled.finding != "mismatched":
                    await self._external_reversals.record(evidence.receiver, evidence.receipt, state)
                if settled.finding == "ambiguous" and state == "partially_reversed":
                    return "ambiguous"
                is_own = settled.merchant_id == check["merchant_id"]
                return settled.finding if settled.finding == "mismatched" and is_own else "not_ours"
            payment = await self._db.fetchrow(tables.LOCK, [settled.payment_id])
        if payment is None:
            return "not_ours"
        await self._external_reversals.apply(payment, state, Cause.STATUS_QUERY, text)
        return "reversed" if payment["merchant_id"] == check["merchant_id"] else "not_ours"

    async def _named(self, check: Row, evidence: Evidence) -> Row | None:
        payment_id = check["payment_id"]
        if evidence.direction is Direction.OUT:
            return None
        if payment_id is None and evidence.receipt is not None:
            known = await self._paid_by(check["merchant_id"], check["env"], evidence.receipt)
            payment_id = None if known is None else known["payment_id"]
        return None if payment_id is None else await self._db.fetchrow(tables.LOCK, [payment_id])

    async def _fail(self, payment: Row, evidence: Evidence, result: StatusResulted) -> str:
        asked_about = payment_of(payment)
        if asked_about.is_open and contradicts(evidence, asked_about):
            log.error("status_answer_of_other_money", payment_id=payment["payment_id"])
            return "not_ours"
        report = ReportedFailure(
            code=result.result_code,
            text=f"M-Pesa reports {result.transaction_status}",
            reason="other",
            cause=Cause.STATUS_QUERY,
            # An answer without a direction, an amount and a receiver is no final failure.
            is_final=evidence.direction is Direction.IN
            and not evidence.is_shared
            and evidence.amount == asked_about.amount,
        )
        has_failed = result_of(await self._transitions.apply(payment, report)) == "failed"
        has_money = payment["status"] not in {Status.PENDING.value, Status.FAILED.value}
        if has_money:
            log.error("payment_contradicted", payment_id=payment["payment_id"], says=result.transaction_status)
        return "contradicted" if has_money else "failed" if has_failed else "already_known"


def _finding_without_statement(result: StatusResulted, state: str, asked: str | None) -> str | None:
    if result.result_code != "0":
        return "not_found" if result.result_code in NOT_FOUND_RESULTS else "unanswered"
    if state == "pending":
        return "pending"
    is_other = asked is not None and result.receipt is not None and asked != result.receipt
    return "contradicted" if is_other else None


def _is_of_another(check: Row, result: StatusResulted) -> bool:
    if result.merchant_id and (result.merchant_id, result.env) != (check["merchant_id"], check["env"]):
        return True
    pairs = (
        (check["originator_conversation_id"], result.originator_conversation_id),
        (check["conversation_id"], result.conversation_id),
    )
    known = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
    return bool(known) and all(ours != theirs for ours, theirs in known)
