"""Records the rows that each transaction locks, in Postgres's order, and finds locks out of order.

Row triggers report each written row from within Postgres. ``FOR UPDATE`` reports nothing: the parser of Postgres finds
it in the text of the statement, and its rows have this transaction as their ``xmax``.
"""

import asyncio
import importlib
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, cast

import asyncpg
import pytest
from pglast import parse_sql
from pglast.enums import LockWaitPolicy, SortByDir
from pglast.parser import ParseError
from pglast.visitors import Visitor

from mpesa_gateway.db import engine

ast: Any = importlib.import_module("pglast.ast")
"""The kinds of nodes. Their fields are all optional to the type checker, unlike in the grammar."""

ORDER: tuple[tuple[str, ...], ...] = (
    ("callback_turn",),
    ("idempotency_key",),
    ("payout_account",),
    ("payout_batch",),
    # Refer to a payment, and are locked before it.
    ("refund", "payout", "status_check", "reconciliation_run"),
    ("payment",),
    ("transaction",),
    ("account_number",),
    # A statement line is a witness of a transaction: its payment and transaction are locked before.
    ("statement_note",),
    # Inserted, or changed by one process at a time.
    (
        "reconciliation_line",
        "transaction_witness",
        "allocation",
        "account_entry",
        "outgoing_receipt",
        "payment_step",
        "payment_stats",
        "event",
        "event_task",
        "delivery",
        "attempt",
        "callback",
    ),
    # Settings, and the last outcome of a call or a delivery.
    ("merchant",),
    ("c2b_address",),
    ("receiver",),
    ("shortcode",),
    ("api_key", "webhook_endpoint"),
    ("audit_entry",),
)
"""The tables in the order in which every transaction locks rows of them. Tables in one group have no order.

Tables of future plugins are listed already: a table must be on a path once the database has it.
"""

RANKS: Mapping[str, int] = {table: rank for rank, group in enumerate(ORDER) for table in group}

TURN = "callback_turn"
"""The advisory lock of one callback, as if it were a row."""

BY: Mapping[str, tuple[str, ...]] = {
    "transaction": ("env", "direction", "receipt"),
    # The row of the idempotency key is locked before and separates two payments of one key.
    "payment": ("payment_id",),
}
"""The unique key by which rows of a table are sorted, where that is not plain: the primary key, or for a row that is
inserted the unique key by which another transaction could wait for it."""

FRESH = {"event", "event_task", "transaction_witness", "allocation", "payment_step"}
"""Tables whose new rows no transaction can wait for: an event's id is made for it, a witness and an allocation are
written while their row of ``transaction`` is locked, and a step while its payment is. Rows of earlier tables may be
locked after they were inserted."""

SETTINGS = {"merchant", "receiver", "shortcode", "api_key", "webhook_endpoint"}
"""Tables whose rows are not referred to while they are locked by FOR UPDATE."""

UNORDERED = SETTINGS | {"reconciliation_line"}
"""Tables whose rows have no order among themselves: one transaction at a time changes several of them. It has locked
their merchant, or it is of the process whose run they belong to."""

Key = tuple[Any, ...]


# -- the text of a statement ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Locking:
    """One locking clause of a statement."""

    tables: tuple[str, ...]
    waits: bool
    order: tuple[str, ...]
    """The columns by which it sorts, ascending, until the first that is something else."""
    equals: frozenset[str]
    """The columns that have to equal a parameter."""
    is_one: bool
    """True if it ends with ``LIMIT 1``."""
    after: frozenset[str]
    """The tables that parts of the statement write before it."""

    def is_sorted(self, table: str, catalogue: "Catalogue") -> bool:
        """Return True if rows of a table are locked in ascending order of its key, or there is at most one."""
        left = tuple(name for name in catalogue.by(table) if name not in self.equals)
        unique = (catalogue.primary[table], *catalogue.unique[table])
        return self.is_one or any(map(self.equals.issuperset, unique)) or self.order[: len(left)] == left


