"""Protects against deadlocks: every transaction locks rows in one order (docs/reliability.md)."""

import ast
import asyncio
import importlib
import os
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from mpesa_gateway.db.named import Named
from mpesa_gateway.db.star_expansion import StarExpansion
from mpesa_gateway.ids import uuid_of
from mpesa_gateway_payments import tables, transition_sql
from tests.collisions import PLAYED, Collisions
from tests.conftest import Harness
from tests.daraja import Daraja
from tests.house.tree import ROOT, parsed, shipped_modules
from tests.locks import RANKS, TURN, Recorder, count_deadlocks, lockings, tables_of, unsorted_changes
from tests.owner import as_owner
from tests.paths import Paths
from tests.rare_paths import RarePaths

ROUNDS = int(os.environ.get("MPESA_GATEWAY_TEST_ROUNDS", "40"))
"""`just deadlocks 10000` runs 10,000."""

SHARE = 200
"""Rounds on one database: each round takes longer with more rows."""

_ALONE = "alone in its transaction, and its order is read from its text"
_LIVE = "live receivers only: locks one receiver, then one shortcode, then the audit log"
_TIMED = "run by a timer, which is at times quicker than the test; its order is read from its text"

_PEOPLE = "locks merchants by ascending id, then members and the audit log: tests/plugins/ops/test_people_races.py"

UNPLAYED = {
    "mpesa_gateway.db.outbox.DUE_TASKS": _TIMED,
    "mpesa_gateway_callbacks.tables.COUNT_REPEATED": _ALONE,
    "mpesa_gateway_credentials.tables.LOCK_RECEIVER": _LIVE,
    "mpesa_gateway_ops.tables.LOCK_MERCHANT": _PEOPLE,
    "mpesa_gateway_ops.tables.LOCK_MERCHANTS_OF_PERSON": _PEOPLE,
    "mpesa_gateway_payments.due_sql.CLAIM_DUE_OF": _TIMED,
    "mpesa_gateway_webhooks.tables.CANCEL": _ALONE,
    "mpesa_gateway_webhooks.tables.CLAIM_OF_ENDPOINT": _ALONE,
    "mpesa_gateway_webhooks.tables.RELEASE": _ALONE,
    "mpesa_gateway_webhooks.tables.MAKE_WAIT": _ALONE,
    "mpesa_gateway_webhooks.tables.DEFER": _ALONE,
    "plugins/mpesa_gateway_credentials/ownership.py: allow_use": _LIVE,
    "plugins/mpesa_gateway_credentials/ownership.py: move_receiver": _LIVE,
    "plugins/mpesa_gateway_credentials/reader.py: accepted": _LIVE,
    "plugins/mpesa_gateway_credentials/reader.py: _note_verified": _ALONE,
    "plugins/mpesa_gateway_payments/due_sql.py: set_next_query": _TIMED,
    "plugins/mpesa_gateway_payments/due_sql.py: claim_due": _TIMED,
    "plugins/mpesa_gateway_reconciliation/service.py: _beat": _ALONE,
    "plugins/mpesa_gateway_payments/erasure.py: _erase": "the case's checks and steps are locked before, by NOWAIT",
    "plugins/mpesa_gateway_credentials/service.py: _wipe": "locks one merchant, then one shortcode, then the audit log",
}
"""Statements that lock rows, and functions that build such queries, that no path runs, with the reason."""

PLAIN = {
    "audit_checkpoint": "written by audit_cut() alone, which one process at a time runs",
    "audit_policy": "written by a migration",
    "body_form": "inserted one row at a time, never changed",
    "gateway_secret": "written one row at a time",
    "migration": "written by one process at a time",
    "ops_note": "written one row at a time",
    "membership": "inserted or deleted while its merchant is locked",
    "person": "written one row at a time",
    "person_invitation": "deleted, and inserted one row at a time",
    "person_recovery_code": "written while its person is locked",
    "ops_session": "deleted, and written one row at a time",
    "pull_registration": "written one row at a time",
    "refused_callback": "inserted, and locked without waiting",
    "store_number": "inserted while its shortcode is locked",
    "webhook_former_address": "inserted while its endpoint is locked",
}
"""Tables without a place in the order, with the reason."""


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Status queries run on demand only."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "refunds": {"query_after": [3600]},
        "reconciliation": {"tries": 1, "page_pause": 0},
    }


