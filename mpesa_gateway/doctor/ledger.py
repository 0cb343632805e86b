"""Runs the invariants on a live database, read-only."""

import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from mpesa_gateway.db.engine import OVERLOADED, Database
from mpesa_gateway.db.invariants import INVARIANTS
from mpesa_gateway.invariant import Invariant
from mpesa_gateway.security.audit import Audit, BrokenChain
from mpesa_gateway.security.tables import AuditCheckpointRow, AuditPolicyRow, AuditRow

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

_SHOWN = 5
"""Examples shown of each violation."""

_COUNTED = 1000
"""Violations counted at most for one invariant."""

_NO_ANSWER: tuple[type[BaseException], ...] = (*OVERLOADED, asyncpg.SyntaxOrAccessError)
"""Errors of one query, as opposed to an unreachable Postgres."""

_CHAIN = "The audit log's chain is whole: no entry was changed or removed"


class InvariantResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one invariant. ``holds`` is None without an answer, and ``problem`` has the reason."""

    owner: str
    name: str
    sentence: str
    holds: bool | None
    count: int = 0
    is_more: bool = False
    examples: tuple[str, ...] = ()
    problem: str | None = None
    seconds: float = 0.0


def invariants_of(gateway: "Gateway") -> list[tuple[str, Invariant]]:
    """Return every invariant with its owner: the kernel's, then each enabled plugin's."""
    brought = [(plugin.name, invariant) for plugin in gateway.plugins for invariant in plugin.invariants]
    return [*(("kernel", invariant) for invariant in INVARIANTS), *brought]


async def read_ledger(
    gateway: "Gateway", db: Database, *, patience: float, grace: timedelta | None = None
) -> AsyncGenerator[InvariantResult]:
    """Yield a result for each invariant, each read in a snapshot of its own.

    ``patience`` is the statement timeout in seconds; ``grace`` replaces that of each invariant that has one. Locks no
    rows. Raises what asyncpg raises if Postgres cannot be reached.
    """
    for owner, invariant in invariants_of(gateway):
        began = time.perf_counter()
        try:
            found = await _query(gateway, db, invariant, patience, grace)
        except _NO_ANSWER as problem:
            yield _unanswered(owner, invariant.name, invariant.sentence, problem, began)
            continue
        yield InvariantResult(
            owner=owner,
            name=invariant.name,
            sentence=invariant.sentence,
            holds=not found,
            count=min(len(found), _COUNTED),
            is_more=len(found) > _COUNTED,
            examples=tuple(found[:_SHOWN]),
            seconds=time.perf_counter() - began,
        )
    yield await _verify_audit(gateway, db, patience)


async def _query(
    gateway: "Gateway", db: Database, invariant: Invariant, patience: float, grace: timedelta | None
) -> list[str]:
    arguments = [] if invariant.grace is None else [gateway.clock.now() - (grace or invariant.grace)]
    async with db.transaction():
        await _limit_transaction(db, patience)
        # raw SQL: declared - an invariant of a plugin.
        # The query is the plugin's own.
        rows = await db.fetch(
            f"SELECT broken.id FROM ({invariant.sql}) AS broken (id) LIMIT {_COUNTED + 1}",  # noqa: S608
            *arguments,
        )
    return [row["id"] for row in rows]


async def _verify_audit(gateway: "Gateway", db: Database, patience: float) -> InvariantResult:
    began = time.perf_counter()
    name, found = "audit_chain", ""
    db.bind((AuditRow, AuditCheckpointRow, AuditPolicyRow))
    try:
        async with db.transaction():
            await _limit_transaction(db, patience)
            keep_days = gateway.config.retention.audit_days
            await Audit(db, gateway.clock, gateway.ids, keep_days=keep_days).verify()
    except BrokenChain as problem:
        found = str(problem)
    except _NO_ANSWER as problem:
        return _unanswered("kernel", name, _CHAIN, problem, began)
    return InvariantResult(
        owner="kernel",
        name=name,
        sentence=_CHAIN,
        holds=not found,
        count=int(bool(found)),
        examples=(found,) if found else (),
        seconds=time.perf_counter() - began,
    )


async def _limit_transaction(db: Database, patience: float) -> None:
    await db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    await db.execute("SET LOCAL max_parallel_workers_per_gather = 0")
    await db.execute(f"SET LOCAL statement_timeout = {int(patience * 1000)}")


def _unanswered(owner: str, name: str, sentence: str, problem: BaseException, began: float) -> InvariantResult:
    seconds = time.perf_counter() - began
    if isinstance(problem, asyncpg.QueryCanceledError):
        why = (
            f"no answer within {seconds:.0f} seconds: run this at a quieter hour, or with a longer --statement-timeout"
        )
    elif isinstance(problem, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        why = "the database is not at this release: run `mpesa-gateway migrate`"
    else:
        why = f"Postgres did not answer ({type(problem).__name__}: {problem})"
    return InvariantResult(owner=owner, name=name, sentence=sentence, holds=None, problem=why, seconds=seconds)
