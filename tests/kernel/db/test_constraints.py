"""Protects the constraints of the kernel's tables: each has a statement that breaks it."""

from typing import Any
from uuid import UUID

import pytest

from mpesa_gateway.ids import NO_ROW
from mpesa_gateway.testing.serving import running_gateway
from tests.constraints import added, refusals
from tests.identifiers import literal

pytestmark = pytest.mark.as_owner

SHOP, PAYMENT, OTHER_PAYMENT = literal("mer"), literal("pay"), literal("pay", 2)
NOTHING = f"'{UUID(bytes=NO_ROW)}'"
HEARD, OTHER_EVENT = literal("evt"), literal("evt", 2)

ROWS = f"""
INSERT INTO merchant (merchant_id, name, created_at, updated_at) VALUES ({SHOP}, 'Shop', now(), now());
INSERT INTO idempotency_key (merchant_id, env, digest, fingerprint, state, subject_id, leased_until, created_at)
VALUES ({SHOP}, 'sandbox', gen_random_uuid(), substr(sha256('a'), 1, 16), 'settled', {PAYMENT}, now(), now());
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, stored_body)
VALUES ({HEARD}, 'payment.completed', {SHOP}, 'sandbox', {PAYMENT}, now(), true, '{{}}', '{{}}');
INSERT INTO body_form (form_id, template) VALUES (1, '%s %s');
INSERT INTO event_task (event_id, subscriber, due_at) VALUES ({HEARD}, 'me', now());
SELECT audit_write('aud_1', now(), NULL, 'me', 'x', NULL, '{{}}');
"""  # noqa: S608 - our own

KEY = (
    "INSERT INTO idempotency_key (merchant_id, env, digest, fingerprint, state, subject_id, leased_until, created_at) "
    "VALUES "
)
EVENT = """
INSERT INTO event (event_id, kind, merchant_id, env, subject_id, occurred_at, is_public, payload, stored_body) VALUES
"""
ENTRY = (
    "INSERT INTO audit_entry (number, entry_id, at, actor, action, detail, previous_digest, digest) "
    "VALUES (%s, 'aud_x', now(), '%s', '%s', '{\"through\": 1}', %s, sha256('a'))"
)

CASES = {
    "gateway_secret_is_sealed": ["UPDATE gateway_secret SET sealed = 'open'"],
    "idempotency_key_subject_id_check": [
        KEY
        + f"({SHOP}, 'sandbox', gen_random_uuid(), substr(sha256('a'), 1, 16), 'in_flight', {NOTHING}, now(), now())"
    ],
    "idempotency_key_one_subject": [
        f"UPDATE idempotency_key SET subject_id = {OTHER_PAYMENT}",  # noqa: S608 - our own
        "UPDATE idempotency_key SET fingerprint = substr(sha256('b'), 1, 16)",
        "UPDATE idempotency_key SET digest = gen_random_uuid()",
        "UPDATE idempotency_key SET env = 'live'",
        "UPDATE idempotency_key SET operation = 'refund'",
    ],
    "idempotency_key_settled_for_good": ["UPDATE idempotency_key SET state = 'released'"],
    "event_kind_check": [
        EVENT + f"({OTHER_EVENT}, '', {SHOP}, 'sandbox', {PAYMENT}, now(), true, '{{}}', '{{}}')",
        EVENT + f"({OTHER_EVENT}, 'Payment Completed', {SHOP}, 'sandbox', {PAYMENT}, now(), true, '{{}}', '{{}}')",
    ],
    "event_payload_check": [EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, 'sandbox', {PAYMENT}, now(), true, '[]', '{{}}')"],
    "event_check": [
        EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, 'sandbox', {PAYMENT}, now(), true, '{{}}', NULL)",
        EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, 'sandbox', {PAYMENT}, now(), false, '{{}}', '{{}}')",
    ],
    "event_check1": [EVENT + f"({OTHER_EVENT}, 'a.b', NULL, 'sandbox', {PAYMENT}, now(), true, '{{}}', '{{}}')"],
    "event_payload_unless_public": [
        EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, 'sandbox', {PAYMENT}, now(), false, NULL, NULL)"
    ],
    "event_env_check": [
        EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, NULL, {PAYMENT}, now(), true, '{{}}', '{{}}')",
        EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, 'test', {PAYMENT}, now(), false, '{{}}', NULL)",
    ],
    "event_public_has_a_subject": [
        EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, 'sandbox', NULL, now(), true, '{{}}', '{{}}')"
    ],
    "event_subject_id_check": [
        EVENT + f"({OTHER_EVENT}, 'a.b', {SHOP}, 'sandbox', {NOTHING}, now(), true, '{{}}', '{{}}')"
    ],
    "event_form_of_a_body": [
        f"""
        INSERT INTO event (event_id, kind, occurred_at, is_public, payload, form_id)
        VALUES ({OTHER_EVENT}, 'a.b', now(), false, '{{}}', 1)
        """  # noqa: S608 - our own
    ],
    "body_form_template_check": ["INSERT INTO body_form (form_id, template) VALUES (2, repeat('x', 2001))"],
    "body_form_stays": ["UPDATE body_form SET template = 'x'", "DELETE FROM body_form"],
    "body_form_never_emptied": ["TRUNCATE body_form"],
    "event_append_only": [
        "UPDATE event SET kind = 'payment.failed'",
        f"UPDATE event SET event_id = {OTHER_EVENT}",  # noqa: S608 - our own
        "UPDATE event SET merchant_id = NULL, is_public = false, stored_body = NULL",
        f"UPDATE event SET subject_id = {OTHER_PAYMENT}",  # noqa: S608 - our own
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
    "audit_entry_append_only": ["UPDATE audit_entry SET detail = '{}'", "UPDATE audit_entry SET recorded_at = at"],
    "audit_entry_comes": [ENTRY % (99, "me", "audit.cut", "sha256('a')")],
    "audit_entry_not_deleted": ["DELETE FROM audit_entry"],
    "audit_entry_never_emptied": ["TRUNCATE audit_entry"],
    "audit_checkpoint_not_written": ["INSERT INTO audit_checkpoint (number, digest) VALUES (1, sha256('a'))"],
    "audit_checkpoint_never_emptied": ["TRUNCATE audit_checkpoint"],
}


def test_every_kernel_constraint_has_a_statement_that_breaks_it() -> None:
    assert added("mpesa_gateway.db.migrations") - set(CASES) == set()


async def test_kernel_constraints_reject_their_statements(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await gateway.db.execute(ROWS)
        assert await refusals(gateway.db, CASES) == {}


async def test_event_payload_update_that_erases_a_payer_is_allowed(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await gateway.db.execute(ROWS)
        assert (
            await gateway.db.execute("UPDATE event SET payload = '{\"phone\": \"\"}', stored_body = '{}'") == "UPDATE 1"
        )
