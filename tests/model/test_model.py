"""Protects money: in any order of events none is lost, doubled or invented, and the merchant is notified.

`just model` runs many long examples, shrinks failures, and reports coverage.
"""

import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.identifiers import literal
from tests.model import books
from tests.model.machine import Money
from tests.model.stage import Stage
from tests.model.wire import Plan

EXAMPLES = int(os.environ.get("MPESA_GATEWAY_TEST_EXAMPLES") or "0")
"""The number of examples of a long run; the default is a few short ones without shrinking."""

SETTINGS = settings(
    max_examples=EXAMPLES or 6,
    stateful_step_count=50 if EXAMPLES else 20,
    phases=(Phase.reuse, Phase.generate, *((Phase.shrink,) if EXAMPLES else ())),
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=(
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ),
)

pytestmark = pytest.mark.as_owner
"""The stage changes the sequences of a simulator, which requires the owner of its tables."""


@pytest.fixture
def stage(database_url: str, valkey_url: str) -> Iterator[Stage]:
    """The environment of the model."""
    with Stage(database_url, valkey_url) as stage:
        Money.stage = stage
        yield stage


def test_model_of_random_actions_keeps_the_books_correct(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    run_state_machine_as_test(Money, settings=SETTINGS)
    stage.run(stage.gateway.audit.verify())
    if EXAMPLES:
        with capsys.disabled():
            print(*(f"\n{times:6} {what}" for what, times in sorted(Money.reached.items())))  # noqa: T201


SABOTAGE: dict[str, str] = {
    "doubled: two prompts for one payment": """
        INSERT INTO sim_push SELECT 'ws_CO_2', 'm-2', shortcode, receiver, phone, amount, reference, description,
            callback_url, behaviour, state, result_code, NULL, created_at, ends_at, ended_at
        FROM sim_push LIMIT 1
    """,
    "invented: a prompt of another world or receiver than its payment's": """
        UPDATE sim_push SET shortcode = '600999', receiver = '600999'
    """,
    "invented: paid with a receipt that M-Pesa never gave": """
        UPDATE payment SET receipt = 'AAAAAAAAAA' WHERE amount = 500
    """,
    "invented: paid with a reversal": """
        UPDATE payment SET receipt = (SELECT receipt FROM sim_reversal LIMIT 1) WHERE amount = 500
    """,
    "invented: paid with money of the other world": """
        INSERT INTO live_daraja.sim_transaction SELECT * FROM sandbox_daraja.sim_transaction;
        DELETE FROM sandbox_daraja.sim_transaction
    """,
    "invented: paid with money that left": """
        UPDATE sim_transaction SET is_out = true, checkout_request_id = NULL, kind = 'payout'
    """,
    "invented: paid with another amount": "UPDATE sim_transaction SET amount = amount + 1",
    "doubled: paid with the money of another payment": """
        DROP INDEX payment_receipt;
        UPDATE payment SET receipt = (SELECT receipt FROM sim_transaction WHERE amount = payment.amount
            AND receipt <> payment.receipt LIMIT 1) WHERE status = 'completed' AND amount = 70
    """,
    "invented: paid with money of another payer": """
        UPDATE sim_transaction SET checkout_request_id = NULL, phone = '254799000001', kind = 'pay_bill',
            reference = 'ANOTHER'
    """,
    "doubled: one receipt on two payments": """
        DROP INDEX payment_receipt;
        UPDATE payment SET receipt = 'AAAAAAAAAA' WHERE status <> 'pending'
    """,
    "invented: paid without money": """
        UPDATE payment SET receipt = NULL; UPDATE sim_push SET result_code = '1032' WHERE state = 'ended'
    """,
    "lost: M-Pesa reported success, and the payment is not completed": """
        UPDATE payment SET status = 'failed', failure_reason = 'other', receipt = NULL, completed_at = NULL
        WHERE status = 'completed'
    """,
    "refunds: more is promised than came in": f"""
        INSERT INTO refund (refund_id, merchant_id, payment_id, env, amount, original_amount, receipt, due_at,
            created_at, updated_at, shortcode_id)
        SELECT {literal("rfd")}, merchant_id, payment_id, env, original_amount, original_amount, receipt, created_at,
            created_at, created_at, shortcode_id FROM refund
    """,  # noqa: S608 - an id of this test
    "refunds: more was reversed than recorded": "UPDATE sim_reversal SET amount = amount + 1",
    "refunds: less was reversed than recorded": "UPDATE sim_reversal SET amount = amount - 1",
    "refunds: the reserved amount differs from the pending refunds": """
        UPDATE payment SET refund_reserved = 7 WHERE status = 'completed'
    """,
    "refunds: one reversal was sent twice": """
        INSERT INTO sim_reversal SELECT 'AAAAAAAAAA', original, 1, 'twice', at FROM sim_reversal
    """,
    "events: a change of status without exactly one event": "DELETE FROM event WHERE kind = 'payment.completed'",
    "events: an event without its change": """
        UPDATE event SET occurred_at = occurred_at - interval '1 second' WHERE kind = 'payment.completed'
    """,
    "events: a refund that failed, and not exactly one event": """
        UPDATE refund SET status = 'failed', outcome = 'other', completed_at = NULL, reversal_receipt = NULL
    """,
    "events: money in an event that is not the payment's": """
        UPDATE event SET form_id = NULL, stored_body = jsonb_set(event.body::jsonb, '{data,amount}', '"1.00"')::text
        WHERE is_public
    """,
    "events: not exactly one delivery": "DELETE FROM attempt; DELETE FROM delivery",
    "stuck: no job will process it": """
        ALTER TABLE callback DROP CONSTRAINT callback_check1;
        UPDATE callback SET verdict = 'waiting', applied_at = NULL, due_at = NULL
    """,
    "stuck: it is processed too late": "UPDATE payment SET due_at = due_at + interval '1 day' WHERE status = 'pending'",
    "keys: free to send again what has been sent": "UPDATE idempotency_key SET state = 'released'",
}
"""For each invariant, the changes that a fault of the gateway could leave in the database."""

SABOTAGE_OF_THE_SETTLED: dict[str, str] = {
    "lost: the payer paid, and the payment is not paid": """
        UPDATE payment SET status = 'failed', failure_reason = 'other', receipt = NULL, completed_at = NULL
        WHERE status = 'completed'
    """,
    "lost: an acknowledgement that arrived": """
        ALTER TABLE payment DROP CONSTRAINT IF EXISTS payment_accepted_has_its_ids;
        UPDATE payment SET checkout_request_id = NULL
    """,
    "untold: M-Pesa reported a reversal on its portal, and no event followed": f"""
        UPDATE sim_reversal SET originator_conversation_id = 'portal-1';
        INSERT INTO status_check (check_id, merchant_id, env, shortcode, payment_id, asked_for, created_at, state,
            finished_at, transaction_status, finding)
        SELECT overlay(payment_id::text PLACING substr({literal("chk")}, 15, 4) FROM 15)::uuid, merchant_id, env,
            shortcode, payment_id, id_text(payment_id), created_at, 'answered',
            created_at, 'Reversed', 'reversed' FROM payment;
        DELETE FROM event WHERE kind = 'payment.reversed'
    """,  # noqa: S608 - an id of this test
    "lost: money that is not recorded": """
        INSERT INTO sim_transaction SELECT 'AAAAAAAAAA', NULL, phone, amount, shortcode, reference, at
        FROM sim_transaction LIMIT 1
    """,
    "invented: paid, and the money is not in M-Pesa's ledger": """
        DROP INDEX payment_receipt; UPDATE payment SET receipt = 'AAAAAAAAAA' WHERE refunded = 0 AND receipt IS NOT NULL
    """,
    "refunds: the reversed amount differs from the recorded one": "UPDATE sim_reversal SET amount = amount + 1",
    "stuck: a payment that never ends": "SELECT 1",
    "stuck: a success that is neither confirmed nor denied": """
        UPDATE payment SET claim = '{}' WHERE status = 'pending'
    """,
    "stuck: a refund": """
        UPDATE refund SET status = 'pending', outcome = NULL, completed_at = NULL, reversal = 'accepted',
            reversal_receipt = NULL, due_at = created_at
    """,
    "stuck: a delivery": "SELECT 1",
    "stuck: a subscriber": "SELECT 1",
    "stuck: a reconciliation": f"""
        INSERT INTO reconciliation_run (run_id, merchant_id, env, shortcode, cause, window_start, window_end,
            started_at, lease_until, receiver_id)
        SELECT {literal("run")}, merchant_id, env, '174379', 'cron', created_at, created_at + interval '1 hour',
            created_at, created_at, (SELECT receiver_id FROM receiver ORDER BY receiver_id LIMIT 1) FROM refund
    """,  # noqa: S608 - an id of this test
    "stuck: a callback that no handler has processed": """
        UPDATE callback SET verdict = 'unmatched', applied_at = NULL
    """,
}
"""Changes for the invariants of settled books; ``SELECT 1`` for one that fails before."""


@pytest.mark.parametrize("has_settled", [False, True])
def test_books_with_an_error_are_found(stage: Stage, has_settled: bool) -> None:
    money = Money()
    bought = [(500, "254711000101", True), (70, "254711000102", True), (70, "254711000103", True)]
    money.begin(seed=1, confirm="never", other="neighbour", strangers=0, bought=bought)
    money.refund(nth=2, amount=30, has_key=False, habit="before_ack", initiator="testapi", plan=Plan(), times=1)
    money.request_a_payment(amount=70, phone="254700000020", reference=None, plan=Plan(), fault=None)
    checks = books.SETTLED if has_settled else books.ALWAYS
    sabotage = SABOTAGE_OF_THE_SETTLED if has_settled else SABOTAGE
    assert set(sabotage) == set(checks)

    async def look(statement: str) -> set[str]:
        """Return the violations after this change, which is rolled back."""
        async with stage.db.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("SET LOCAL session_replication_role = replica")
            # The forged ledger is the sandbox's; the verifier reads both through views.
            await connection.execute(re.sub(r"(?<![.\w])sim_", "sandbox_daraja.sim_", statement))
            wrong = await books.wrong(connection, stage.clock.now(), money.known, has_settled=has_settled)
            await transaction.rollback()
        return {sentence for sentence, _ in wrong}

    before = stage.run(look("SELECT 1"))
    assert before == {sentence for sentence, statement in sabotage.items() if statement == "SELECT 1"}
    missed = [sentence for sentence, statement in sabotage.items() if sentence not in stage.run(look(statement))]
    assert missed == []
