"""Protects the invariants of account numbers: each violation is reported."""

from typing import Any

import pytest

from mpesa_gateway_c2b.plugin import plugin
from tests.ledger import find_missed_corruptions
from tests.plugins.c2b.c2b_site import c2b_site

VIOLATIONS = {
    "c2b.account_received_is_its_entries": """
        UPDATE account_number SET received_cents = 1 WHERE number = 'A1' RETURNING account_id
    """,
    "c2b.account_transactions_are_counted": """
        UPDATE transaction SET subject_kind = 'account_number', subject_id = account_id FROM account_number
        WHERE receipt = 'TKN4A1B2C4' AND number = 'A2' RETURNING transaction_id
    """,
    "c2b.account_entries_are_money": """
        INSERT INTO account_entry (source_id, account_id, amount_cents, at)
        SELECT gen_random_uuid(), account_id, 100, now() FROM account_number WHERE number = 'A2'
        RETURNING source_id
    """,
}


def test_invariants_each_have_a_violation() -> None:
    assert set(VIOLATIONS) == {f"c2b.{invariant.name}" for invariant in plugin.invariants}


@pytest.mark.as_owner
async def test_invariants_report_their_violations(values: dict[str, Any]) -> None:
    async with c2b_site(values) as site:
        path, _ = await site.addresses()
        for number in ("A1", "A2"):
            await site.api.call("PUT", f"/v1/account-numbers/{number}", {"expected": 500})
        await site.confirm(path, account="A1")
        await site.confirm(path, "TKN4A1B2C4", account="nothing")
        also = {"c2b.account_entries_are_money": "c2b.account_received_is_its_entries"}
        assert await find_missed_corruptions(site.gateway, VIOLATIONS, also) == {}
