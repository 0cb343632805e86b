"""What Postgres itself refuses: for each constraint and trigger of a migration, a statement that it must not let by."""

import re
from importlib.resources import files

import asyncpg

from mpesa_gateway.db.engine import Database

_ADDED = re.compile(
    r"^\s*(?:ALTER TABLE [a-z_]+ ADD )?(?:CONSTRAINT|CREATE TRIGGER|CREATE UNIQUE INDEX) ([a-z0-9_]+)", re.MULTILINE
)
_DROPPED = re.compile(r"\bDROP (?:INDEX|CONSTRAINT) ([a-z0-9_]+)")


def added(package: str) -> set[str]:
    """Return the names of the constraints, triggers and unique indexes that an owner's migrations state.

    Constraints that have no name in the first one are left out, and triggers that refuse nothing: ``…_told`` and
    ``…_kept``.
    """
    migrations = [one.read_text(encoding="utf-8") for one in files(package).iterdir() if one.name.endswith(".sql")]
    names = {
        name for migration in migrations for name in _ADDED.findall(migration) if not name.endswith(("_told", "_kept"))
    }
    return names - {name for migration in migrations for name in _DROPPED.findall(migration)}


async def refusals(db: Database, cases: dict[str, list[str]]) -> dict[str, list[str]]:
    """Run each statement in a transaction that is undone; gives those that its constraint did not refuse.

    ``cases`` has the statements by the name of what must refuse them.
    """
    missed: dict[str, list[str]] = {}
    for name, statements in cases.items():
        for statement in statements:
            refused_by = await _refuser(db, statement)
            if refused_by != name:
                missed.setdefault(name, []).append(f"{statement}: {refused_by}")
    return missed


async def _refuser(db: Database, statement: str) -> str:
    """What refused a statement, by its name; else how far it got."""
    tag = ""
    try:
        async with db.transaction():
            tag = await db.execute(statement)
            await db.execute("ROLLBACK TO SAVEPOINT nothing")
    except asyncpg.IntegrityConstraintViolationError as problem:
        return problem.constraint_name or str(problem)
    except asyncpg.InvalidSavepointSpecificationError:
        # Nothing was refused, and with this everything is undone.
        return f"not refused ({tag})"
    raise AssertionError("unreachable")
