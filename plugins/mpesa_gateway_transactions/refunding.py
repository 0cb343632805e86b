"""The port through which the refunds plugin returns money that pays no payment."""

from typing import Any

import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, InvalidFields, NotFound, ProviderNotConfigured, require_found
from mpesa_gateway.money import Kes
from mpesa_gateway_transactions import allocation_sql
from mpesa_gateway_transactions.allocating import AllocationRules, incoming_money, is_shown_in
from mpesa_gateway_transactions.announcing import report_of
from mpesa_gateway_transactions.api import (
    Allocations,
    RefundableMoney,
    RefundedMoney,
    ReportedTransaction,
    ReservedMoney,
    Subject,
    Transactions,
)
from mpesa_gateway_transactions.listing import owner_of
from mpesa_gateway_transactions.tables import TransactionRow

log = structlog.get_logger(__name__)

# raw SQL: join
_FIND = """
SELECT transaction.*, receiver.number, receiver.kind AS receiver_kind, receiver.owner_id, shortcode_id FROM transaction
    JOIN receiver USING (receiver_id, env)
    LEFT JOIN shortcode ON shortcode.receiver_id = receiver.receiver_id AND shortcode.merchant_id = $2
WHERE transaction_id = $1
"""

# raw SQL: lock - a refund is locked before its transaction, and an allocation waits for the amounts.
LOCK = f"{_FIND} FOR UPDATE OF transaction"


class TransactionRefunds:
    """Implements ``RefundableTransactions``."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        transactions: Transactions,
        rules: AllocationRules,
        allocations: Allocations,
    ) -> None:
        self._db = db
        self._clock = clock
        self._transactions = transactions
        self._rules = rules
        self._allocations = allocations

    async def offer(self, merchant_id: str, env: Env, transaction_id: str) -> None:
        row = await self._db.fetchrow(_FIND, transaction_id, merchant_id)
        if row is None or row["env"] != env or not _may_refund(row, merchant_id) or not _is_offered(row):
            return
        try:
            async with self._db.transaction():
                await self._allocations.receive([report_of(row)])
        except ConcurrentUpdate:
            # Another transaction has decided about the money: ``reserve`` sees its decision.
            return

    async def find(self, transaction_id: str) -> RefundableMoney:
        row = require_found(await self._db.fetchrow(_FIND, transaction_id, None), "there is no such transaction")
        merchant_id, refusal = owner_of(row), None
        try:
            _require_refundable(row, merchant_id)
            await self._refuse_claimed(row, merchant_id)
        except Conflict as problem:
            refusal = problem.message
        return RefundableMoney(
            transaction_id=row["transaction_id"],
            env=row["env"],
            merchant_id=merchant_id,
            receipt=row["receipt"],
            payer=row["payer"],
            amount=Kes((row["amount_cents"] or 0) // 100),
            left=Kes(0 if refusal else _left(row) // 100),
            refusal=refusal,
        )

    async def reserve(self, merchant_id: str, env: Env, transaction_id: str, amount: Kes | None) -> ReservedMoney:
        row = await self._db.fetchrow(LOCK, transaction_id, merchant_id)
        if row is None or row["env"] != env or not _may_refund(row, merchant_id):
            raise NotFound("there is no such transaction")
        _require_refundable(row, merchant_id)
        await self._refuse_claimed(row, merchant_id)
        left = _left(row)
        if amount is None and left >= 100 and left % 100:
            raise InvalidFields.field_error(
                "amount",
                f"M-Pesa reverses whole shillings, and {_kes(left)} of this transaction are left: "
                f"send an amount of at most {left // 100}",
            )
        wanted = left if amount is None else int(amount) * 100
        if row["shortcode_id"] is None:
            raise ProviderNotConfigured(
                f"you have no credentials of {env} shortcode {row['number']}: store them, then ask for the refund again"
            )
        await self._reserve(row, wanted)
        return ReservedMoney(
            transaction_id=row["transaction_id"],
            number=row["number"],
            shortcode_id=row["shortcode_id"],
            receipt=row["receipt"],
            amount=Kes(wanted // 100),
            amount_cents=row["amount_cents"],
            left_cents=left - wanted,
            subject=_subject(row),
        )

    async def reserve_again(self, transaction_id: str, amount: Kes) -> None:
        row = await self._db.fetchrow(LOCK, transaction_id, None)
        if row is None:
            raise Conflict("the transaction is gone")
        _require_refundable(row, row["merchant_id"])
        await self._reserve(row, int(amount) * 100)

    async def _refuse_claimed(self, row: Row, merchant_id: str) -> None:
        """Raises Conflict for unallocated money that may be a payment's."""
        if not _is_unallocated(row):
            return
        known = {**dict(row), "kind": row["receiver_kind"], "money_kind": row["kind"]}
        claim = await self._rules.claim(incoming_money(report_of(row), known))
        if claim is None:
            return
        is_ours = claim.merchant_id == merchant_id
        subject = claim.subject.subject_id if is_ours else "a payment of another merchant of this shortcode"
        asked = f" (POST /v1/payments/mpesa/check-status/{subject})" if is_ours else ""
        raise Conflict(
            f"this money may be that of {subject}, whose receipt is not known yet: wait for its receipt{asked}, "
            f"or mark the money as dealt with (POST /v1/transactions/{row['transaction_id']}/allocate with a note), "
            "then ask for the refund again; a success of that payment without a receipt then needs review"
        )

    async def _reserve(self, row: Row, wanted: int) -> None:
        left = _left(row)
        if wanted > left or wanted < 100:
            raise Conflict(
                f"{_kes(left)} of this transaction can still be refunded: {_kes(row['refunded_cents'])} are refunded, "
                f"and {_kes(row['refund_reserved_cents'])} are reserved"
            )
        await self._change(
            row["transaction_id"], {TransactionRow.refund_reserved_cents: TransactionRow.refund_reserved_cents + wanted}
        )

    async def release(self, transaction_id: str, amount: Kes) -> None:
        left = TransactionRow.refund_reserved_cents - int(amount) * 100
        await self._change(transaction_id, {TransactionRow.refund_reserved_cents: left})

    async def complete(
        self, merchant_id: str, transaction_id: str, refund_id: str, amount: Kes, receipt: str | None
    ) -> RefundedMoney:
        cents = int(amount) * 100
        row = await self._db.fetchrow(LOCK, transaction_id, None)
        if row is None or row["refund_reserved_cents"] < cents:
            raise RuntimeError(f"{refund_id} has no reserved amount on {transaction_id}")
        await self._change(
            transaction_id,
            {
                TransactionRow.refund_reserved_cents: TransactionRow.refund_reserved_cents - cents,
                TransactionRow.refunded_cents: TransactionRow.refunded_cents + cents,
                # ``transaction.refunded`` announces the money.
                TransactionRow.announce_at: None,
            },
        )
        if receipt is not None:
            await self._record_outgoing(row, merchant_id, refund_id, cents, receipt)
        money = RefundedMoney(
            transaction_id=row["transaction_id"],
            env=row["env"],
            receiver_id=row["receiver_id"],
            number=row["number"],
            merchant_id=row["merchant_id"],
            receipt=row["receipt"],
            amount_cents=row["amount_cents"],
            refund_id=refund_id,
            refund_cents=cents,
            refunded_cents=row["refunded_cents"] + cents,
            account_number=row["account_number"],
            subject=_subject(row),
        )
        await self._rules.notify_refunded(money)
        return money

    async def _change(self, transaction_id: str, values: dict[Any, Any]) -> None:
        await self._db.run(TransactionRow.update(values).where(TransactionRow.transaction_id == transaction_id))

    async def has_come_in(self, env: Env, receipt: str) -> bool:
        row = await self._db.fetchrow(allocation_sql.SHOWN_IN, env, receipt)
        return row is not None and (row["subject_id"] is not None or is_shown_in(row["sources"], row["kind"]))

    async def _record_outgoing(self, row: Row, merchant_id: str, refund_id: str, cents: int, receipt: str) -> None:
        seen = ReportedTransaction(
            source="reversal",
            env=row["env"],
            number=row["number"],
            merchant_id=merchant_id,
            direction="out",
            receipt=receipt,
            occurred_at=self._clock.now(),
            amount_cents=cents,
            subject=Subject("refund", refund_id),
        )
        if list(await self._transactions.record([seen])) == [None]:
            # M-Pesa has carried out the refund.
            log.error("reversal_receipt_of_other_money", refund_id=refund_id, receipt=receipt)


