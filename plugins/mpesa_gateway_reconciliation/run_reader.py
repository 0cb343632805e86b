"""Reads of reconciliation runs."""

from mpesa_gateway.db.engine import Database, Found
from mpesa_gateway.db.keyset import Conditions
from mpesa_gateway.errors import NotFound
from mpesa_gateway.http.envelope import Page
from mpesa_gateway.http.pagination import meta_of, page_of
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

    def __init__(self, *, db: Database) -> None:
        self._db = db

    async def get(self, merchant_id: str, env: Env, run_id: str) -> RunView:
        """Raises NotFound."""
        return run_view(await self._require(merchant_id, env, run_id))

    async def page(self, merchant_id: str, env: Env, filters: RunsQuery) -> Page[RunView]:
        """Raises InvalidFields for a bad cursor."""
        found = Conditions(env, merchant_id)
        page = await tables.RUNS.page(self._db, found, filters.cursor, filters.limit, count=filters.count)
        return page_of(page.map(run_view))

    async def rows(self, merchant_id: str, env: Env, run_id: str, filters: RowsQuery) -> RunPage:
        """Return a run with its lines, oldest first. Raises NotFound, and InvalidFields for a bad cursor."""
        run = await self._require(merchant_id, env, run_id)
        found = tables.lines_of(run, filters.outcome)
        page = await tables.RUN_LINES.page(self._db, found, filters.cursor, filters.limit)
        rows = [line_view(row, row["run_finding"]) for row in page.rows]
        return RunPage(data=run_with_rows(run, rows), meta=meta_of(page))

    async def _require(self, merchant_id: str, env: Env, run_id: str) -> Found:
        row = await tables.find_run(self._db, run_id)
        if row is None or (row["merchant_id"], row["env"]) != (merchant_id, env):
            raise NotFound("there is no such reconciliation run")
        return row
