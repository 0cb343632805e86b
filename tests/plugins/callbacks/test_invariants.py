"""The inbox, bent past Postgres' own rules: it shows."""

from mpesa_gateway_callbacks.plugin import plugin
from tests.conftest import Town
from tests.ledger import each_is_noticed, lay_bare

ROWS = """
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, handle, result_code, body, due_at,
    subject_id)
SELECT 'cbk_' || number, 'pull', sha256(number::text::bytea), now(), '192.0.2.1', '', '0', '{}', now(), ''
FROM generate_series(1, 3) AS number
"""

BENDINGS = {
    "callbacks.waiting_is_due": "UPDATE callback SET due_at = NULL WHERE callback_id = 'cbk_1' RETURNING callback_id",
    "callbacks.nothing_overdue": """
        UPDATE callback SET due_at = now() - interval '11 minutes' WHERE callback_id = 'cbk_2' RETURNING callback_id
    """,
}


def test_every_invariant_is_bent() -> None:
    assert set(BENDINGS) == {f"callbacks.{invariant.name}" for invariant in plugin.invariants}


async def test_whatever_is_bent_shows_and_nothing_else_does(town: Town) -> None:
    await lay_bare(town.gateway)
    await town.gateway.db.execute(ROWS)
    assert await each_is_noticed(town.gateway, BENDINGS) == {}
