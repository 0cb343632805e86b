"""STK callbacks and their effect on payments."""

from collections.abc import Sequence

import asyncpg
import structlog
from piccolo.columns.combination import WhereRaw

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway_callbacks.api import Callbacks, DifferentSubject
from mpesa_gateway_payments import tables
from mpesa_gateway_payments.decisions import Decision, Refuse, StkCallback, result_of
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.evidence import read_callback
from mpesa_gateway_payments.matching import names_payment
from mpesa_gateway_payments.result_codes import stk_outcome
from mpesa_gateway_payments.tables import PaymentRow
from mpesa_gateway_payments.transitions import Transitions
from mpesa_gateway_payments.verdicts import payment_of

log = structlog.get_logger(__name__)

_HANDLE = "payment_checkout_request_id"
"""The unique constraint on a CheckoutRequestID in one env."""


class StkResults:
    """Applies STK callbacks to payments."""

    def __init__(self, *, db: Database, callbacks: Callbacks, transitions: Transitions) -> None:
        self._db = db
        self._callbacks = callbacks
        self._transitions = transitions

    async def apply_results(self, results: Sequence[StkResulted]) -> None:
        """Apply callbacks in the transaction that stores them, all or none.

        A callback for an unknown payment stays waiting, as does one without a token if a sandbox and a live payment
        have its handle. Payments are locked; in a batch only for the write, which fails if one has changed or is
        locked. Raises DifferentSubject.
        """
        if self._callbacks.is_batch:
            reports = await self._reports(results)
            for (_, report), decisions in zip(reports, await self._transitions.apply_batch(reports), strict=True):
                await self._finish(report.result, decisions)
            return
        for result in results:
            for row, report in await self._reports([result]):
                await self._finish(result, await self._apply_one(row, report))

    async def _apply_one(self, row: Row, report: StkCallback) -> tuple[Decision, ...]:
        try:
            return await self._transitions.apply(row, report)
        except asyncpg.UniqueViolationError as problem:
            if problem.constraint_name != _HANDLE:
                raise
            raise DifferentSubject("this callback is about another payment than its address") from None

    async def _reports(self, results: Sequence[StkResulted]) -> list[tuple[Row, StkCallback]]:
        return [
            (row, StkCallback(result, names_another=await self._names_another(row, result)))
            for row, result in await self._find(results)
        ]

    async def _find(self, results: Sequence[StkResulted]) -> list[tuple[Row, StkResulted]]:
        ids = sorted({result.subject_id for result in results if result.subject_id})
        handles = sorted({result.checkout_request_id or "" for result in results if not result.subject_id})
        if self._callbacks.is_batch:
            named = await self._db.read_unlocked(tables.READ, ids) if ids else []
            alike = await self._db.read_unlocked(tables.READ_BY_CHECKOUT, handles) if handles else []
        else:
            named = await self._db.fetch(tables.LOCK, ids) if ids else []
            alike = await self._db.fetch(tables.LOCK_BY_CHECKOUT, handles) if handles else []
        by_id = {row["payment_id"]: [row] for row in named}
        by_handle: dict[str | None, list[Row]] = {}
        for row in alike:
            by_handle.setdefault(row["checkout_request_id"], []).append(row)
        found: list[tuple[Row, StkResulted]] = []
        for result in results:
            has_token = bool(result.subject_id)
            rows = by_id.get(result.subject_id, ()) if has_token else by_handle.get(result.checkout_request_id, ())
            if len(rows) == 1:
                found.append((rows[0], result))
            else:
                log.warning("callback_without_payment", callback_id=result.callback_id)
        return found

    async def _names_another(self, row: Row, result: StkResulted) -> bool:
        is_paid = stk_outcome(result.result_code, result.result_desc).is_paid
        if not is_paid or not result.subject_id or names_payment(read_callback(result), payment_of(row)):
            return False
        log.error("paid_callback_of_another_push", payment_id=row["payment_id"])
        return bool(
            await self._db.run(
                PaymentRow.exists().where(
                    WhereRaw(tables.HAS_HANDLE, result.checkout_request_id or ""),
                    PaymentRow.env == row["env"],
                    PaymentRow.payment_id != row["payment_id"],
                )
            )
        )

    async def _finish(self, result: StkResulted, decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            if isinstance(decision, Refuse):
                raise DifferentSubject(decision.reason)
        if result_of(decisions) != "waiting":
            await self._callbacks.mark_applied(result.callback_id)
