"""What decisions change: a payment's columns, its timeline and the events that are published, without any I/O."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.json_codec import dumps
from mpesa_gateway.money import Kes
from mpesa_gateway_payments.decisions import (
    Complete,
    Confirm,
    Decision,
    DropClaim,
    Fail,
    Ignore,
    LearnHandle,
    LearnReceipt,
    Mismatch,
    Refuse,
    ReportedFailure,
)
from mpesa_gateway_payments.events import PaymentCompleted, PaymentEvent, PaymentFailed, PaymentMismatched
from mpesa_gateway_payments.evidence import ReportedMoney
from mpesa_gateway_payments.states import Cause, Charge, Status
from mpesa_gateway_payments.views import event_fields
from mpesa_gateway_transactions.api import ReportedTransaction, Subject

_SOURCES: Mapping[Cause, str] = {Cause.STATUS_QUERY: "status", Cause.STATEMENT: "pull"}
"""Which witness a cause is to a transaction. The others are M-Pesa's reports about a push."""

Step = tuple[str, datetime, str, str, str | None, str]
"""One row of ``payment_step``: payment, time, kind, cause, result code and detail."""


class PaymentChange:
    """One payment with the decisions about it so far. Each further decision starts from what the former left."""

    def __init__(self, row: Row | Mapping[str, Any], noted: Iterable[str] = ()) -> None:
        """``row`` is the payment as read, with its version; ``noted`` are the mismatches that its timeline has."""
        self.row: dict[str, Any] = dict(row)
        self.steps: list[Step] = []
        self.events: list[PaymentEvent] = []
        self.ended: list[str | None] = []
        """How it ended, each time: completed (None), or failed for a reason."""
        self.words: list[tuple[str, dict[str, Any]]] = []
        """What is logged once it is committed: problems, each with its fields."""
        self.seen: list[ReportedTransaction] = []
        """The money that was reported with a receipt: this payment's, or such as contradicts it."""
        self.is_changed = False
        self._noted = set(noted)

    def apply(self, decision: Decision, at: datetime) -> None:
        """Apply one decision, made at the time ``at``."""
        match decision:
            case Complete(told, cause, other_phone):
                self._complete(told, cause, other_phone, at)
            case LearnReceipt(told, cause, other_phone):
                self._learn_receipt(told, cause, other_phone, at)
            case Fail(report):
                self._fail(report, at)
            case Mismatch(of, told, cause):
                self._mismatch(of, told, cause, at)
            case Confirm(told):
                self._confirm(decision, told, at)
            case DropClaim(refuted):
                self._drop_claim(refuted, at)
            case LearnHandle(checkout_request_id, merchant_request_id):
                known = self.row["merchant_request_id"]
                self._set(checkout_request_id=checkout_request_id, merchant_request_id=known or merchant_request_id)
            case Ignore() | Refuse():
                pass

    def record_report(self, told: ReportedMoney, cause: Cause, at: datetime) -> None:
        """Note money that was reported with a receipt at the time ``at``. What nothing proves is not noted."""
        row = self.row
        if told.receipt is None or not told.is_proven:
            return
        is_its_own = told.receipt == row["receipt"]
        # An amount that is not stated of a payment's own money is the one that was asked for.
        is_unstated = is_its_own and told.amount is None and told.amount_text is None
        amount = row["amount"] if is_unstated else told.amount
        self.seen.append(
            ReportedTransaction(
                source=_SOURCES.get(cause, "stk"),
                env=row["env"],
                number=row["shortcode"],
                merchant_id=row["merchant_id"],
                direction="in",
                receipt=told.receipt,
                occurred_at=told.at or at,
                amount_cents=None if amount is None else int(amount) * 100,
                payer=told.phone,
                subject=Subject("payment", row["payment_id"]) if is_its_own else None,
                conflict_id=None if is_its_own else row["payment_id"],
            )
        )

    def _set(self, **values: Any) -> None:
        self.row |= values
        self.is_changed = True

    def _step(self, at: datetime, kind: str, cause: Cause, code: str | None, detail: str) -> None:
        self.steps.append((self.row["payment_id"], at, kind, cause.value, code, detail))

    def _complete(self, told: ReportedMoney, cause: Cause, other_phone: str | None, at: datetime) -> None:
        self._set(
            status=Status.COMPLETED.value,
            receipt=told.receipt,
            result_code=told.code,
            result_desc=told.text,
            failure_reason=None,
            completed_at=at,
            completed_by=cause.value,
            updated_at=at,
            due_at=None,
            claim=None,
        )
        if other_phone:
            self._set(mismatch="phone", received_phone=other_phone)
        self.record_report(told, cause, at)
        self.events.append(PaymentCompleted(**event_fields(self.row)))
        if other_phone:
            self._publish_other_phone(told)
        self.ended.append(None)

    def _learn_receipt(self, told: ReportedMoney, cause: Cause, other_phone: str | None, at: datetime) -> None:
        self._set(receipt=told.receipt, updated_at=at)
        if other_phone:
            self._set(mismatch=self.row["mismatch"] or "phone", received_phone=other_phone)
        self.record_report(told, cause, at)
        self._step(at, "receipt_learnt", cause, told.code, told.receipt or "")
        if other_phone:
            self._publish_other_phone(told)

    def _fail(self, report: ReportedFailure, at: datetime) -> None:
        self._set(
            status=Status.FAILED.value,
            result_code=report.code,
            result_desc=report.text,
            failure_reason=report.reason,
            outcome_is_final=report.is_final,
            due_at=report.due_at,
            updated_at=at,
        )
        if report.step == "refused":
            self._set(charge=Charge.REFUSED.value)
        self._step(at, report.step, report.cause, report.code, report.text)
        self.events.append(PaymentFailed(**event_fields(self.row)))
        self.ended.append(report.reason)

    def _mismatch(self, of: str, told: ReportedMoney, cause: Cause, at: datetime) -> None:
        """The payment shows the first such report. Each further one is in the timeline, and is published, once."""
        row = self.row
        said = f"KES {told.amount_text}" if told.amount_text is not None else "no amount"
        by = f"receipt {told.receipt}" if told.receipt is not None else "no receipt"
        detail = f"{of}: expected KES {row['amount']}, M-Pesa reports {said}, {by}"
        is_of_paid = row["receipt"] is not None and of in {"amount", "receipt"}
        self.record_report(told, cause, at)
        if row["mismatch"] in {None, "phone"}:
            self._set(
                mismatch=of,
                received_amount=told.amount_shown,
                received_receipt=told.receipt,
                received_phone=told.phone,
                is_mismatch_of_paid=is_of_paid,
                looked_after_at=None,
                updated_at=at,
                due_at=None,
                claim=None,
            )
            if row["status"] == Status.PENDING.value:
                # Of a payment that has ended they say how it ended.
                self._set(result_code=told.code, result_desc=told.text)
        elif detail in self._noted:
            return
        else:
            # An operator who closed the first one has not seen this one.
            is_of_paid = is_of_paid or row["is_mismatch_of_paid"]
            self._set(is_mismatch_of_paid=is_of_paid, looked_after_at=None, updated_at=at)
        self._noted.add(detail)
        self._step(at, "mismatched", cause, told.code, detail)
        self._publish_mismatch(of, told.amount_shown, told.receipt)
        self.words.append(("payment_mismatched", {"of": of, "cause": cause.value}))

    def _confirm(self, decision: Confirm, told: ReportedMoney | None, at: datetime) -> None:
        row = self.row
        if told is not None:
            expires_at = max(row["expires_at"], at + decision.within)
            self._set(claim=dumps(told), due_at=at, expires_at=expires_at, updated_at=at)
            self._step(at, "confirming", Cause.CALLBACK, told.code, told.text)
        elif row["status"] == Status.PENDING.value and row["due_at"] is not None and row["due_at"] > at:
            self._set(due_at=at)

    def _drop_claim(self, refuted: str | None, at: datetime) -> None:
        is_asked_about = self.row["status"] == Status.PENDING.value or self.row["failure_reason"] == "expired"
        self._set(claim=None, updated_at=at, due_at=self.row["due_at"] if is_asked_about else None)
        if refuted is not None:
            self._step(at, "unconfirmed", Cause.STK_QUERY, None, refuted)
            self.words.append(("callback_refuted", {}))

    def _publish_other_phone(self, told: ReportedMoney) -> None:
        self._publish_mismatch("phone", Kes(self.row["amount"]).wire, told.receipt)

    def _publish_mismatch(self, of: str, amount: str | None, receipt: str | None) -> None:
        fields = event_fields(self.row)
        self.events.append(PaymentMismatched(**fields, mismatch=of, received_amount=amount, received_receipt=receipt))
