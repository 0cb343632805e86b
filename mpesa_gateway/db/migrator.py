"""Applies numbered SQL files, forward only, while other processes work (docs/releasing.md)."""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import TypeAlias

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from mpesa_gateway.db.engine import Database, Row
from mpesa_gateway.db.roles import grant

log = structlog.get_logger(__name__)

Connection: TypeAlias = "PoolConnectionProxy[Row] | asyncpg.Connection[Row]"

_LOCK = int.from_bytes(hashlib.sha256(b"mpesa_gateway.migrations").digest()[:8], "big", signed=True)
_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql\Z")
_CONTRACT = re.compile(r"^-- contract: *(\S.*)$", re.MULTILINE)
_CONCURRENTLY = re.compile(
    r"(?:CREATE\s+(?:UNIQUE\s+)?INDEX|DROP\s+INDEX|REINDEX\s+\w+)\s+CONCURRENTLY\b", re.IGNORECASE
)
_NEW_INDEX = re.compile(r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(\w+)\s+ON\b", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*")

_LEDGER = """
CREATE TABLE IF NOT EXISTS migration (
    owner text NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    digest text NOT NULL,
    contracts boolean NOT NULL DEFAULT false,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, number)
)
"""

# raw SQL: own connection - the owner's, before any table is bound.
_HAS_CONTRACTS = """
SELECT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = 'migration'::regclass AND attname = 'contracts')
"""

_APPLIED = """
SELECT owner, number, name, digest, COALESCE((to_jsonb(migration)->>'contracts')::boolean, false) AS contracts
FROM migration
"""
"""For ledgers without the column."""

_NOTE = "INSERT INTO migration (owner, number, name, digest, contracts) VALUES ($1, $2, $3, $4, $5)"

_BLOCKERS = """
SELECT count(*) AS number, max(now() - xact_start) AS oldest FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
"""

LOCK_TIMEOUT = 2.0
"""Seconds, during which traffic on the table queues up."""

PATIENCE = 600.0
"""Seconds of retries while tables are in use."""

_PAUSE = 1.0

_POLL = 0.2
"""Seconds."""


class MigrationError(Exception):
    """The text names the fix."""


@dataclass(frozen=True)
class Migration:
    """One numbered SQL file."""

    owner: str
    number: int
    name: str
    sql: str

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @cached_property
    def contract(self) -> str | None:
        """Return why this file breaks the release before (``-- contract: …``), or None."""
        found = _CONTRACT.search(self.sql)
        return found[1].strip() if found else None

    @cached_property
    def statement(self) -> str | None:
        """Return the statement of a file that cannot run in a transaction (``CREATE INDEX CONCURRENTLY``), else None.

        Raises MigrationError for several.
        """
        statements = [text.strip() for text in _COMMENT.sub("", self.sql).split(";") if text.strip()]
        if not any(_CONCURRENTLY.match(text) for text in statements):
            return None
        if len(statements) > 1:
            raise MigrationError(
                f"migration {self.owner}/{self.name}: what is made CONCURRENTLY needs a file of its own"
            )
        return statements[0]


