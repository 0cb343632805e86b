"""Protects the credentials invariants: rows that bypass PostgreSQL's constraints are reported."""

from mpesa_gateway_credentials.plugin import plugin
from tests.conftest import Harness
from tests.ledger import drop_constraints, find_missed_corruptions

VIOLATIONS = {
    "credentials.active_shortcodes_have_a_default": """
        UPDATE shortcode SET is_default = false RETURNING merchant_id
    """,
    "credentials.envs_are_the_shortcodes": """
        UPDATE merchant SET envs = '{live}' WHERE name = 'Other' RETURNING merchant_id;
        UPDATE merchant SET envs = '{live,sandbox}' WHERE envs = '{sandbox}' RETURNING merchant_id
    """,
    "credentials.store_numbers_are_kept": "UPDATE shortcode SET store_number = '600001' RETURNING shortcode_id",
    "credentials.owners_have_credentials": """
        UPDATE receiver SET env = 'live', owner_id = (SELECT merchant_id FROM merchant WHERE name = 'Other')
        RETURNING receiver_id
    """,
}


def test_invariants_each_have_a_violation() -> None:
    assert set(VIOLATIONS) == {f"credentials.{invariant.name}" for invariant in plugin.invariants}


async def test_invariants_report_each_violation_and_nothing_else(harness: Harness) -> None:
    await harness.gateway.merchants.create("Other", actor="test")
    await drop_constraints(harness.gateway)
    assert await find_missed_corruptions(harness.gateway, VIOLATIONS) == {}