def _name(node: Any) -> str | None:
    if isinstance(node, ast.ColumnRef) and node.fields and isinstance(node.fields[-1], ast.String):
        return cast("str", node.fields[-1].sval)
    return None


def _is_parameter(node: Any) -> bool:
    while isinstance(node, ast.TypeCast):
        node = node.arg
    if isinstance(node, ast.FuncCall):  # a digest of parameters
        return bool(node.args) and all(map(_is_parameter, node.args))
    return isinstance(node, (ast.ParamRef, ast.A_Const))


def _equalities(node: Any) -> Iterator[str]:
    if isinstance(node, ast.BoolExpr) and node.boolop.name == "AND_EXPR":
        for arg in node.args or ():
            yield from _equalities(arg)
    elif isinstance(node, ast.A_Expr) and node.kind.name == "AEXPR_OP" and node.name[0].sval == "=":
        name = _name(node.lexpr)
        if name is not None and _is_parameter(node.rexpr):
            yield name


def _sources(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.RangeVar):
        yield node.relname, node.alias.aliasname if node.alias else node.relname
    elif isinstance(node, ast.JoinExpr):
        yield from _sources(node.larg)
        yield from _sources(node.rarg)


class _Reader(Visitor):
    """Collects locking clauses, table names and written tables below a node."""

    def __init__(self) -> None:
        self.selects: list[Any] = []
        self.names: set[str] = set()
        self.written: list[str] = []
        self.changes: list[Any] = []
        self.calls: set[str] = set()
        self.ctes: list[Any] = []

    def visit_SelectStmt(self, _: object, node: Any) -> None:  # noqa: N802 - pglast's name
        if node.lockingClause:
            self.selects.append(node)

    def visit_RangeVar(self, _: object, node: Any) -> None:  # noqa: N802 - pglast's name
        self.names.add(node.relname)

    def visit_FuncCall(self, _: object, node: Any) -> None:  # noqa: N802 - pglast's name
        self.calls.add(node.funcname[-1].sval)

    def visit_CommonTableExpr(self, _: object, node: Any) -> None:  # noqa: N802 - pglast's name
        self.ctes.append(node)

    def visit_InsertStmt(self, _: object, node: Any) -> None:  # noqa: N802 - pglast's name
        self.written.append(node.relation.relname)

    def visit_UpdateStmt(self, _: object, node: Any) -> None:  # noqa: N802 - pglast's name
        self.changes.append(node)
        self.written.append(node.relation.relname)

    visit_DeleteStmt = visit_UpdateStmt  # noqa: N815 - pglast's name


def _read(node: Any) -> _Reader:
    reader = _Reader()
    reader(node)
    return reader


@lru_cache(maxsize=4096)
def inserts(sql: str, table: str) -> int:
    """Return the number of INSERTs into a table in a statement."""
    return len(re.findall(rf"\bINSERT INTO {table}\b", sql, re.IGNORECASE))


@lru_cache(maxsize=4096)
def lockings(sql: str) -> tuple[Locking, ...]:
    """Return the locking clauses of a statement in order; none for a text that is not valid SQL."""
    if "UPDATE" not in sql.upper() and "pg_advisory_xact_lock" not in sql:
        return ()
    try:
        parsed = parse_sql(sql)
    except ParseError:
        return ()
    return tuple(locking for raw in parsed for locking in _lockings(raw.stmt))


def _lockings(statement: Any) -> Iterator[Locking]:
    whole = _read(statement)
    parts = {cte.ctename: _read(cte.ctequery) for cte in whole.ctes}

    def written_before(names: Iterable[str], seen: frozenset[str] = frozenset()) -> set[str]:
        found: set[str] = set()
        for name in set(names) & parts.keys() - seen:
            found |= set(parts[name].written) | written_before(parts[name].names, seen | {name})
        return found

    if "pg_advisory_xact_lock" in whole.calls:
        yield Locking((TURN,), waits=True, order=(), equals=frozenset(), is_one=True, after=frozenset())
    for select in whole.selects:
        sources = [pair for source in select.fromClause or () for pair in _sources(source)]
        order: list[str] = []
        for by in select.sortClause or ():
            name = _name(by.node)
            if name is None or by.sortby_dir == SortByDir.SORTBY_DESC:
                break
            order.append(name)
        limit = select.limitCount
        for clause in select.lockingClause:
            named = {one.relname for one in clause.lockedRels or ()}
            tables = tuple(
                table for table, alias in sources if table not in parts and (not named or {table, alias} & named)
            )
            yield Locking(
                tables,
                clause.waitPolicy == LockWaitPolicy.LockWaitBlock,
                tuple(order),
                frozenset(_equalities(select.whereClause)),
                is_one=isinstance(limit, ast.A_Const) and getattr(limit.val, "ival", None) == 1,
                after=frozenset(written_before(_read(select).names)),
            )


