"""Protects the inbox invariants: rows that bypass PostgreSQL's constraints are reported."""

from mpesa_gateway_callbacks.plugin import plugin
from tests.conftest import Harness
from tests.identifiers import literal
from tests.ledger import drop_constraints, find_missed_corruptions

ROWS = f"""
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, handle, result_code, stored_body, due_at,
    subject_id)
SELECT callback_id, 'pull', substr(sha256(uuid_send(callback_id)), 1, 16), now(), '192.0.2.1', '', '0', '{{}}', now(),
    NULL
FROM (VALUES ({literal("cbk", 1)}::uuid), ({literal("cbk", 2)}), ({literal("cbk", 3)})) AS given(callback_id)
"""  # noqa: S608 - ids that the test chose

VIOLATIONS = {
    "callbacks.waiting_is_due": f"""
        UPDATE callback SET due_at = NULL WHERE callback_id = {literal("cbk", 1)} RETURNING callback_id
    """,  # noqa: S608 - ids that the test chose
    "callbacks.nothing_overdue": f"""
        UPDATE callback SET due_at = now() - interval '11 minutes' WHERE callback_id = {literal("cbk", 2)}
        RETURNING callback_id
    """,  # noqa: S608 - ids that the test chose
}


def test_invariants_each_have_a_violation() -> None:
    assert set(VIOLATIONS) == {f"callbacks.{invariant.name}" for invariant in plugin.invariants}


async def test_invariants_report_each_violation_and_nothing_else(harness: Harness) -> None:
    await drop_constraints(harness.gateway)
    await harness.gateway.db.execute(ROWS)
    assert await find_missed_corruptions(harness.gateway, VIOLATIONS) == {}
