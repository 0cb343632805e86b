"""Protects the kernel's invariants: each finds its corruption, and an unanswered query is reported as such."""

from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.invariants import INVARIANTS
from mpesa_gateway.doctor.ledger import InvariantResult, read_ledger
from mpesa_gateway.invariant import Invariant
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.testing.serving import running_gateway
from tests.conftest import Harness
from tests.identifiers import literal
from tests.ledger import broken_invariants, drop_constraints, find_missed_corruptions

pytestmark = pytest.mark.as_owner

EVENT = literal("evt")

BENDINGS = {
    "kernel.subscribers_are_called": f"""
        INSERT INTO event_task (event_id, subscriber, due_at) VALUES ({EVENT}, 'me', now() - interval '11 minutes')
        RETURNING id_text(event_id) || ' ' || subscriber
    """,  # noqa: S608 - our own
    "kernel.audit_chain": """
        UPDATE audit_entry SET actor = 'nobody' WHERE number = 2 RETURNING 'audit entry 2 was changed or removed'
    """,
}


async def test_each_kernel_invariant_finds_its_corruption_and_no_other(harness: Harness) -> None:
    await drop_constraints(harness.gateway)
    assert await find_missed_corruptions(harness.gateway, BENDINGS) == {}


@pytest.mark.parametrize(
    ("off", "name"),
    [
        ("ALTER TABLE payment DISABLE TRIGGER payment_moves", "payment.payment_moves"),
        ("ALTER TABLE event ADD CONSTRAINT new CHECK (kind <> 'x') NOT VALID", "event.new"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'payment_receipt'::regclass",
            "payment_receipt",
        ),
    ],
)
async def test_rules_are_on_invariant_finds_a_disabled_rule(harness: Harness, off: str, name: str) -> None:
    assert await broken_invariants(harness.gateway) == {}
    await harness.gateway.db.execute(off)
    assert await broken_invariants(harness.gateway) == {"kernel.rules_are_on": (name,)}


def test_every_kernel_invariant_has_a_corruption() -> None:
    named = {f"kernel.{invariant.name}" for invariant in INVARIANTS}
    assert named - set(BENDINGS) == {"kernel.rules_are_on"}


async def proofs_of(
    values: dict[str, Any], *invariants: Invariant, patience: float = 30, grace: timedelta | None = None
) -> list[InvariantResult]:
    """Return the proofs of a host's own invariants."""
    plugin = Plugin(name="own", summary="A host's own.", invariants=invariants)
    values["worker"] = {"in_process": False}
    async with running_gateway(values, plugins=(plugin,)) as (gateway, _):
        proofs = [proof async for proof in read_ledger(gateway, gateway.db, patience=patience, grace=grace)]
    return [proof for proof in proofs if proof.owner == "own"]


async def test_read_ledger_includes_invariants_of_a_hosts_plugin(values: dict[str, Any]) -> None:
    held, not_held = await proofs_of(
        values,
        Invariant("nothing", "Nothing is", "SELECT 'x' WHERE false"),
        Invariant("few", "Few are", "SELECT 'thing_' || n FROM generate_series(1, 7) AS n"),
    )
    assert (held.holds, held.count, held.examples) == (True, 0, ())
    assert (not_held.holds, not_held.count, not_held.is_more) == (False, 7, False)
    assert not_held.examples == ("thing_1", "thing_2", "thing_3", "thing_4", "thing_5")


async def test_read_ledger_with_many_violations_stops_counting(values: dict[str, Any]) -> None:
    many = Invariant("many", "Many are", "SELECT n::text FROM generate_series(1, 5000) AS n")
    (proof,) = await proofs_of(values, many)
    assert (proof.holds, proof.count, proof.is_more) == (False, 1000, True)


async def test_read_ledger_invariant_that_times_out_has_no_result(values: dict[str, Any]) -> None:
    slow, quick = await proofs_of(
        values,
        Invariant("slow", "Slow is", "SELECT 'x' FROM pg_sleep(60)"),
        Invariant("quick", "Quick is", "SELECT 'x' WHERE false"),
        patience=0.2,
    )
    assert slow.holds is None
    assert "--statement-timeout" in (slow.problem or "")
    assert quick.holds is True


async def test_read_ledger_with_a_missing_table_advises_to_migrate(values: dict[str, Any]) -> None:
    (proof,) = await proofs_of(values, Invariant("gone", "Gone is", "SELECT id FROM no_such_table"))
    assert proof.holds is None
    assert "mpesa-gateway migrate" in (proof.problem or "")


async def test_read_ledger_is_read_only(values: dict[str, Any]) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await proofs_of(values, Invariant("bad", "Bad is", "SELECT nextval('sim_chance')::text"))


async def test_read_ledger_grace_is_the_invariants_own_unless_given(values: dict[str, Any]) -> None:
    waits = Invariant(
        "waits", "Nothing waits", "SELECT 'x' WHERE now() - interval '5 minutes' < $1", grace=timedelta(minutes=10)
    )
    (own,) = await proofs_of(dict(values), waits)
    (given,) = await proofs_of(dict(values), waits, grace=timedelta(minutes=1))
    assert (own.holds, given.holds) == (True, False)


async def test_read_ledger_needs_no_running_gateway(harness: Harness) -> None:
    db = Database(harness.gateway.config.database)
    await db.start()
    try:
        proofs = [proof async for proof in read_ledger(harness.gateway, db, patience=30)]
    finally:
        await db.stop()
    assert len(proofs) > 20
    assert all(proof.holds for proof in proofs)