# -- reports of Postgres ---------------------------------------------------------------------------------------------

REPORT = """
CREATE OR REPLACE FUNCTION report_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE USING MESSAGE = 'row ' || json_build_object(
        'table', TG_ARGV[0], 'op', TG_OP, 'old', to_jsonb(OLD), 'new', to_jsonb(NEW));
    RETURN COALESCE(NEW, OLD);
END $$;
DO $$
DECLARE it record;
BEGIN
    FOR it IN SELECT relname FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER a_report BEFORE INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW '
            'EXECUTE FUNCTION report_row(%L)', it.relname, it.relname);
    END LOOP;
END $$;
"""
"""A trigger of each table that reports each row before it is written: after it is locked, where it was there."""

_KEYS = """
SELECT relname AS name, indisprimary AS is_primary,
    array(SELECT attname::text FROM unnest(indkey) WITH ORDINALITY AS k(number, place)
          JOIN pg_attribute ON attrelid = indrelid AND attnum = number ORDER BY place) AS columns
FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
WHERE indisunique AND relnamespace = current_schema()::regnamespace AND NOT relispartition
    -- An index on an expression is not one on its other columns.
    AND indexprs IS NULL
"""

_REFERENCES = """
SELECT child.relname AS child, parent.relname AS parent,
    array(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k(number, place)
          JOIN pg_attribute ON attrelid = conrelid AND attnum = number ORDER BY place) AS columns,
    array(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS k(number, place)
          JOIN pg_attribute ON attrelid = confrelid AND attnum = number ORDER BY place) AS parent_columns
FROM pg_constraint JOIN pg_class AS child ON child.oid = conrelid JOIN pg_class AS parent ON parent.oid = confrelid
WHERE contype = 'f' AND connamespace = current_schema()::regnamespace AND NOT child.relispartition
"""

_OWN = """
SELECT to_jsonb(it) FROM {table} AS it WHERE it.xmax::text IN (
    SELECT transactionid::text FROM pg_locks
    WHERE pid = pg_backend_pid() AND locktype = 'transactionid' AND mode = 'ExclusiveLock')
"""
"""The rows that the open transaction, or a savepoint of it, has locked or replaced."""


@dataclass
class Catalogue:
    """The keys and references of the tables of a database."""

    primary: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    unique: dict[str, list[tuple[str, ...]]] = field(
        default_factory=lambda: defaultdict[str, list[tuple[str, ...]]](list)
    )
    references: dict[str, list[tuple[str, tuple[str, ...]]]] = field(
        default_factory=lambda: defaultdict[str, list[tuple[str, tuple[str, ...]]]](list)
    )
    """For each table those whose primary key it refers to, with its columns for that."""

    @classmethod
    async def read(cls, connection: "asyncpg.Connection[Any]") -> "Catalogue":
        """The catalogue of the current schema."""
        found = cls()
        for row in await connection.fetch(_KEYS):
            if row["is_primary"]:
                found.primary[row["name"]] = tuple(row["columns"])
            else:
                found.unique[row["name"]].append(tuple(row["columns"]))
        for row in await connection.fetch(_REFERENCES):
            if tuple(row["parent_columns"]) == found.primary[row["parent"]]:
                found.references[row["child"]].append((row["parent"], tuple(row["columns"])))
        return found

    def key(self, table: str, row: Mapping[str, Any]) -> Key:
        """The key of a row by which rows of its table are sorted."""
        return tuple(row[name] for name in self.by(table))

    def by(self, table: str) -> tuple[str, ...]:
        """The columns by which rows of a table are sorted."""
        return BY.get(table) or self.primary[table]


