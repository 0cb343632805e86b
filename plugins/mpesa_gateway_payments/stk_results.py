"""Takes STK callbacks: what Daraja reports about the end of a push moves its payment."""

from collections.abc import Sequence
from datetime import timedelta

import asyncpg
import structlog

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway_callbacks.api import AnotherSubject, Callbacks
from mpesa_gateway_payments import due_sql, tables
from mpesa_gateway_payments.events import StkResulted
from mpesa_gateway_payments.evidence import Evidence, Proof, has_receipt_of_unknown, read_callback
from mpesa_gateway_payments.judging import judge, judge_other_push, speaks_of
from mpesa_gateway_payments.many import Endings
from mpesa_gateway_payments.result_codes import Outcome, stk_outcome
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import Cause, Status
from mpesa_gateway_payments.transitions import Transitions, told_of
from mpesa_gateway_payments.verdicts import Confirm, Mismatch, payment_of

log = structlog.get_logger(__name__)


class StkResults:
    """Moves payments by their STK callbacks, one at a time or several in one transaction."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        settings: PaymentsSettings,
        callbacks: Callbacks,
        moves: Transitions,
        endings: Endings,
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._rules = settings.rules
        self._callbacks = callbacks
        self._moves = moves
        self._endings = endings

    async def take_result(self, result: StkResulted) -> None:
        """Take a callback inside the transaction that stores it: the payment moves, or nothing does.

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
            # The payer was erased, and this callback reports a payment: with its id M-Pesa can be queried.
            await self._db.execute(tables.RELEARN_CHECKOUT, row["payment_id"], told)
        if outcome.is_paid:
            is_applied = await self._take_callback(row, evidence, result)
        elif evidence.proof is Proof.NONE:
            # Nothing proves who says so. M-Pesa is asked at once.
            await self._db.execute(due_sql.ASK_NOW, row["payment_id"], self._clock.now())
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
            await self._callbacks.mark_applied(result.callback_id)

    async def take_results(self, results: Sequence[StkResulted]) -> None:
        """Take several callbacks of one transaction; the unusual ones among them are put aside."""
        await self._endings.take(results)

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
        await self._callbacks.mark_applied(result.callback_id)

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
