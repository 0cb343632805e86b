"""Use cases of refunds: reserve the money, commit, and send the reversal."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

from mpesa_gateway.clock import Clock
from mpesa_gateway.db import idempotency
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.db.idempotency import KeyMismatch, KeyRequired
from mpesa_gateway.db.outcomes import OutcomeWriter
from mpesa_gateway.errors import Conflict
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.ids import Ids
from mpesa_gateway.security.audit import Audit
from mpesa_gateway.security.scopes import Caller, Env
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_refunds import tables
from mpesa_gateway_refunds.listing import export_refunds, find_refund, list_refunds
from mpesa_gateway_refunds.money import RefundMoney
from mpesa_gateway_refunds.reversal_sender import ReversalSender
from mpesa_gateway_refunds.schemas import CreateRefund, RefundFilters, RefundQuery, RefundView, read_amount
from mpesa_gateway_refunds.settings import RefundsSettings
from mpesa_gateway_refunds.source import RefundSource, read_source, source_of
from mpesa_gateway_refunds.tables import RefundRow
from mpesa_gateway_refunds.views import view

_OPERATION = "refunds.request"

_TRIES = 5
"""Attempts to create a refund while concurrent requests change refunds of the same money."""


class _WholeRefundExists(Exception):
    """A refund of the whole remaining amount was created, or has failed, since the look-up."""


class _RefundExists(Exception):
    """A refund has this Idempotency-Key, and the record of the key has expired."""

    def __init__(self, row: Found) -> None:
        super().__init__()
        self.row = row


class RefundService:
    """Creates and reads refunds. A reversal is sent once: its outcome is queried, never repeated."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        ids: Ids,
        settings: RefundsSettings,
        audit: Audit,
        outcomes: OutcomeWriter,
        public_url: Callable[[str], str],
        run_to_completion: Callable[[Coroutine[Any, Any, Found]], Awaitable[Found]],
        money: RefundMoney,
        credentials: Credentials,
        sender: ReversalSender,
    ) -> None:
        """``run_to_completion`` finishes its work even if its caller is cancelled."""
        self._db = db
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._audit = audit
        self._outcomes = outcomes
        self._public_url = public_url
        self._run_to_completion = run_to_completion
        self._money = money
        self._credentials = credentials
        self._sender = sender

    async def request(self, caller: Caller, body: CreateRefund, key: str | None) -> tuple[RefundView, bool]:
        """Refund a payment or transaction; returns the refund, and True if an earlier request made it.

        Without ``amount`` a pending or completed refund of the whole remaining amount is returned; with ``amount`` a
        key is required. Raises InvalidFields, KeyRequired, NotFound, KeyMismatch, KeyInProgress, ProviderNotConfigured,
        ProviderRejected, Conflict if the money cannot be refunded, ProviderUnavailable if nothing was sent, and
        ExternalCallInTransaction.
        """
        self._db.refuse_transaction("asking for a refund")
        self._outcomes.require_room()
        source, amount = read_source(body), read_amount(body.amount)
        if amount is not None and key is None:
            raise KeyRequired(
                "send an Idempotency-Key header with `amount`: without it a repeated request would refund twice. "
                "Omit `amount` to refund the whole remaining amount"
            )
        await self._money.offer(caller.merchant_id, caller.env, source)
        try:
            row, credentials = await self._claim(caller, body, source, key)
        except _RefundExists as found:
            return view(_same(found.row, body)), True
        if credentials is not None:
            # A disconnected caller must not cancel the record of the reversal.
            row = await self._run_to_completion(self._sender.send(row, credentials, key))
        return view(row), credentials is None

    async def _claim(
        self, caller: Caller, body: CreateRefund, source: RefundSource, key: str | None
    ) -> tuple[Found, MpesaCredentials | None]:
        """Return the refund with its money reserved, and the receiver's credentials; None for a replay."""
        for _ in range(_TRIES):
            try:
                async with self._db.transaction():
                    return await self._claim_now(caller, body, source, key)
            except _WholeRefundExists:
                # The next attempt sees the other request's refund.
                continue
        raise Conflict(f"other requests change this {source.noun}'s refunds now: try again")

    async def _claim_now(
        self, caller: Caller, body: CreateRefund, source: RefundSource, key: str | None
    ) -> tuple[Found, MpesaCredentials | None]:
        now = self._clock.now()
        refund_id = self._ids.new("rfd", now)
        amount = read_amount(body.amount)
        # A key refers to the refund that it was claimed for: here an existing refund of the whole amount, if any.
        is_again = False
        found = None if amount is not None else await self._find_whole(caller, source)
        subject_id = found or refund_id
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
                        **source.named,
                        "amount": None if amount is None else int(amount),
                        "reason": body.reason,
                    },
                ),
                subject_id=subject_id,
                now=now,
                lease=timedelta(seconds=self._settings.create_lease),
            )
            if not claim.is_ours:
                return await find_refund(self._db, caller.merchant_id, caller.env, claim.subject_id), None
            if claim.subject_id == subject_id:
                await self._refuse_old(caller.merchant_id, caller.env, key)
            else:
                # The refund is locked before its money, as when a result is applied.
                refund_id, is_again = claim.subject_id, True
                await self._db.fetchrow(tables.LOCK, refund_id)
        whole = None if amount is not None else await self._lock_whole(caller, source)
        if whole is None and not is_again and subject_id != refund_id:
            # It failed after ``_find_whole``.
            raise _WholeRefundExists
        if whole is not None:
            if key is not None and is_again:
                # The key's own refund was never sent. It can be sent later, if this one fails.
                await idempotency.release(self._db, merchant_id=caller.merchant_id, env=caller.env, key=key)
            elif key is not None and subject_id != whole["refund_id"]:
                raise _WholeRefundExists
            elif key is not None:
                await idempotency.settle(self._db, merchant_id=caller.merchant_id, env=caller.env, key=key)
            return whole, None
        return await self._insert(caller, body, source, key, refund_id)

    async def _insert(
        self, caller: Caller, body: CreateRefund, source: RefundSource, key: str | None, refund_id: str
    ) -> tuple[Found, MpesaCredentials]:
        """Raises _WholeRefundExists if a whole refund exists."""
        now, amount = self._clock.now(), read_amount(body.amount)
        try:
            async with self._db.savepoint():
                reserved = await self._money.reserve(caller.merchant_id, caller.env, source, amount, refund_id)
        except Conflict:
            if amount is None and await self._find_whole(caller, source):
                raise _WholeRefundExists from None
            raise
        # The money is now locked, so no other refund of it is created.
        has_whole = await self._find_whole(caller, source) is not None
        if has_whole and amount is None:
            raise _WholeRefundExists
        credentials = await self._credentials.of_shortcode(reserved.shortcode_id)
        credentials.initiator_for("a refund")
        row = await self._db.fetchrow(
            *tables.INSERT.bind(
                refund_id=refund_id,
                merchant_id=caller.merchant_id,
                payment_id=source.payment_id,
                transaction_id=source.transaction_id,
                env=caller.env,
                amount=int(reserved.amount),
                original_amount=int(reserved.original_amount),
                receipt=reserved.receipt,
                reason=body.reason or "",
                idempotency_key=key,
                due_at=now + timedelta(seconds=self._settings.create_lease),
                created_at=now,
                shortcode=reserved.shortcode,
                shortcode_id=reserved.shortcode_id,
                is_whole=not has_whole and reserved.is_rest,
            )
        )
        if row is None:
            raise Conflict("this refund is pending: check its status before another request")
        allocated = {} if reserved.allocated_to is None else {"allocated_to": reserved.allocated_to}
        await self._audit.record(
            "refund.requested",
            merchant_id=caller.merchant_id,
            actor=caller.actor,
            subject_id=refund_id,
            env=caller.env,
            detail=source.named | allocated | {"amount": reserved.amount.wire},
        )
        return row, credentials

    async def _lock_whole(self, caller: Caller, source: RefundSource) -> Row | None:
        if source.payment_id is not None:
            return await self._db.fetchrow(tables.LOCK_WHOLE, caller.merchant_id, caller.env, source.payment_id)
        return await self._db.fetchrow(
            tables.LOCK_WHOLE_OF_TRANSACTION, caller.merchant_id, caller.env, source.transaction_id
        )

    async def _find_whole(self, caller: Caller, source: RefundSource) -> str | None:
        row: dict[str, str] | None = await self._db.run(
            RefundRow.select(RefundRow.refund_id)
            .where(
                RefundRow.merchant_id == caller.merchant_id,
                RefundRow.env == caller.env,
                source.condition,
                RefundRow.is_whole.eq(value=True),
                RefundRow.status != "failed",
            )
            .first()
        )
        return None if row is None else row["refund_id"]

    async def _refuse_old(self, merchant_id: str, env: Env, key: str) -> None:
        """Raise _RefundExists if an old refund has the key, which never makes a second one."""
        row = await self._db.run(
            RefundRow.select()
            .where(RefundRow.merchant_id == merchant_id, RefundRow.env == env, RefundRow.idempotency_key == key)
            .first()
        )
        if row is not None:
            raise _RefundExists(row)

    async def get(self, merchant_id: str, env: Env, refund_id: str) -> RefundView:
        return view(await find_refund(self._db, merchant_id, env, refund_id))

    def url_of(self, refund_id: str) -> str:
        return self._public_url(f"/v1/refunds/{refund_id}")

    async def page(self, merchant_id: str, env: Env, filters: RefundQuery) -> Page[RefundView]:
        """Raises InvalidFields for a bad cursor."""
        return await list_refunds(self._db, merchant_id, env, filters)

    def export(self, merchant_id: str, env: Env, filters: RefundFilters) -> AsyncGenerator[list[Sequence[Any]]]:
        return export_refunds(self._db, merchant_id, env, filters)


def _same(row: Found, body: CreateRefund) -> Found:
    """Return the refund if it fits the body. Raises KeyMismatch."""
    amount = read_amount(body.amount)
    if source_of(row) != read_source(body) or amount not in {None, row["amount"]}:
        raise KeyMismatch("this Idempotency-Key was used with another request: send a new key, or the same body")
    return row