@dataclass(frozen=True)
class Change:
    """A row written by a statement, as its trigger reported it."""

    table: str
    op: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None


# -- held locks --------------------------------------------------------------------------------------------------------


class Held:
    """The locks of one transaction so far, and the locks out of order."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.keys: dict[str, set[Key]] = defaultdict(set)
        self.shared: dict[str, set[Key]] = defaultdict(set)
        """Keys of rows that inserted rows refer to: others may refer to them too, and nothing may lock them."""
        self.wrong: list[str] = []
        self._made: dict[str, set[Key]] = defaultdict(set)
        """Keys of rows that this transaction has inserted: no other transaction has locked them."""
        self._saved: list[tuple[dict[str, set[Key]], dict[str, set[Key]]]] = []

    def _held(self) -> Iterator[str]:
        for table, keys in self.keys.items():
            if keys - self._made[table] if table in FRESH else keys:
                yield table
        yield from (table for table, keys in self.shared.items() if keys)

    def save(self) -> None:
        """Set a savepoint."""
        self._saved.append((_copied(self.keys), _copied(self.shared)))

    def release(self) -> None:
        """Release the newest savepoint."""
        self._saved.pop()

    def undo(self) -> None:
        """Drop the locks since the newest savepoint."""
        self.keys, self.shared = map(_copied, self._saved.pop())

    def lock(
        self, table: str, key: Key, sql: str, *, waits: bool = True, is_sorted: bool = True, child: str = ""
    ) -> None:
        """Lock one row.

        ``waits`` means that it waits for others, ``is_sorted`` that rows of this table have an order. ``child`` is the
        table of a row that refers to this one: Postgres locks the referred row after the row.
        """
        if table not in RANKS or key in self.keys[table] or (child and key in self.shared[table]):
            return
        if waits:
            later = sorted(other for other in self._held() if RANKS[other] > RANKS[table] and other != child)
            if later:
                self.wrong.append(f"{table} after {', '.join(later)}: {_short(sql)}")
            if (
                is_sorted
                and table not in UNORDERED
                and any(other > key for other in self.keys[table] - self._made[table])
            ):
                self.wrong.append(f"{table} {key} after a greater one: {_short(sql)}")
        (self.shared if child else self.keys)[table].add(key)

    def take(self, sql: str, changes: Sequence[Change], own: Mapping[str, Sequence[Key]]) -> None:
        """Record the locks of one statement: ``changes`` in their order, ``own`` the locked rows."""
        clauses = lockings(sql)
        for clause in clauses:
            if not clause.after:
                self._lock_selected(clause, sql, changes, own)
        self._write(changes, sql)
        for clause in clauses:
            if clause.after:
                self._lock_selected(clause, sql, changes, own)

    def _lock_selected(
        self, clause: Locking, sql: str, changes: Sequence[Change], own: Mapping[str, Sequence[Key]]
    ) -> None:
        for table in clause.tables:
            if table == TURN:
                self.lock(table, (), sql)
                continue
            if table not in self._catalogue.primary:
                continue
            if clause.waits and table not in UNORDERED and not clause.is_sorted(table, self._catalogue):
                self.wrong.append(f"rows of {table} are locked in no order: {_short(sql)}")
            old = [self._catalogue.key(table, one.old) for one in changes if one.table == table and one.old is not None]
            for key in sorted({*own.get(table, ()), *old}):
                self.lock(table, key, sql, waits=clause.waits)

    def _write(self, changes: Sequence[Change], sql: str) -> None:
        inserted: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        referred: list[tuple[str, Key, str]] = []
        for change in changes:
            if change.table not in RANKS:
                continue
            if change.old is not None:
                self.lock(change.table, self._catalogue.key(change.table, change.old), sql)
            elif change.new is not None:
                self._insert(change.table, change.new, sql)
                inserted[change.table].append(change.new)
            referred += self._referred(change)
        for table, rows in inserted.items():
            # Each of several INSERTs in one statement has its own order.
            if inserts(sql, table) == 1 and not self._is_sorted(table, rows):
                self.wrong.append(f"rows of {table} are inserted in no order: {_short(sql)}")
        # Postgres checks references at the end of the statement.
        for table, key, child in referred:
            self.lock(table, key, sql, is_sorted=False, child=child)

    def _insert(self, table: str, row: Mapping[str, Any], sql: str) -> None:
        # A new refund is inserted under the lock of its payment. Only another refund of the whole rest waits for it,
        # and that one waits for the payment before.
        key = self._catalogue.key(table, row)
        self.lock(table, key, sql, waits=table != "refund", is_sorted=False)
        self._made[table].add(key)

    def _referred(self, change: Change) -> Iterator[tuple[str, Key, str]]:
        if change.new is None:
            return
        for parent, columns in self._catalogue.references[change.table]:
            key = tuple(change.new[name] for name in columns)
            is_new = change.old is None or key != tuple(change.old[name] for name in columns)
            # Transactions that witnesses, notes and lines refer to were recorded earlier in the same transaction.
            if is_new and None not in key and parent not in SETTINGS | {"transaction"}:
                yield parent, key, change.table

    def _is_sorted(self, table: str, rows: Sequence[Mapping[str, Any]]) -> bool:
        if len(rows) < 2:
            return True
        natural = [BY[table]] if table in BY else self._catalogue.unique[table] or [self._catalogue.primary[table]]
        keys = [[tuple(row[name] for name in columns) for row in rows] for columns in natural]
        known = [each for each in keys if not any(None in key for key in each)]
        return not known or any(each == sorted(each) for each in known)


def _copied(held: Mapping[str, set[Key]]) -> dict[str, set[Key]]:
    return defaultdict(set, {table: set(keys) for table, keys in held.items()})


def _short(sql: str) -> str:
    return " ".join(sql.split())[:240]


def tables_of(sql: str) -> set[str]:
    """Return the tables whose rows a statement writes or locks; none for a text that is not valid SQL."""
    try:
        parsed = parse_sql(sql)
    except ParseError:
        return set()
    written = {table for raw in parsed for table in _read(cast("Any", raw).stmt).written}
    return written | {table for clause in lockings(sql) for table in clause.tables}


def unsorted_changes(sql: str, catalogue: "Catalogue") -> list[str]:
    """Return the tables of which a statement changes several unlocked rows, in order or without waiting.

    A row that the statement names by its key is one row.
    """
    try:
        parsed = parse_sql(sql)
    except ParseError:
        return []
    locked = {table for clause in lockings(sql) for table in clause.tables}
    return [
        change.relation.relname
        for raw in parsed
        for change in _read(cast("Any", raw).stmt).changes
        if change.relation.relname in RANKS.keys() - UNORDERED - locked
        and not any(
            set(_equalities(change.whereClause)).issuperset(key)
            for key in (catalogue.primary[change.relation.relname], *catalogue.unique[change.relation.relname])
        )
    ]


RUNS = ("execute", "executemany", "fetch", "fetchrow", "fetchval")
"""The ways of asyncpg's connections to run a statement."""