@pytest.fixture
def of_tests() -> bool:
    """Return True if the test's own statements are recorded."""
    return False


@pytest.fixture
async def recorder(harness: Harness, of_tests: bool) -> AsyncGenerator[Recorder]:
    """Record the locks of each transaction from now on."""
    found = Recorder(of_tests=of_tests)
    async with as_owner(harness.gateway) as owner:
        await found.install(owner)
    with pytest.MonkeyPatch.context() as patch:
        found.follow(patch)
        yield found


@pytest.mark.usefixtures("initiated")
async def test_code_paths_lock_in_the_order_of_the_tables(harness: Harness, daraja: Daraja, recorder: Recorder) -> None:
    for path in RarePaths(harness, daraja).all():
        await path
    assert list(recorder.wrong) == []
    # Only recorded paths can prove an order.
    assert RANKS.keys() & {TURN, *recorder.catalogue.primary} == recorder.seen
    assert set(unplayed(recorder, harness.gateway.db.columns)) - UNPLAYED.keys() == set()
    assert {name for name in recorder.unranked if not name.startswith("sim_")} == PLAIN.keys()


_PARAMETER = re.compile(r"\$\d+")


def _text(sql: str) -> str:
    """Normalise spaces and parameter numbers: deferred writes are sent as one statement."""
    return _PARAMETER.sub("$", " ".join(sql.split()))


def unplayed(recorder: Recorder, columns: StarExpansion) -> Iterator[str]:
    """Return the product's locking statements and query-building functions that no path ran."""
    ran = "\n".join(map(_text, recorder.statements))
    for name, sql in statements():
        if tables_of(sql) & RANKS.keys() and not any(_text(one) in ran for one in (sql, columns.spell_out(sql))):
            yield name
    callers = {(Path(file), name) for file, name in recorder.callers}
    for path in shipped_modules():
        if "simulator" not in path.as_posix():
            for name, table in builders(path):
                if table in RANKS and (path, name) not in callers:
                    yield f"{path.relative_to(ROOT).as_posix()}: {name}"


