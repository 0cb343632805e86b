"""Changes of a payment's columns, timeline and events, without I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from mpesa_gateway.db.engine import Row
from mpesa_gateway.db.json_codec import dumps
from mpesa_gateway.erasure import ERASED
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import mask_phones
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

_SOURCES: Mapping[Cause, str] = {Cause.STATUS_QUERY: "status", Cause.STATEMENT: "pull", Cause.C2B: "c2b"}
"""The source of a transaction by cause; other causes are reports about a push."""

Step = tuple[str, datetime, str, str, str | None, str]
"""Payment, time, kind, cause, result code and detail of ``payment_step``."""


class PaymentChange:
    """A payment with the decisions so far; each starts from the previous result."""

    def __init__(self, row: Row | Mapping[str, Any], noted: Iterable[str] = ()) -> None:
        """``row`` has its version; ``noted`` has the mismatches in its timeline."""
        self.row: dict[str, Any] = dict(row)
        self.steps: list[Step] = []
        self.events: list[PaymentEvent] = []
        self.ended: list[str | None] = []
        """Ends of the payment: None for completed, otherwise the failure reason."""
        self.log_events: list[tuple[str, dict[str, Any]]] = []
        """Log events after commit, with their fields."""
        self.seen: list[ReportedTransaction] = []
        """Reported money with a receipt: this payment's, or in conflict."""
        self.is_changed = False
        self._noted = set(noted)

    def apply(self, decision: Decision, at: datetime) -> None:
        match decision:
            case Complete(reported, cause, other_phone):
                self._complete(reported, cause, other_phone, at)
            case LearnReceipt(reported, cause, other_phone):
                self._learn_receipt(reported, cause, other_phone, at)
            case Fail(report):
                self._fail(report, at)
            case Mismatch(of, reported, cause):
                self._mismatch(of, reported, cause, at)
            case Confirm(reported):
                self._confirm(decision, reported, at)
            case DropClaim(refuted):
                self._drop_claim(refuted, at)
            case LearnHandle(checkout_request_id, merchant_request_id):
                known = self.row["merchant_request_id"]
                self._set(checkout_request_id=checkout_request_id, merchant_request_id=known or merchant_request_id)
            case Ignore() | Refuse():
                pass

    def mark_announced(self, told: Mapping[str, str]) -> None:
        """``told``: the merchants of ``transaction.received``, by receipt."""
        self.seen = [replace(one, is_announced=True) if one.receipt in told else one for one in self.seen]
        self.events = [
            msgspec.structs.replace(event, previously_received=True)
            if isinstance(event, PaymentCompleted) and told.get(event.receipt or "") == event.merchant_id
            else event
            for event in self.events
        ]

    def left_to_tell(self, decisions: Iterable[Decision], told: Mapping[str, str]) -> dict[str, str]:
        """Return the merchants, by receipt, to which no ``payment.completed`` says whose the announced money is."""
        return {
            receipt: told[receipt]
            for one in decisions
            if isinstance(one, Complete | LearnReceipt)
            and (receipt := one.reported.receipt or "") in told
            and (isinstance(one, LearnReceipt) or told[receipt] != self.row["merchant_id"])
        }

    def _unless_erased(self, phone: str | None) -> str | None:
        """A late report does not restore the number of an erased payer."""
        return ERASED if phone and self.row["erased_at"] is not None else phone

    def record_report(self, reported: ReportedMoney, cause: Cause, at: datetime) -> None:
        row = self.row
        if reported.receipt is None or not reported.is_proven:
            return
        is_its_own = reported.receipt == row["receipt"]
        if not is_its_own and not reported.names_receiver:
            # The first report of a receipt fixes its receiver, and this money may be another till's.
            return
        # The payment's own money has the requested amount unless another is stated.
        is_unstated = is_its_own and reported.amount is None and reported.amount_text is None
        amount = row["amount"] if is_unstated else reported.amount
        self.seen.append(
            ReportedTransaction(
                source=_SOURCES.get(cause, "stk"),
                env=row["env"],
                number=row["shortcode"],
                merchant_id=row["merchant_id"],
                direction="in",
                receipt=reported.receipt,
                occurred_at=reported.at or at,
                amount_cents=None if amount is None else int(amount) * 100,
                payer=self._unless_erased(reported.phone),
                subject=Subject("payment", row["payment_id"]) if is_its_own else None,
                conflict_id=None if is_its_own else row["payment_id"],
            )
        )

    def _text(self, text: str) -> str:
        return text if self.row["erased_at"] is None else mask_phones(text)

    def _set(self, **values: Any) -> None:
        self.row |= values
        self.is_changed = True

    def _step(self, at: datetime, kind: str, cause: Cause, code: str | None, detail: str) -> None:
        self.steps.append((self.row["payment_id"], at, kind, cause.value, code, self._text(detail)))

    def _complete(self, reported: ReportedMoney, cause: Cause, other_phone: str | None, at: datetime) -> None:
        self._set(
            status=Status.COMPLETED.value,
            receipt=reported.receipt,
            result_code=reported.code,
            result_desc=self._text(reported.text),
            failure_reason=None,
            completed_at=at,
            completed_by=cause.value,
            updated_at=at,
            due_at=None,
            claim=None,
        )
        if other_phone:
            self._set(mismatch="phone", received_phone=other_phone)
        self.record_report(reported, cause, at)
        self.events.append(PaymentCompleted(**event_fields(self.row)))
        if other_phone:
            self._publish_other_phone(reported)
        self.ended.append(None)

    def _learn_receipt(self, reported: ReportedMoney, cause: Cause, other_phone: str | None, at: datetime) -> None:
        self._set(receipt=reported.receipt, updated_at=at)
        if other_phone:
            self._set(mismatch=self.row["mismatch"] or "phone", received_phone=other_phone)
        self.record_report(reported, cause, at)
        self._step(at, "receipt_learnt", cause, reported.code, reported.receipt or "")
        if other_phone:
            self._publish_other_phone(reported)

    def _fail(self, report: ReportedFailure, at: datetime) -> None:
        self._set(
            status=Status.FAILED.value,
            result_code=report.code,
            result_desc=self._text(report.text),
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

    def _mismatch(self, of: str, reported: ReportedMoney, cause: Cause, at: datetime) -> None:
        """The payment stores the first mismatch. Later ones are added to the timeline and published, each once."""
        row = self.row
        amount_text = f"KES {reported.amount_text}" if reported.amount_text is not None else "no amount"
        by = f"receipt {reported.receipt}" if reported.receipt is not None else "no receipt"
        detail = f"{of}: expected KES {row['amount']}, M-Pesa reports {amount_text}, {by}"
        is_of_paid = row["receipt"] is not None and of in {"amount", "receipt"}
        self.record_report(reported, cause, at)
        if row["mismatch"] in {None, "phone"}:
            self._set(
                mismatch=of,
                received_amount=reported.amount_shown,
                received_receipt=reported.receipt,
                received_phone=self._unless_erased(reported.phone),
                is_mismatch_of_paid=is_of_paid,
                reviewed_at=None,
                updated_at=at,
                due_at=None,
                claim=None,
            )
            if row["status"] == Status.PENDING.value:
                # For an ended payment they state its end.
                self._set(result_code=reported.code, result_desc=self._text(reported.text))
        elif detail in self._noted:
            return
        else:
            # The first review does not cover this one.
            is_of_paid = is_of_paid or row["is_mismatch_of_paid"]
            self._set(is_mismatch_of_paid=is_of_paid, reviewed_at=None, updated_at=at)
        self._noted.add(detail)
        self._step(at, "mismatched", cause, reported.code, detail)
        self._publish_mismatch(of, reported.amount_shown, reported.receipt)
        self.log_events.append(("payment_mismatched", {"of": of, "cause": cause.value}))

    def _confirm(self, decision: Confirm, reported: ReportedMoney | None, at: datetime) -> None:
        row = self.row
        if reported is not None:
            expires_at = max(row["expires_at"], at + decision.within)
            phone, text = self._unless_erased(reported.phone), self._text(reported.text)
            claim = msgspec.structs.replace(reported, phone=phone, text=text)
            self._set(claim=dumps(claim), due_at=at, expires_at=expires_at, updated_at=at)
            self._step(at, "confirming", Cause.CALLBACK, reported.code, reported.text)
        elif row["status"] == Status.PENDING.value and row["due_at"] is not None and row["due_at"] > at:
            self._set(due_at=at)

    def _drop_claim(self, refuted: str | None, at: datetime) -> None:
        is_asked_about = self.row["status"] == Status.PENDING.value or self.row["failure_reason"] == "expired"
        self._set(claim=None, updated_at=at, due_at=self.row["due_at"] if is_asked_about else None)
        if refuted is not None:
            self._step(at, "unconfirmed", Cause.STK_QUERY, None, refuted)
            self.log_events.append(("callback_refuted", {}))

    def _publish_other_phone(self, reported: ReportedMoney) -> None:
        self._publish_mismatch("phone", Kes(self.row["amount"]).wire, reported.receipt)

    def _publish_mismatch(self, of: str, amount: str | None, receipt: str | None) -> None:
        fields = event_fields(self.row)
        self.events.append(PaymentMismatched(**fields, mismatch=of, received_amount=amount, received_receipt=receipt))