# -- recording ---------------------------------------------------------------------------------------------------------


class Recorder:
    """Follows the transactions of every connection of this process, to one database."""

    def __init__(self, *, of_tests: bool = False) -> None:
        """``of_tests``: follow the statements of tests too."""
        self._of_tests = of_tests
        self.catalogue = Catalogue()
        self._held: dict[Any, Held] = {}
        self._changes: dict[Any, list[Change]] = defaultdict(list)
        self.wrong: dict[str, None] = {}
        """Locks that were out of order, each once."""
        self.seen: set[str] = set()
        """The tables whose rows were locked."""
        self.statements: set[str] = set()
        """Every statement that ran."""
        self.callers: set[tuple[str, str]] = set()
        """The functions, each with the file of its module, that waited for a statement."""

    async def install(self, owner: "asyncpg.Connection[Any]") -> None:
        """Add a trigger to every table of the owner's schema that reports its rows."""
        self.catalogue = await Catalogue.read(owner)
        await owner.execute(REPORT)

    @property
    def unranked(self) -> set[str]:
        """The tables of the database that have no place in the order."""
        return self.catalogue.primary.keys() - RANKS.keys()

    def follow(self, patch: pytest.MonkeyPatch) -> None:
        """Follow every statement of asyncpg's until the patch is undone."""
        for name in RUNS:
            patch.setattr(asyncpg.Connection, name, self._following(getattr(asyncpg.Connection, name)))
        changes = self._changes
        plain = cast("Any", asyncpg.Connection)._process_log_message

        def hear(connection: Any, fields: Mapping[str, str], last_query: str) -> None:
            text = fields.get("M", "")
            if text.startswith("row "):
                changes[connection].append(Change(**json.loads(text[4:])))
            else:
                plain(connection, fields, last_query)

        patch.setattr(asyncpg.Connection, "_process_log_message", hear)

    def _following(self, plain: Any) -> Any:
        async def run(connection: Any, query: str, *args: Any, **options: Any) -> Any:
            callers = list(_callers())
            if not self._of_tests and callers and callers[0][0].startswith(_TESTS):
                try:
                    return await plain(connection, query, *args, **options)
                finally:
                    self._changes.pop(connection, None)
            self.statements.add(query)
            self.callers.update(callers)
            try:
                done = await plain(connection, query, *args, **options)
            except BaseException:
                self._note(connection, query, {})
                raise
            self._note(connection, query, await self._own(connection, query))
            return done

        return run

    async def _own(self, connection: Any, query: str) -> dict[str, list[Key]]:
        tables = {table for locking in lockings(query) for table in locking.tables} & self.catalogue.primary.keys()
        if not connection.is_in_transaction():
            return {}
        return {
            table: sorted(
                self.catalogue.key(table, json.loads(row[0]))
                for row in await _FETCH(connection, _OWN.format(table=table))
            )
            for table in tables
        }

    def _note(self, connection: Any, query: str, own: Mapping[str, Sequence[Key]]) -> None:
        if connection not in self._held:
            self._held[connection] = Held(self.catalogue)
        held = self._held[connection]
        if query.startswith("SAVEPOINT"):
            held.save()
        elif query.startswith("ROLLBACK TO"):
            held.undo()
        elif query.startswith("RELEASE"):
            held.release()
        held.take(query, self._changes.pop(connection, []), own)
        if connection.is_closed() or not connection.is_in_transaction():
            del self._held[connection]
        self.wrong |= dict.fromkeys(held.wrong)
        self.seen |= held.keys.keys() | held.shared.keys()


