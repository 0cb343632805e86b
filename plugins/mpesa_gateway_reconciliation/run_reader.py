"""Reads reconciliation runs: one, a list of them, or the lines of one."""

from mpesa_gateway.cursors import decode_cursor, decode_position, encode_cursor
from mpesa_gateway.db.asking import Asking
from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.errors import NotFound
from mpesa_gateway.http.envelope import Meta, Page
from mpesa_gateway.http.pagination import page_of
from mpesa_gateway.security.scopes import Env
from mpesa_gateway_reconciliation import tables
from mpesa_gateway_reconciliation.schemas import (
    RowsQuery,
    RunPage,
    RunsQuery,
    RunView,
    line_view,
    run_view,
    run_with_rows,
)


class RunReader:
    """Reads the runs of a merchant in an env."""

    def __init__(self, *, db: Database, reads: Asking) -> None:
        """``reads`` answers the lists: a replica where there is one."""
        self._db = db
        self._reads = reads

    async def get(self, merchant_id: str, env: Env, run_id: str) -> RunView:
        """Return a run of this merchant in ``env``. Raises NotFound."""
        return run_view(await self._require(merchant_id, env, run_id))

    async def page(self, merchant_id: str, env: Env, filters: RunsQuery) -> Page[RunView]:
        """Return the merchant's runs of ``env``, newest first. Raises Invalid for a bad cursor."""
        at, run_id = decode_position(filters.cursor, env) if filters.cursor else (None, "")
        rows = await self._reads.fetch(tables.RUNS, merchant_id, env, at, run_id, filters.limit + 1)
        total = await self._reads.fetchval(tables.COUNT_RUNS, merchant_id, env) if filters.count else None
        return page_of(
            rows,
            filters.limit,
            env=env,
            view=run_view,
            position=lambda row: (row["started_at"], row["run_id"]),
            total=total,
        )

    async def rows(self, merchant_id: str, env: Env, run_id: str, filters: RowsQuery) -> RunPage:
        """Return a run with its lines, oldest first. Raises NotFound, and Invalid for a bad cursor."""
        run = await self._require(merchant_id, env, run_id)
        after = decode_cursor(filters.cursor, 1)[0] if filters.cursor else ""
        rows = await self._reads.fetch(tables.RUN_LINES, run_id, filters.outcome, after, filters.limit + 1)
        shown, has_more = rows[: filters.limit], len(rows) > filters.limit
        return RunPage(
            data=run_with_rows(run, [line_view(row, row["run_finding"]) for row in shown]),
            meta=Meta(
                limit=filters.limit,
                has_more=has_more,
                next_cursor=encode_cursor(shown[-1]["line_id"]) if has_more else None,
            ),
        )

    async def _require(self, merchant_id: str, env: Env, run_id: str) -> Found:
        row = await tables.find_run(self._db, run_id)
        if row is None or (row["merchant_id"], row["env"]) != (merchant_id, env):
            raise NotFound("there is no such reconciliation run")
        return row