def find(owner: str, package: str) -> list[Migration]:
    """Raise MigrationError for a missing or doubled number."""
    found: list[Migration] = []
    for entry in files(package).iterdir():
        match = _NAME.match(entry.name)
        if match:
            found.append(Migration(owner, int(match[1]), entry.name, entry.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    numbers = [migration.number for migration in found]
    if numbers != list(range(1, len(numbers) + 1)):
        raise MigrationError(f"migrations of {owner} must be numbered 0001, 0002, … without gaps: found {numbers}")
    return found


async def migrate(
    db: Database,
    migrations: Sequence[Migration],
    *,
    role: str | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    patience: float = PATIENCE,
    pause: float = _PAUSE,
) -> list[Migration]:
    """Apply pending migrations, each in its own transaction; return them. Times are in seconds.

    Grants ``role`` its rights. Retries when a table is locked, so that traffic is not blocked. Raises MigrationError if
    an applied file has changed, the database is too new, or ``patience`` has ended.
    """
    async with db.session() as connection, _alone(connection):
        await connection.execute("SET statement_timeout = 0")
        try:
            await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{db.schema}"')
            await connection.execute(_LEDGER)
            if not await connection.fetchval(_HAS_CONTRACTS):
                await connection.execute("ALTER TABLE migration ADD COLUMN contracts boolean NOT NULL DEFAULT false")
            todo = _missing(await connection.fetch(_APPLIED), migrations)
            for migration in todo:
                await _try(connection, migration, lock_timeout, patience, pause)
            if role is not None:
                await grant(connection, db.schema, role)
        finally:
            if not connection.is_closed():
                await connection.execute("RESET statement_timeout; RESET lock_timeout")
    return todo


async def pending(db: Database, migrations: Sequence[Migration]) -> list[Migration]:
    if await db.fetchval("SELECT to_regclass('migration')") is None:
        return list(migrations)
    return _missing(await db.fetch(_APPLIED), migrations)


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncGenerator[None]:
    """Exclude other processes by polling.

    A session waiting inside Postgres holds a snapshot, which blocks CREATE INDEX CONCURRENTLY.
    """
    while True:
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            break
        await asyncio.sleep(_POLL)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def _try(
    connection: Connection, migration: Migration, lock_timeout: float, patience: float, pause: float
) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while True:
        try:
            if migration.statement is None:
                await _apply(connection, migration, lock_timeout)
            else:
                await _apply_outside(connection, migration, migration.statement)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            blockers = await connection.fetchrow(_BLOCKERS)
            oldest = blockers["oldest"] if blockers else None
            log.warning(
                "migration_waits",
                owner=migration.owner,
                migration=migration.name,
                transactions=blockers["number"] if blockers else 0,
                oldest=round(oldest.total_seconds(), 1) if oldest is not None else None,
            )
            if loop.time() >= until:
                raise MigrationError(
                    f"migration {migration.owner}/{migration.name} could not lock its tables: end the transaction that "
                    "uses them (see pg_stat_activity), and run `mpesa-gateway migrate` again"
                ) from None
            await asyncio.sleep(pause)
        else:
            return


async def _apply(connection: Connection, migration: Migration, lock_timeout: float) -> None:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = {int(lock_timeout * 1000)}")
        await connection.execute(migration.sql)
        await _note(connection, migration)


async def _apply_outside(connection: Connection, migration: Migration, statement: str) -> None:
    # Waiting blocks no other session.
    await connection.execute("SET lock_timeout = 0")
    index = _NEW_INDEX.match(statement)
    is_valid = index and await connection.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", index[1]
    )
    if index and is_valid is False:
        await connection.execute(f"DROP INDEX CONCURRENTLY {index[1]}")
    if not is_valid:
        await connection.execute(statement)
    await _note(connection, migration)


async def _note(connection: Connection, migration: Migration) -> None:
    await connection.execute(
        _NOTE,
        migration.owner,
        migration.number,
        migration.name,
        migration.digest,
        migration.contract is not None,
    )


def _missing(rows: Sequence[Row], migrations: Sequence[Migration]) -> list[Migration]:
    applied = {(row["owner"], row["number"]): row for row in rows}
    todo: list[Migration] = []
    for migration in migrations:
        row = applied.get((migration.owner, migration.number))
        if row is None:
            todo.append(migration)
        elif row["digest"] != migration.digest:
            raise MigrationError(
                f"migration {migration.owner}/{row['name']} has changed since it was applied: "
                "restore the released file; a change needs a migration of its own"
            )
    for owner in {migration.owner for migration in migrations}:
        newest = max(migration.number for migration in migrations if migration.owner == owner)
        # Additions of a newer release are harmless; removals are not.
        taken = [row["name"] for row in rows if row["owner"] == owner and row["number"] > newest and row["contracts"]]
        if taken:
            raise MigrationError(
                f"the database is ahead of this release ({owner}: {', '.join(sorted(taken))} took away what it needs): "
                "run the newer release"
            )
    return todo
