"""Allocation of incoming money by people."""

from typing import Any

from mpesa_gateway.clock import Clock, rfc3339
from mpesa_gateway.db.deferred import ConcurrentUpdate
from mpesa_gateway.db.engine import Database
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Conflict, InvalidFields, require_found
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_transactions import allocation_sql
from mpesa_gateway_transactions.allocating import AllocationRules, IncomingMoneyRecorder, incoming_money
from mpesa_gateway_transactions.announcing import report_of
from mpesa_gateway_transactions.api import Allocated, Assignment, NotAllocatable, Subject
from mpesa_gateway_transactions.listing import allocations_of, find_transaction, owner_of
from mpesa_gateway_transactions.schemas import LONGEST_NOTE, SHORTEST_NOTE, Allocate
from mpesa_gateway_transactions.tables import TransactionRow
from mpesa_gateway_transactions.views import Values


class AlreadyAllocated(Conflict):
    """The money has a subject: the message names it, who allocated it and when."""


class _Repeated(Exception):
    """The same person has made the same decision before."""


class ManualAllocation:
    """Allocates money once; of two people, the first one wins."""

    def __init__(
        self, *, db: Database, clock: Clock, audit: Audit, rules: AllocationRules, incoming: IncomingMoneyRecorder
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._rules = rules
        self._incoming = incoming

    async def allocate(
        self,
        merchant_id: str | None,
        env: Env,
        transaction_id: str,
        wanted: Allocate,
        *,
        actor: str,
        is_whole: bool = False,
    ) -> None:
        """Allocate to a payment, or with a note alone mark as dealt with.

        ``merchant_id`` is None for the host's operators, who may decide against the rule. With ``is_whole``, money of
        which a part was refunded is refused. Raises InvalidFields,
        NotFound, AlreadyAllocated or NotAllocatable. A repetition by the same actor changes nothing.
        """
        note = None if wanted.note is None else mask_phones(wanted.note.strip())
        if note is not None and not SHORTEST_NOTE <= len(note) <= LONGEST_NOTE:
            raise InvalidFields.field_error("note", "must be 3 to 500 characters")
        if wanted.payment_id is None and note is None:
            raise InvalidFields.field_error("note", "send a payment_id, or a note that states what the money is for")
        row = await find_transaction(self._db, merchant_id, env, transaction_id)
        if row["direction"] != "in":
            raise NotAllocatable("this money went out: only money in is allocated")
        try:
            if wanted.payment_id is None:
                await self._offer_to_rules(row, note, actor)
            async with self._db.transaction():
                await self._allocate(merchant_id, row, wanted.payment_id, note, actor, is_whole=is_whole)
        except _Repeated:
            return

    async def _offer_to_rules(self, row: Values, note: str | None, actor: str) -> None:
        """Money that a rule claims is no longer for a person to decide."""
        if row["subject_id"] is not None:
            return
        try:
            async with self._db.transaction():
                (one,) = await self._incoming.receive([report_of(row)])
        except ConcurrentUpdate:
            # Another transaction has decided about the money: the lock below sees its decision.
            return
        if one.subject is not None:
            former = await allocations_of(self._db, row["transaction_id"])
            if not former or former[-1]["by"] not in self._rules.names:
                taken = await find_transaction(self._db, None, row["env"], row["transaction_id"])
                await self._refuse(taken, Subject("resolved", row["transaction_id"]), note, actor)
            raise NotAllocatable(f"M-Pesa's evidence fits {one.subject.subject_id}: the money is allocated to it")

    async def _allocate(
        self,
        merchant_id: str | None,
        row: Values,
        payment_id: str | None,
        note: str | None,
        actor: str,
        *,
        is_whole: bool,
    ) -> None:
        transaction_id = row["transaction_id"]
        wanted = Subject("resolved", transaction_id) if payment_id is None else Subject("payment", payment_id)

        async def lock() -> None:
            locked = require_found(
                await self._db.fetchrow(allocation_sql.LOCK, transaction_id), "there is no such transaction"
            )
            if locked["subject_id"] is not None:
                await self._refuse(locked, wanted, note, actor)
            _refuse_refunded(locked, payment_id, is_whole=is_whole)

        if row["subject_id"] is not None:
            await self._refuse(row, wanted, note, actor)
        _refuse_refunded(row, payment_id, is_whole=is_whole)
        owner = owner_of(row)
        if payment_id is None:
            await lock()
            resolved: dict[Any, Any] = {
                TransactionRow.subject_kind: wanted.kind,
                TransactionRow.subject_id: wanted.subject_id,
                TransactionRow.merchant_id: owner,
                TransactionRow.announce_at: None,
            }
            await self._db.run(
                TransactionRow.update(resolved).where(
                    TransactionRow.transaction_id == transaction_id, TransactionRow.subject_id.is_null()
                )
            )
        else:
            known = {**dict(row), "kind": row["receiver_kind"], "money_kind": row["kind"]}
            choice = Assignment(
                money=incoming_money(report_of(row), known),
                subject_id=payment_id,
                merchant_id=merchant_id,
                by_operator=merchant_id is None,
                lock=lock,
            )
            found = await self._rules.assign("payment", choice)
            wanted, owner = found.subject, found.merchant_id
        await self._incoming.note(
            [
                Allocated(
                    transaction_id=transaction_id,
                    env=row["env"],
                    receiver_id=row["receiver_id"],
                    merchant_id=owner,
                    receipt=row["receipt"],
                    amount_cents=row["amount_cents"],
                    subject=wanted,
                    by=actor,
                )
            ],
            note,
        )
        await self._audit.record(
            "transaction.allocated",
            merchant_id=owner,
            actor=actor,
            subject_id=transaction_id,
            env=row["env"],
            detail={"to": wanted.subject_id, "kind": wanted.kind, "note": note},
        )

    async def _refuse(self, row: Values, wanted: Subject, note: str | None, actor: str) -> None:
        """Raises AlreadyAllocated, or _Repeated for the same decision of the same actor."""
        former = await allocations_of(self._db, row["transaction_id"])
        subject = Subject(row["subject_kind"], row["subject_id"])
        by = f"by {former[-1]['by']} at {rfc3339(former[-1]['at'])}" if former else "by a report of M-Pesa"
        if former and subject == wanted and (former[-1]["by"], former[-1]["note"]) == (actor, note):
            raise _Repeated
        what = "marked as dealt with" if subject.kind == "resolved" else f"allocated to {subject.subject_id}"
        raise AlreadyAllocated(f"this money was {what} {by}")


def _refuse_refunded(row: Values, payment_id: str | None, *, is_whole: bool) -> None:
    if row["refund_reserved_cents"]:
        raise NotAllocatable("a refund of this money is pending: decide when it has ended")
    if (row["refunded_cents"] or row["reversed_outside"]) and payment_id is not None:
        raise NotAllocatable("money of this transaction was returned: it pays no payment, mark it as dealt with")
    if (row["refunded_cents"] or row["reversed_outside"]) and is_whole:
        raise NotAllocatable("this money was returned to its payer: it pays no order")