def _may_refund(row: Row, merchant_id: str) -> bool:
    return merchant_id in {row["owner_id"], owner_of(row)}


def _require_refundable(row: Row, merchant_id: str) -> None:
    if row["direction"] != "in":
        raise Conflict("this transaction is money out: only money in can be refunded")
    if row["subject_kind"] == "payment" and row["merchant_id"] == merchant_id:
        raise Conflict(f"this transaction pays {row['subject_id']}: refund that payment, with `payment_id`")
    if row["subject_kind"] == "payment":
        raise Conflict("this transaction pays another merchant's payment, and is refunded by that merchant")
    if row["reversed_outside"] is not None:
        raise Conflict(
            "M-Pesa reports that this money was reversed outside this gateway: check the amount on its portal"
        )
    if row["amount_cents"] is None:
        raise Conflict("M-Pesa has reported no readable amount of this transaction: check it on M-Pesa's portal")


def _is_unallocated(row: Row) -> bool:
    return row["subject_id"] is None and row["conflict_id"] is None


def _is_offered(row: Row) -> bool:
    is_refunded = row["refund_reserved_cents"] + row["refunded_cents"] > 0
    return row["direction"] == "in" and _is_unallocated(row) and not is_refunded


def _left(row: Row) -> int:
    return int(row["amount_cents"] - row["refunded_cents"] - row["refund_reserved_cents"])


def _subject(row: Row) -> Subject | None:
    return None if row["subject_kind"] is None else Subject(row["subject_kind"], row["subject_id"])


def _kes(cents: int) -> str:
    return f"KES {cents // 100}" if cents % 100 == 0 else f"KES {cents // 100}.{cents % 100:02}"