_FETCH = asyncpg.Connection.fetch

_TESTS = str(Path(__file__).parent)
_WAYS = (__file__, asyncpg.__path__[0], str(Path(engine.__file__).parent))


def _callers() -> Iterator[tuple[str, str]]:
    frame: FrameType | None = cast("Any", sys)._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_WAYS):
        frame = frame.f_back
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back


def count_deadlocks(patch: pytest.MonkeyPatch, *, dawdle: float = 0.0) -> list[str]:
    """Return a list that collects the statements that Postgres ends because of a deadlock.

    After a statement in a transaction up to ``dawdle`` seconds pass, so that others lock rows in between.
    """
    found: list[str] = []
    chance = random.Random(7)  # noqa: S311 - a test's pauses

    def counting(plain: Any) -> Any:
        async def run(connection: Any, query: str, *args: Any, **options: Any) -> Any:
            try:
                done = await plain(connection, query, *args, **options)
            except asyncpg.DeadlockDetectedError:
                found.append(_short(query))
                raise
            if dawdle and connection.is_in_transaction():
                await asyncio.sleep(chance.uniform(0, dawdle))
            return done

        return run

    for name in RUNS:
        patch.setattr(asyncpg.Connection, name, counting(getattr(asyncpg.Connection, name)))
    return found
