"""Application of reversals' results and of the answers to status queries."""

from contextlib import suppress

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.errors import ProviderNotConfigured
from mpesa_gateway.ids import renamed
from mpesa_gateway_callbacks.api import Callbacks, DifferentSubject
from mpesa_gateway_callbacks.events import QueryResulted
from mpesa_gateway_credentials.api import Credentials
from mpesa_gateway_payments.api import Direction, read_direction, transaction_state
from mpesa_gateway_payments.events import StatusResulted
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.completion import CAME_IN, DONE, RefundCompletion
from mpesa_gateway_refunds.events import ReversalResulted
from mpesa_gateway_refunds.result_codes import ReversalOutcome, reversal_outcome
from mpesa_gateway_refunds.source import source_of
from mpesa_gateway_refunds.subjects import ABOUT_PAYMENT, ABOUT_REVERSAL
from mpesa_gateway_refunds.tables import RefundRow, pending

log = structlog.get_logger(__name__)

_NO_RECEIPT = "M-Pesa reports success without naming the transaction: check its portal"
_UNKNOWN_RESULT = "M-Pesa reports a result that proves nothing about the money: check its portal:"
_NOT_HOW_MUCH = "M-Pesa reports that this payment was reversed before, and not how much of it: check its portal"


class ReversalResults:
    """Updates refunds by results of reversals and answers to status queries."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        callbacks: Callbacks,
        credentials: Credentials,
        completion: RefundCompletion,
    ) -> None:
        self._db = db
        self._clock = clock
        self._callbacks = callbacks
        self._credentials = credentials
        self._completion = completion

    async def apply_result(self, result: ReversalResulted) -> None:
        """Apply a result in the transaction that stores it. The result of an unknown refund keeps waiting."""
        row = await self._find(result)
        if row is None:
            return
        if result.receipt is not None and result.receipt != row["receipt"]:
            raise DifferentSubject("this result is about the reversal of other money")
        if result.timed_out:
            await self._db.run(
                RefundRow.update({RefundRow.due_at: self._clock.now()}).where(
                    *pending(row["refund_id"]), RefundRow.attention.is_null()
                )
            )
        elif result.is_final and not await self._end(row, result):
            # The money is reserved for another refund. The result waits until that one ends.
            return
        await self._callbacks.mark_applied(result.callback_id)

    async def apply_status(self, result: StatusResulted) -> None:
        """Apply the answer to a status query about a refund, in the transaction that stores the callback."""
        prefix = result.subject_id.partition("_")[0]
        if prefix not in {ABOUT_REVERSAL, ABOUT_PAYMENT}:
            return
        row = await self._db.fetchrow(tables.LOCK, renamed(result.subject_id, ABOUT_REVERSAL))
        if row is None:
            return
        if result.is_final and not result.timed_out and row["status"] == "pending" and result.result_code == "0":
            # The query decides what the answer is about, unless the answer has the payment's own receipt.
            if prefix == ABOUT_PAYMENT or result.receipt == row["receipt"]:
                await self._apply_payment_status(row, result)
            else:
                await self._apply_reversal_status(row, result)
        await self._callbacks.mark_applied(result.callback_id)

    async def _end(self, row: Found, result: ReversalResulted) -> bool:
        """Apply a final result. Returns False if it has to wait."""
        outcome = reversal_outcome(result.result_code, result.result_desc)
        code, text = result.result_code, result.result_desc
        if outcome.word == "reversed":
            if result.amount_text is not None and result.amount != row["amount"]:
                await self._completion.require_review(row, f"M-Pesa reports KES {result.amount_text} as sent back")
                return True
            if result.receipt is None:
                # Results of payouts and balance queries have no OriginalTransactionID.
                await self._completion.require_review(row, _NO_RECEIPT)
                return True
            return await self._completion.complete(row, outcome, code, text, result.reversal_receipt)
        if row["status"] == "completed":
            if outcome.word != "already_reversed":
                await self._completion.require_review(
                    row, f"M-Pesa later reported this refund as failed: {code} {text}"
                )
        elif not outcome.is_known and row["status"] == "pending":
            # An unknown code does not prove that no money was sent back: the amount stays reserved.
            await self._completion.require_review(row, f"{_UNKNOWN_RESULT} {code} {text}".rstrip())
        elif outcome.word != "already_reversed":
            await self._completion.fail(row, outcome, code=code, text=text)
        elif await self._has_amount(row):
            await self._verify(row, code, text)
        else:
            await self._completion.require_review(row, _NOT_HOW_MUCH)
        return True

    async def _has_amount(self, row: Found) -> bool:
        """Return True if this refund is the only possible reason for the money's reversal.

        M-Pesa reports money as reversed without the amount.
        """
        may_be_partly_reversed = await self._db.run(
            RefundRow.exists().where(
                source_of(row).condition,
                RefundRow.refund_id != row["refund_id"],
                RefundRow.amount < RefundRow.original_amount,
                RefundRow.reversal.not_in(["unsent", "refused"]),
            )
        )
        return row["amount"] == row["original_amount"] and not may_be_partly_reversed

    async def _verify(self, row: Found, code: str, text: str) -> None:
        now = self._clock.now()
        await self._db.run(
            RefundRow.update(
                {
                    RefundRow.reversal: "verifying",
                    RefundRow.result_code: code,
                    RefundRow.result_desc: text,
                    RefundRow.asked: 0,
                    RefundRow.due_at: now,
                    RefundRow.attention: None,
                    RefundRow.updated_at: now,
                }
            ).where(*pending(row["refund_id"]))
        )

    async def _apply_payment_status(self, row: Found, result: StatusResulted) -> None:
        """Apply the state of the payment: ``Reversed`` is proof; after R000001 every final state counts."""
        state = transaction_state(result.transaction_status)
        if result.receipt not in {None, row["receipt"]} or state == "pending":
            return
        is_verifying = row["reversal"] == "verifying"
        if state == "partially_reversed":
            # M-Pesa does not name the refund of a partial reversal.
            if is_verifying:
                await self._completion.require_review(row, _NOT_HOW_MUCH)
            return
        if not is_verifying and state != "reversed":
            return
        if result.receipt is None:
            # The answer may be about another payment.
            await self._completion.require_review(row, _NO_RECEIPT)
            return
        is_other_amount = result.amount_text is not None and result.amount != row["original_amount"]
        if is_other_amount or (is_verifying and state == "failed"):
            of = "" if result.amount_text is None else f" of KES {result.amount_text}"
            reversed_too = "both already reversed and " if is_verifying else ""
            await self._completion.require_review(row, f"M-Pesa reports {reversed_too}{result.transaction_status}{of}")
        elif not await self._has_amount(row):
            await self._completion.require_review(row, _NOT_HOW_MUCH)
        elif is_verifying:
            await self._completion.complete(
                row, reversal_outcome("R000001"), row["result_code"], row["result_desc"], None
            )
        else:
            await self._completion.complete(row, DONE, result.result_code, result.result_desc, None)

    async def _apply_reversal_status(self, row: Found, result: StatusResulted) -> None:
        """Apply the state of the reversal, queried by the conversation in its ack."""
        state = transaction_state(result.transaction_status)
        if state == "failed":
            outcome = ReversalOutcome(
                "other", f"M-Pesa reports {result.transaction_status}", "request the refund again"
            )
            await self._completion.fail(row, outcome, code=result.result_code, text=outcome.meaning)
        elif state == "completed" and result.amount_text is not None and result.amount != row["amount"]:
            await self._completion.require_review(row, f"M-Pesa reports KES {result.amount_text} as sent back")
        elif state == "completed" and result.receipt is None:
            await self._completion.require_review(row, _NO_RECEIPT)
        elif state == "completed" and read_direction(result.payees, await self._numbers(row)) is Direction.IN:
            await self._completion.require_review(row, CAME_IN)
        elif state == "completed":
            await self._completion.complete(row, DONE, result.result_code, result.result_desc, result.receipt)

    async def _numbers(self, row: Found) -> set[str]:
        numbers = {row["shortcode"]}
        with suppress(ProviderNotConfigured):
            known = await self._credentials.of_shortcode(row["shortcode_id"])
            numbers |= {known.shortcode, known.store_number or known.shortcode}
        return numbers

    async def _find(self, result: QueryResulted) -> Found | None:
        if result.subject_id:
            row = await self._db.fetchrow(tables.LOCK, result.subject_id)
        else:
            row = await self._db.fetchrow(
                tables.LOCK_BY_HANDLE, result.originator_conversation_id, result.conversation_id
            )
        if row is None:
            return None
        if result.merchant_id and (result.merchant_id, result.env) != (row["merchant_id"], row["env"]):
            raise DifferentSubject("this result is about a refund of another merchant or env")
        pairs = (
            (row["originator_conversation_id"], result.originator_conversation_id),
            (row["conversation_id"], result.conversation_id),
        )
        known = [(ours, theirs) for ours, theirs in pairs if ours and theirs]
        if known and all(ours != theirs for ours, theirs in known):
            raise DifferentSubject("this result is about another refund than its address")
        return row
