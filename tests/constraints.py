"""Runs the statements that Postgres itself must reject: one for each constraint and trigger of a migration."""

import re
from importlib.resources import files

import asyncpg

from mpesa_gateway.db.engine import Database

_ADDED = re.compile(
    r"^\s*(?:ALTER TABLE [a-z_]+ ADD )?(?:CONSTRAINT|CREATE TRIGGER|CREATE UNIQUE INDEX) ([a-z0-9_]+)", re.MULTILINE
)
_DROPPED = re.compile(r"\bDROP (?:INDEX|CONSTRAINT) ([a-z0-9_]+)")


def added(package: str) -> set[str]:
    """Return the names of the constraints, triggers and unique indexes in an owner's migrations.

    Constraints without a name in the first one are left out, and triggers that reject nothing: ``…_notified`` and
    ``…_kept``.
    """
    migrations = [one.read_text(encoding="utf-8") for one in files(package).iterdir() if one.name.endswith(".sql")]
    names = {
        name
        for migration in migrations
        for name in _ADDED.findall(migration)
        if not name.endswith(("_notified", "_kept"))
    }
    return names - {name for migration in migrations for name in _DROPPED.findall(migration)}


async def refusals(db: Database, cases: dict[str, list[str]]) -> dict[str, list[str]]:
    """Run each statement in a transaction that is rolled back; return the statements that were not rejected.

    ``cases`` has the statements by the name of the constraint that must reject them.
    """
    missed: dict[str, list[str]] = {}
    for name, statements in cases.items():
        for statement in statements:
            refused_by = await _refuser(db, statement)
            if refused_by != name:
                missed.setdefault(name, []).append(f"{statement}: {refused_by}")
    return missed


async def _refuser(db: Database, statement: str) -> str:
    """Return the name of the constraint that rejected a statement, else its command tag."""
    tag = ""
    try:
        async with db.transaction():
            tag = await db.execute(statement)
            await db.execute("ROLLBACK TO SAVEPOINT nothing")
    except asyncpg.IntegrityConstraintViolationError as problem:
        return problem.constraint_name or str(problem)
    except asyncpg.InvalidSavepointSpecificationError:
        # Nothing was rejected; this error rolls everything back.
        return f"not refused ({tag})"
    raise AssertionError("unreachable")
