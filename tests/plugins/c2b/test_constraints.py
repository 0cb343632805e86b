"""Protects the constraints of C2B's tables: each has a statement that violates it."""

import pytest

from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

ROWS = f"""
INSERT INTO c2b_address (receiver_id, merchant_id, env, token, token_digest, response_type, validation, created_at)
SELECT receiver_id, merchant_id, 'sandbox', 'v1.x', sha256('x'), 'Completed', 'accept', now() FROM merchant, receiver;
INSERT INTO account_number (account_id, receiver_id, merchant_id, env, number, is_active, created_at, updated_at)
SELECT {literal("acc", 1)}, receiver_id, merchant_id, 'sandbox', 'A1', true, now(), now() FROM merchant, receiver;
INSERT INTO account_entry (source_id, account_id, amount_cents, at)
VALUES ({literal("txn", 1)}, {literal("acc", 1)}, 100, now());
"""  # noqa: S608 - ids that the test chose

SECOND = f"""
INSERT INTO account_number (account_id, receiver_id, merchant_id, env, number, is_active, created_at, updated_at)
SELECT {literal("acc", 2)}, receiver_id, merchant_id, env, number, true, now(), now() FROM account_number
"""  # noqa: S608 - ids that the test chose

CASES = {
    "c2b_address_registered_when": ["UPDATE c2b_address SET state = 'registered'"],
    "c2b_address_is_permanent": ["UPDATE c2b_address SET token_digest = sha256('y')"],
    "c2b_address_not_deleted": ["DELETE FROM c2b_address"],
    "account_number_bounds": ["UPDATE account_number SET min_cents = 2, max_cents = 1"],
    "account_number_is_once": [SECOND],
    "account_number_stays": ["UPDATE account_number SET number = 'A2'"],
    "account_entry_append_only": ["UPDATE account_entry SET amount_cents = 1", "DELETE FROM account_entry"],
    "account_entry_never_emptied": ["TRUNCATE account_entry"],
}


def test_constraints_each_have_a_violation() -> None:
    assert set(CASES) == added("mpesa_gateway_c2b.migrations")


@pytest.mark.as_owner
async def test_constraints_reject_their_violations(harness: Harness) -> None:
    await harness.gateway.db.execute(ROWS)
    assert await refusals(harness.gateway.db, CASES) == {}