def builders(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the functions of a module that build an UPDATE, DELETE or INSERT with Piccolo, with the table."""
    for function in ast.walk(parsed(path)):
        if isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef):
            for node in ast.walk(function):
                match node:
                    case ast.Attribute(ast.Name(row), "update" | "delete" | "insert") if row.endswith("Row"):
                        yield function.name, vars(module_of(path))[row]._meta.tablename
                    case _:
                        pass


def module_of(path: Path) -> ModuleType:
    """Return the module of a shipped file."""
    name = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("plugins/").replace("/", ".")
    return importlib.import_module(name.removesuffix(".__init__"))


def statements() -> Iterator[tuple[str, str]]:
    """Return the statements that modules of the product name, by name."""
    for path in shipped_modules():
        name = path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("plugins/").replace("/", ".")
        if name.endswith(("__main__", "pytest_plugin")) or "simulator" in name:
            continue
        for constant, value in vars(module_of(path)).items():
            sql = value.sql if isinstance(value, Named) else value
            if isinstance(sql, str) and any(word in sql for word in ("UPDATE", "DELETE FROM ", "INSERT INTO ")):
                yield f"{name}.{constant}", sql


def test_statement_on_several_rows_locks_them_in_order(recorder: Recorder) -> None:
    found = dict(statements())
    assert [name for name, sql in found.items() if unsorted_changes(sql, recorder.catalogue)] == []
    assert len(found) > 60
    for name, sql in found.items():
        for clause in lockings(sql):
            for table in clause.tables:
                is_sorted = table not in RANKS or clause.is_sorted(table, recorder.catalogue)
                assert not clause.waits or is_sorted, name


# -- violations are found -----------------------------------------------------------------------------------------

TWO = "SELECT payment_id FROM payment WHERE payment_id = ANY($1::uuid[])"
MARK = "UPDATE payment SET updated_at = now()"
KEY = (
    "UPDATE idempotency_key SET leased_until = now() "
    "WHERE digest = (SELECT digest FROM idempotency_key ORDER BY digest LIMIT 1)"
)


@pytest.mark.parametrize("of_tests", [True])
@pytest.mark.parametrize(
    ("statements", "found"),
    [
        pytest.param([f"{TWO} ORDER BY payment_id FOR UPDATE"], [], id="sorted"),
        pytest.param([f"{TWO} FOR UPDATE"], ["rows of payment are locked in no order"], id="unsorted"),
        pytest.param([f"{TWO} FOR UPDATE SKIP LOCKED"], [], id="skips"),
        pytest.param([f"{TWO} FOR UPDATE NOWAIT"], [], id="does not wait"),
        pytest.param(["FIRST", "SECOND"], [], id="ascending"),
        pytest.param(["SECOND", "FIRST"], ["payment FIRST after a greater one"], id="descending"),
        pytest.param(["SECOND", "FIRST", "SECOND"], ["payment FIRST after a greater one"], id="held already"),
        pytest.param([f"{MARK} WHERE amount = 500"], ["payment FIRST after a greater one"], id="as Postgres goes"),
        pytest.param([KEY, "FIRST"], [], id="key before payment"),
        pytest.param(["FIRST", KEY], ["idempotency_key after payment"], id="payment before key"),
        pytest.param(
            [f"WITH one AS ({TWO} ORDER BY payment_id FOR UPDATE) {KEY} AND EXISTS (SELECT FROM one)"],
            ["idempotency_key after payment"],
            id="in one statement",
        ),
        pytest.param(
            ["SAVEPOINT one", "FIRST", "ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one", KEY], [], id="undone"
        ),
    ],
)
async def test_lock_out_of_order_is_found(
    harness: Harness, daraja: Daraja, recorder: Recorder, statements: list[str], found: list[str]
) -> None:
    paths, db = Paths(harness, daraja), harness.gateway.db
    first, second = sorted([(await paths.pay())["id"] for _ in range(2)])
    # Now after the other one in the order of the tables.
    await db.execute(f"{MARK} WHERE payment_id = $1", first)
    lock: dict[str, tuple[str, list[str]]] = {"FIRST": (tables.LOCK, [first]), "SECOND": (tables.LOCK, [second])}
    async with db.transaction():
        for sql in statements:
            if "SAVEPOINT" in sql:
                await db.execute(sql)
                continue
            statement, ids = lock.get(sql, (sql, [first, second]))
            await db.fetch(statement, *([ids] if "$1" in statement else []))
    wrong = [one.partition(":")[0].replace(f"('{UUID(bytes=uuid_of(first))}',)", "FIRST") for one in recorder.wrong]
    assert wrong == found


@pytest.mark.parametrize("of_tests", [True])
async def test_unordered_insert_is_found(harness: Harness, recorder: Recorder) -> None:
    sql = """
    INSERT INTO outgoing_receipt (env, number, receipt, noted_at)
    SELECT 'sandbox', '174379', t.receipt, now() FROM unnest($1::text[]) AS t(receipt)
    """
    await harness.gateway.db.execute(sql, ["OUT0000001", "OUT0000002"])
    assert list(recorder.wrong) == []
    await harness.gateway.db.execute(sql, ["OUT0000004", "OUT0000003"])
    assert [one.partition(":")[0] for one in recorder.wrong] == ["rows of outgoing_receipt are inserted in no order"]


# -- all paths concurrently ---------------------------------------------------------------------------------------


@pytest.fixture
async def quick_to_see(database_url: str) -> None:
    """Set a short deadlock_timeout for every connection from now on."""
    connection = await asyncpg.connect(database_url)
    name = database_url.rpartition("/")[2]
    await connection.execute(f"ALTER DATABASE \"{name}\" SET deadlock_timeout = '20ms'")
    await connection.close()


END_OTHERS = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

RUNNING = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY($1::integer[]))"

DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


async def deadlocks_of(database_url: str) -> int:
    """Return the deadlocks that Postgres has counted in a database; ends all connections to it."""
    connection = await asyncpg.connect(database_url)
    try:
        # A connection reports its counts after a while, or when it ends.
        ended = [row["pid"] for row in await connection.fetch(END_OTHERS)]
        while await connection.fetchval(RUNNING, ended):  # noqa: ASYNC110 - Postgres has no event for it
            await asyncio.sleep(0.05)
        return int(await connection.fetchval(DEADLOCKS))
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("seed", "rounds"), [(7 + at, min(SHARE, ROUNDS - at * SHARE)) for at in range(-(-ROUNDS // SHARE))]
)
@pytest.mark.usefixtures("quick_to_see", "initiated")
async def test_code_paths_run_concurrently_cause_no_deadlock(
    harness: Harness,
    daraja: Daraja,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
    seed: int,
    rounds: int,
) -> None:
    found = count_deadlocks(monkeypatch, dawdle=0.004)
    collisions = Collisions(Paths(harness, daraja), seed=seed)
    await collisions.play(rounds)
    assert await harness.gateway.db.fetchval("SHOW deadlock_timeout") == "20ms"
    counted = await deadlocks_of(database_url)
    record_property(PLAYED, {"rounds": rounds, "deadlocks": counted, "paths": dict(collisions.played)})
    assert found == []
    assert counted == 0
    assert collisions.failed == []


@pytest.mark.usefixtures("quick_to_see", "initiated")
async def test_statement_read_again_and_status_answer_cause_no_deadlock(
    harness: Harness, daraja: Daraja, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = count_deadlocks(monkeypatch, dawdle=0.004)
    paths = Paths(harness, daraja)
    for _ in range(ROUNDS // 2):
        _, receipt = await paths.read_before_paid()
        await asyncio.gather(paths.read_line(receipt), paths.answered(receipt))
    assert found == []
    assert await deadlocks_of(database_url) == 0


@pytest.mark.usefixtures("quick_to_see")
async def test_deadlock_is_counted(
    harness: Harness, daraja: Daraja, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = count_deadlocks(monkeypatch)
    paths, db, both = Paths(harness, daraja), harness.gateway.db, asyncio.Barrier(2)
    first, second = [(await paths.pay())["id"] for _ in range(2)]

    async def lock(*payments: str) -> None:
        async with db.transaction():
            await db.fetchrow(tables.LOCK, [payments[0]])
            await both.wait()
            await db.fetchrow(tables.LOCK, [payments[1]])

    outcomes = await asyncio.gather(lock(first, second), lock(second, first), return_exceptions=True)
    assert [type(one) for one in outcomes if one is not None] == [asyncpg.DeadlockDetectedError]
    assert len(found) == 1
    assert await deadlocks_of(database_url) == 1


SLOWLY = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$;
CREATE TRIGGER a_slow_one BEFORE UPDATE ON payment FOR EACH ROW EXECUTE FUNCTION slowly();
"""
"""Two statements that each update two payments overlap."""


async def test_batches_with_receipts_in_opposite_order_cause_no_deadlock(harness: Harness, daraja: Daraja) -> None:
    """The batches have different payments: only the receipts, which are unique, make one wait for the other."""
    paths, db = Paths(harness, daraja), harness.gateway.db
    ids = [(await paths.pay())["id"] for _ in range(4)]
    async with as_owner(harness.gateway) as owner:
        await owner.execute(SLOWLY)

    async def end(payments: list[str], receipts: list[str]) -> None:
        now = harness.gateway.clock.now()
        async with db.transaction():
            rows = {row["payment_id"]: dict(row) for row in await db.fetch(tables.READ, payments)}
            paid = {"status": "completed", "completed_at": now, "completed_by": "callback", "due_at": None}
            changed = [rows[one] | paid | {"receipt": receipt} for one, receipt in zip(payments, receipts, strict=True)]
            columns = ([row[name] for row in changed] for name in transition_sql.WRITTEN)
            await db.fetch(transition_sql.UPDATE_PAYMENTS, *columns)

    receipts = ["SAME000001", "SAME000002"]
    found = await asyncio.gather(end(ids[:2], receipts), end(ids[2:], receipts[::-1]), return_exceptions=True)
    # One of them is first; the receipts of the other one are then used.
    assert [type(one) for one in found if one is not None] == [asyncpg.UniqueViolationError]
    assert await db.fetchval("SELECT count(*) FROM payment WHERE receipt IS NOT NULL") == 2
