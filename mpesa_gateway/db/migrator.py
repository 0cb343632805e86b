"""Brings Postgres to the present version: numbered SQL files, forward only, each once, however many start at once."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from mpesa_gateway.db.engine import Database

_LOCK = int.from_bytes(hashlib.sha256(b"mpesa_gateway.migrations").digest()[:8], "big", signed=True)
_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql\Z")

_LEDGER = """
CREATE TABLE IF NOT EXISTS migration (
    owner text NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    digest text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, number)
)
"""


class MigrationRefused(Exception):
    """The database and this release do not fit together. The text says what to do."""


@dataclass(frozen=True)
class Migration:
    """One numbered SQL file of the kernel or of a plugin."""

    owner: str
    number: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        """What tells whether a file was changed after it was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def find(owner: str, package: str) -> list[Migration]:
    """The migrations in a package's folder, in order. Raises MigrationRefused where a number is missing or doubled."""
    found: list[Migration] = []
    for entry in files(package).iterdir():
        match = _NAME.match(entry.name)
        if match:
            found.append(Migration(owner, int(match[1]), entry.name, entry.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    numbers = [migration.number for migration in found]
    if numbers != list(range(1, len(numbers) + 1)):
        raise MigrationRefused(f"migrations of {owner} must be numbered 0001, 0002, … without gaps: found {numbers}")
    return found


async def migrate(db: Database, migrations: Sequence[Migration]) -> list[Migration]:
    """Apply what has not been applied, in one transaction, and give it back.

    An advisory lock lets one process at a time do it: the others wait and find nothing left to do. Raises
    MigrationRefused when an applied file has changed since or the database is ahead of this release.
    """
    async with db.connection() as connection:
        # The schema itself is made in a transaction of its own: CREATE SCHEMA IF NOT EXISTS is not safe against itself.
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{db.schema}"')
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute(_LEDGER)
            rows = await connection.fetch("SELECT owner, number, name, digest FROM migration")
            applied = {(row["owner"], row["number"]): (row["name"], row["digest"]) for row in rows}
            todo = _missing(applied, migrations)
            for migration in todo:
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO migration (owner, number, name, digest) VALUES ($1, $2, $3, $4)",
                    migration.owner,
                    migration.number,
                    migration.name,
                    migration.digest,
                )
    return todo


async def pending(db: Database, migrations: Sequence[Migration]) -> list[Migration]:
    """What ``migrate`` would apply now, without applying it."""
    if await db.fetchval("SELECT to_regclass('migration')") is None:
        return list(migrations)
    rows = await db.fetch("SELECT owner, number, name, digest FROM migration")
    return _missing({(row["owner"], row["number"]): (row["name"], row["digest"]) for row in rows}, migrations)


def _missing(applied: dict[tuple[str, int], tuple[str, str]], migrations: Sequence[Migration]) -> list[Migration]:
    todo: list[Migration] = []
    for migration in migrations:
        name, digest = applied.get((migration.owner, migration.number), ("", ""))
        if not digest:
            todo.append(migration)
        elif digest != migration.digest:
            raise MigrationRefused(
                f"migration {migration.owner}/{name} has changed since it was applied: "
                "restore the released file; a change needs a migration of its own"
            )
    for owner in {migration.owner for migration in migrations}:
        newest = max(migration.number for migration in migrations if migration.owner == owner)
        ahead = [name for (of, number), (name, _) in applied.items() if of == owner and number > newest]
        if ahead:
            raise MigrationRefused(
                f"the database is ahead of this release ({owner}: {', '.join(sorted(ahead))}): run the newer release"
            )
    return todo
