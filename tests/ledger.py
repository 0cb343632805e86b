"""Reads a test's books as `doctor --ledger` does, and corrupts them in ways that Postgres would reject."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.engine import Row
from mpesa_gateway.doctor.ledger import read_ledger
from tests.owner import as_owner


async def broken_invariants(gateway: Gateway, grace: timedelta | None = None) -> dict[str, tuple[str, ...]]:
    """Return the broken invariants, with examples. Raises AssertionError for an invariant without a result."""
    found: dict[str, tuple[str, ...]] = {}
    async for proof in read_ledger(gateway, gateway.db, patience=30, grace=grace):
        assert proof.holds is not None, proof.problem
        if not proof.holds:
            found[f"{proof.owner}.{proof.name}"] = proof.examples
    return found


async def stop_worker(gateway: Gateway) -> None:
    """Stop the worker, so that no job changes the rows that a test has written."""
    worker = gateway._in_process_worker  # pyright: ignore[reportPrivateUsage]
    assert worker is not None
    worker.cancel()
    await asyncio.wait([worker])


async def drop_constraints(gateway: Gateway) -> None:
    """Drop every check and unique index, as after a failed restore: now any row can be written.

    The worker stops first, so that no job repairs the corrupted rows.
    """
    await stop_worker(gateway)
    async with as_owner(gateway) as owner:
        rows = await owner.fetch(
            "SELECT conrelid::regclass::text AS table, conname FROM pg_constraint "
            "WHERE connamespace = current_schema()::regnamespace AND contype IN ('c', 'u') AND coninhcount = 0"
        )
        for row in rows:
            await owner.execute(f"ALTER TABLE {row['table']} DROP CONSTRAINT {row['conname']} CASCADE")
        indexes = await owner.fetch(
            "SELECT indexrelid::regclass::text AS name FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE relnamespace = current_schema()::regnamespace AND indisunique AND NOT indisprimary"
        )
        for row in indexes:
            await owner.execute(f"DROP INDEX {row['name']}")


async def corrupt(gateway: Gateway, statement: str) -> list[str]:
    """Change the books without triggers and foreign keys; return the first column of the changed rows."""
    async with without_rules(gateway) as owner:
        return await _bend(owner, statement)


@asynccontextmanager
async def without_rules(gateway: Gateway) -> "AsyncGenerator[asyncpg.Connection[Row]]":
    """Yield a connection of the owner on which no trigger and no foreign key applies."""
    async with as_owner(gateway) as owner:
        await owner.execute("SET session_replication_role = replica")
        yield owner


async def _bend(owner: "asyncpg.Connection[Row]", statement: str) -> list[str]:
    rows = await owner.fetch(statement)
    assert rows, f"nothing to corrupt: {statement}"
    return [str(row[0]) for row in rows]


async def find_missed_corruptions(
    gateway: Gateway, bendings: dict[str, str], also: dict[str, str] | None = None
) -> dict[str, list[str]]:
    """Corrupt the books in one way after the other; return the missed or misreported corruptions by invariant.

    Each statement (`;` between them) returns the ids that the invariant must name, and must break no other but the one
    that ``also`` names for it.
    """
    missed: dict[str, list[str]] = {}
    before = await broken_invariants(gateway)
    assert before == {}
    async with without_rules(gateway) as owner:
        for name, statement in ((name, each) for name, some in bendings.items() for each in some.split(";")):
            ids = await _bend(owner, statement)
            after = await broken_invariants(gateway)
            new = {key: set(found) - set(before.get(key, ())) for key, found in after.items()}
            new = {key: found for key, found in new.items() if found}
            new.pop((also or {}).get(name, ""), None)
            if new != {name: set(ids)}:
                missed.setdefault(name, []).append(f"{statement}: {new}, not {ids}")
            before = after
    return missed
