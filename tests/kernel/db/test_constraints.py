"""What the kernel's tables refuse, whoever asks: each rule has a statement that breaks it."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import running_gateway
from tests.constraints import added, refusals

pytestmark = pytest.mark.as_owner

ROWS = """
INSERT INTO merchant (merchant_id, name, created_at, updated_at) VALUES ('mer_1', 'Shop', now(), now());
INSERT INTO idempotency_key (merchant_id, env, key, fingerprint, state, subject_id, leased_until, created_at)
VALUES ('mer_1', 'sandbox', 'order', sha256('a'), 'settled', 'pay_1', now(), now());
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, body)
VALUES ('evt_1', 'payment.completed', 'mer_1', 'sandbox', 'pay_1', now(), true, '{}', '{}');
INSERT INTO event_task (event_id, subscriber, due_at) VALUES ('evt_1', 'me', now());
"""

KEY = (
    "INSERT INTO idempotency_key (merchant_id, env, key, fingerprint, state, subject_id, leased_until, created_at) "
    "VALUES "
)
EVENT = (
    "INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, body) VALUES "
)
ENTRY = (
    "INSERT INTO audit_entry (number, entry_id, at, actor, action, detail, previous_digest, digest) "
    "VALUES (%s, 'aud_x', now(), '%s', '%s', '{}', %s, sha256('a'))"
)

CASES = {
    "gateway_secret_is_sealed": ["UPDATE gateway_secret SET sealed = 'open'"],
    "idempotency_key_has_a_subject": [
        KEY + "('mer_1', 'sandbox', 'other', sha256('a'), 'in_flight', '', now(), now())"
    ],
    "idempotency_key_one_subject": [
        "UPDATE idempotency_key SET subject_id = 'pay_2'",
        "UPDATE idempotency_key SET fingerprint = sha256('b')",
        "UPDATE idempotency_key SET key = 'other'",
        "UPDATE idempotency_key SET env = 'live'",
        "UPDATE idempotency_key SET operation = 'refund'",
    ],
    "idempotency_key_settled_for_good": ["UPDATE idempotency_key SET state = 'released'"],
    "event_kind_check": [
        EVENT + "('evt_2', '', 'mer_1', 'sandbox', 'pay_1', now(), true, '{}', '{}')",
        EVENT + "('evt_2', 'Payment Completed', 'mer_1', 'sandbox', 'pay_1', now(), true, '{}', '{}')",
    ],
    "event_payload_check": [EVENT + "('evt_2', 'a.b', 'mer_1', 'sandbox', 'pay_1', now(), true, '[]', '{}')"],
    "event_public_has_a_subject": [EVENT + "('evt_2', 'a.b', 'mer_1', 'sandbox', '', now(), true, '{}', '{}')"],
    "event_append_only": [
        "UPDATE event SET kind = 'payment.failed'",
        "UPDATE event SET event_id = 'evt_2'",
        "UPDATE event SET merchant_id = NULL, is_public = false, body = NULL",
        "UPDATE event SET subject_id = 'pay_2'",
        "UPDATE event SET occurred_at = now()",
        "UPDATE event SET env = 'live'",
    ],
    "event_not_deleted": ["DELETE FROM event"],
    "event_never_emptied": ["TRUNCATE event CASCADE"],
    "event_task_attempts_check": ["UPDATE event_task SET attempts = -1"],
    "event_task_done_is_not_leased": ["UPDATE event_task SET done_at = now(), leased_until = now()"],
    "audit_entry_number_check": [ENTRY % (0, "me", "x", "sha256('a')")],
    "audit_entry_previous_digest_check": [ENTRY % (99, "me", "x", "'\\x00'")],
    "audit_entry_says_what": [ENTRY % (99, "", "x", "sha256('a')"), ENTRY % (99, "me", "", "sha256('a')")],
}


def test_every_rule_has_a_statement_that_breaks_it() -> None:
    assert set(CASES) == added("mpesa_gateway.db.migrations", "0003_what_always_holds.sql")


async def test_the_tables_refuse_what_must_not_be(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await gateway.db.execute(ROWS)
        assert await refusals(gateway.db, CASES) == {}


async def test_a_payers_number_can_be_erased_from_an_event(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await gateway.db.execute(ROWS)
        assert await gateway.db.execute("UPDATE event SET payload = '{\"phone\": \"\"}', body = '{}'") == "UPDATE 1"
