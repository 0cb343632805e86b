"""Operators' use cases for the reconciliation of all merchants."""

from collections.abc import Sequence
from typing import Any, Literal

from mpesa_gateway.clock import Clock
from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway.db.keyset import Conditions, KeysetList, KeysetPage, OperatorQuery, Total
from mpesa_gateway.env import Env
from mpesa_gateway.erasure import ERASED
from mpesa_gateway.errors import Conflict, NotFound, require_found
from mpesa_gateway.http.confirmation import require_reason
from mpesa_gateway.security.audit import Audit
from mpesa_gateway_payments.api import Payments, PaymentView, Similar
from mpesa_gateway_reconciliation import tables
from mpesa_gateway_reconciliation.line_matching import LineMatching
from mpesa_gateway_reconciliation.tables import NoteRow, RegistrationRow

LINES = KeysetList(table="noted_line", key="line_id", time="paid_at", prefix="txn")

_MOST_CANDIDATES = 10


class LinesQuery(OperatorQuery, frozen=True, kw_only=True):
    """Filters of the unresolved lines."""

    finding: Literal["not_found", "mismatched", "ambiguous"] | None = None


class ReconciliationOperatorService:
    """Lists runs and lines for operators and resolves lines."""

    def __init__(
        self, *, db: Database, clock: Clock, audit: Audit, payments: Payments, line_matching: LineMatching
    ) -> None:
        self._db = db
        self._clock = clock
        self._audit = audit
        self._payments = payments
        self._line_matching = line_matching

    async def runs(self, env: Env, query: OperatorQuery, limit: int) -> KeysetPage[Row]:
        """Raises InvalidFields for a bad cursor."""
        return await tables.RUNS.page(self._db, Conditions(env, query.merchant), query.cursor, limit)

    async def run(self, run_id: str) -> Found:
        """Raises NotFound."""
        run = await tables.find_run(self._db, run_id)
        if run is None:
            raise NotFound("there is no such reconciliation run")
        return run

    async def run_lines(self, run: Found, finding: str | None, cursor: str | None, limit: int) -> KeysetPage[Row]:
        """Return a run's lines with their findings then. Raises InvalidFields for a bad cursor."""
        return await tables.RUN_LINES.page(self._db, tables.lines_of(run, finding), cursor, limit)

    async def unresolved(self, env: Env, query: LinesQuery, limit: int) -> KeysetPage[Row]:
        """Raises InvalidFields for a bad cursor."""
        return await LINES.page(self._db, _unresolved(env, query), query.cursor, limit)

    async def total(self, env: Env, query: LinesQuery) -> Total:
        """Return the number of unresolved lines and the sum of their readable amounts."""
        return await LINES.total(self._db, _unresolved(env, query))

    async def count_unresolved(self, env: Env, merchant_id: str | None) -> tuple[int, int]:
        """Return the number of lines that contradict a payment or fit several, and of all unresolved lines."""
        row = await self._db.fetchrow(tables.COUNT_UNRESOLVED, env, merchant_id)
        return (0, 0) if row is None else (row["conflicting"], row["total"])

    async def count_failing(self, env: Env, merchant_id: str | None) -> int:
        return int(await self._db.fetchval(tables.COUNT_FAILING, [env], merchant_id))

    async def line(self, line_id: str) -> Row:
        """Raises NotFound."""
        return require_found(await self._db.fetchrow(tables.FIND_LINE, line_id), "there is no such statement line")

    async def runs_of(self, line_id: str) -> list[Row]:
        return await self._db.fetch(tables.RUNS_OF_LINE, line_id)

    async def lines_of(self, payment_id: str) -> list[Row]:
        return await self._db.fetch(tables.LINES_OF_PAYMENT, payment_id)

    async def candidates(self, line: Row) -> list[PaymentView]:
        """Return the judge's candidates, then similar unpaid payments if the line's time is possible."""
        payments, merchant_id = self._payments, line["merchant_id"]
        named = [await payments.find(payment_id) for payment_id in await self._line_matching.candidates(line)]
        similar: list[PaymentView] = []
        if line["is_timed"]:
            similar = await payments.find_similar(
                merchant_id,
                line["env"],
                Similar(
                    amount=line["amount"],
                    phone=None if line["phone"] == ERASED else line["phone"],
                    reference=line["reference"],
                    before=max(line["moments"]),
                ),
            )
        found = {one.id: one for one in (*named, *similar) if one is not None and one.merchant_id == merchant_id}
        return list(found.values())[:_MOST_CANDIDATES]

    async def registrations(self, merchant_id: str, env: Env) -> Sequence[Found]:
        rows: list[dict[str, Any]] = await self._db.run(
            RegistrationRow.select()
            .where(RegistrationRow.merchant_id == merchant_id, RegistrationRow.env == env)
            .order_by(RegistrationRow.registered_at, ascending=False)
        )
        return rows

    async def dismiss(self, line_id: str, reason: str, *, actor: str) -> None:
        """Set a line aside: later runs skip it. Raises InvalidFields, NotFound and Conflict."""
        now = self._clock.now()
        require_reason(reason, "what this money is")
        if (await self.line(line_id))["finding"] == "already_known":
            raise Conflict("this line's money is allocated already")
        async with self._db.transaction():
            rows = await self._db.run(
                NoteRow.update(
                    {
                        NoteRow.set_aside_at: now,
                        NoteRow.set_aside_by: actor,
                        NoteRow.set_aside_reason: reason,
                    }
                )
                .where(
                    NoteRow.transaction_id == line_id,
                    NoteRow.finding.is_in(["not_found", "mismatched", "ambiguous"]),
                    NoteRow.set_aside_at.is_null(),
                )
                .returning(NoteRow.merchant_id, NoteRow.env, NoteRow.finding)
            )
            if not rows:
                await self.line(line_id)
                raise Conflict("this line belongs to a payment, or is already dismissed")
            (row,) = rows
            await self._audit.record(
                "statement_line.set_aside",
                merchant_id=row["merchant_id"],
                actor=actor,
                subject_id=line_id,
                env=row["env"],
                detail={"finding": row["finding"]},
            )

    async def dismiss_all(self, run_id: str, reason: str, *, actor: str) -> int:
        """Set aside a run's lines without a payment; return their number. Raises InvalidFields and NotFound."""
        now, run = self._clock.now(), await self.run(run_id)
        require_reason(reason, "what this money is")
        async with self._db.transaction():
            rows = await self._db.fetch(tables.SET_ASIDE_OF_RUN, run_id, now, actor, reason)
            await self._audit.record(
                "statement_lines.set_aside",
                merchant_id=run["merchant_id"],
                actor=actor,
                subject_id=run_id,
                env=run["env"],
                detail={"count": len(rows)},
            )
        return len(rows)


def _unresolved(env: Env, query: LinesQuery) -> Conditions:
    found = Conditions(env, query.merchant)
    found.add(tables.UNRESOLVED)
    found.equal(finding=query.finding)
    return found
