"""Protects the constraints of the payments' tables: each has a statement that violates it."""

from itertools import product

import pytest

from mpesa_gateway_payments.states import Status, is_transition_allowed
from tests.conftest import Harness
from tests.constraints import added, refusals
from tests.identifiers import literal

pytestmark = pytest.mark.as_owner

PAID = "UPDATE payment SET %s WHERE idempotency_key = 'paid'"
OPEN = "UPDATE payment SET %s WHERE idempotency_key = 'open'"
FAILED = "UPDATE payment SET %s WHERE idempotency_key = 'failed'"
CHECK = (
    "INSERT INTO status_check (check_id, merchant_id, env, shortcode, payment_id, state, created_at, finished_at) "  # noqa: S608 - ids that the test chose
    f"SELECT {literal('chk')}, merchant_id, %s, shortcode, %s, 'asked', now(), %s FROM payment "
    "WHERE idempotency_key = 'paid'"
)
UNANSWERED = CHECK % ("env", "payment_id", "NULL")
REVIEW = (
    f"{UNANSWERED}; UPDATE status_check SET state = 'answered', finished_at = now(), finding = '%s', "  # noqa: S608 - the statement above
    "(reviewed_at, reviewed_by, review_note) = (%s)"
)
UNASKED_REVIEW = "UPDATE status_check SET reviewed_at = now(), reviewed_by = 'a person', review_note = 'seen'"
STATS = (
    "INSERT INTO payment_stats (hour, merchant_id, env, asked, paid, failed, taken, returned, reasons, waits, "
    "counted_at) "
    "SELECT date_trunc('hour', now(), 'UTC'), merchant_id, env, 1, 1, 1, 0, 0, '{}', '{0,0,0,0,0,0}', now() "
    "FROM payment WHERE idempotency_key = 'paid'"
)
ERASED = "phone = 'erased', erased_at = now()"
STEP = "INSERT INTO payment_step (payment_id, at, kind, cause, detail) SELECT payment_id, now(), '%s', 'callback', '' "

CASES = {
    "payment_own_reference_form": [OPEN % "reference_is_ours = true, reference = 'ORDER1'"],
    "payment_of_key": [OPEN % "idempotency_key = 'paid'"],
    "payment_shortcode_check": [OPEN % "shortcode = ''", OPEN % "shortcode = '12345678'"],
    "payment_asked_check": [OPEN % "asked = -1"],
    "payment_requested_by_check": [OPEN % "requested_by = ''"],
    "payment_receipt_check": [OPEN % "status = 'completed', completed_at = now(), due_at = NULL, receipt = 'tkn 1'"],
    "payment_check": [PAID % "completed_at = NULL", OPEN % "completed_at = now()"],
    "payment_check1": [OPEN % "failure_reason = 'other'", FAILED % "failure_reason = NULL"],
    "payment_check2": [OPEN % "receipt = 'TKN4A1B2C3'"],
    "payment_check4": [OPEN % "due_at = NULL"],
    "payment_due_while_open": [PAID % "due_at = now()", FAILED % "due_at = now(), failure_reason = 'other'"],
    "payment_erased_when_ended": [OPEN % "phone = 'erased', erased_at = now()"],
    "payment_reviewed_what_waited": [PAID % "reviewed_at = now()"],
    "payment_phone_check": [OPEN % "phone = '0700000020'", PAID % "erased_at = now()"],
    "payment_refunds_are_of_money": [OPEN % "refund_reserved = 1"],
    "payment_refunds_fit": [PAID % "refund_reserved = amount + 1"],
    "payment_reversed_outside_fits_status": [PAID % "reversed_outside = 'whole'"],
    "payment_reversed_when_refunded": [PAID % "status = 'reversed'", PAID % "refunded = 1", PAID % "refunded = amount"],
    "payment_receipt": ["UPDATE payment SET receipt = 'TKN4A1B2C3' WHERE receipt IS NOT NULL"],
    "payment_own_reference": ["UPDATE payment SET reference = 'OURSOURSOURS', reference_is_ours = true"],
    "payment_checkout_request_id": ["UPDATE payment SET checkout_request_id = 'ws_CO_1'"],
    "payment_erased_for_good": [
        f"{FAILED % ERASED}; {FAILED % changed}"
        for changed in ("phone = '254700000001', erased_at = NULL", "erased_at = erased_at + interval '1 second'")
    ],
    "payment_stats_check": [STATS],
    "status_check_check": [CHECK % ("env", "NULL", "NULL")],
    "status_check_check1": [CHECK % ("env", "payment_id", "now()")],
    "status_check_review_note_check": [REVIEW % ("ambiguous", "now(), 'a person', ''")],
    "status_check_review_is_whole": [REVIEW % ("ambiguous", "now(), NULL, NULL")],
    "status_check_review_is_of_an_ambiguous_answer": [
        REVIEW % ("not_found", "now(), 'a person', 'seen'"),
        UNANSWERED + "; " + UNASKED_REVIEW,
    ],
    "status_check_env_is_its_payments": [CHECK % ("'live'", "payment_id", "NULL")],
    "payment_received_something_else": [
        OPEN % "received_amount = '5'",
        OPEN % "received_receipt = 'TKN4A1B2C3'",
        OPEN % "received_phone = '254711000001'",
    ],
    "payment_accepted_has_its_ids": [OPEN % "checkout_request_id = NULL"],
    "payment_claim_is_being_asked_about": [
        OPEN % "claim = '[]'",
        OPEN % "claim = '{}', due_at = NULL, mismatch = 'phone'",
        PAID % "claim = '{}', due_at = now()",
    ],
    "payment_moves": [FAILED % "status = 'completed', failure_reason = NULL, completed_at = now()"],
    "payment_asks_for_the_same": [
        OPEN % "amount = amount + 1",
        OPEN % "merchant_id = (SELECT merchant_id FROM merchant WHERE name = 'Other')",
        OPEN % "env = 'live'",
        OPEN % "shortcode = '600000'",
        OPEN % "idempotency_key = 'other'",
    ],
    "payment_proof_is_kept": [
        PAID % "receipt = 'TKN4A1B2C4'",
        PAID % "receipt = NULL",
        PAID % "completed_at = now()",
        "UPDATE payment SET refunded = 1, status = 'partially_reversed' WHERE idempotency_key = 'back'",
    ],
    "payment_not_deleted": ["DELETE FROM payment"],
    "payment_never_emptied": ["TRUNCATE payment CASCADE"],
    "payment_step_change": [
        STEP % "reversed" + "FROM payment, generate_series(1, 2) WHERE idempotency_key = 'paid'",
        *(STEP % kind + "FROM payment WHERE idempotency_key = 'failed'" for kind in ("failed", "refused", "expired")),
    ],
    "payment_step_append_only": [
        "UPDATE payment_step SET kind = 'sent'",
        "UPDATE payment_step SET cause = 'operator'",
        "UPDATE payment_step SET at = now()",
        "UPDATE payment_step SET result_code = '0'",
    ],
    "payment_step_not_deleted": ["DELETE FROM payment_step"],
    "payment_step_never_emptied": ["TRUNCATE payment_step"],
}


def test_constraints_each_have_a_violating_statement() -> None:
    assert set(CASES) >= added("mpesa_gateway_payments.migrations")


@pytest.fixture
async def payments_of_each_status(harness: Harness) -> None:
    """A pending, a failed, a completed and a partially reversed payment."""
    await harness.gateway.merchants.create("Other", actor="test")
    await harness.api.pay("254700000020", key="open")
    for key, phone, status in (
        ("failed", "254700000001", "failed"),
        ("paid", "254711000001", "completed"),
        ("back", "254711000002", "completed"),
    ):
        await harness.api.settled((await harness.api.pay(phone, key=key)).data["id"], status)
    await harness.gateway.db.execute(
        "UPDATE payment SET status = 'partially_reversed', refunded = 2 WHERE idempotency_key = 'back'"
    )


@pytest.mark.usefixtures("payments_of_each_status")
async def test_constraints_reject_their_violating_statements(harness: Harness) -> None:
    assert await refusals(harness.gateway.db, CASES) == {}


@pytest.mark.usefixtures("payments_of_each_status")
async def test_moves_allowed_by_postgres_equal_the_allowed_moves(harness: Harness) -> None:
    """Tries every move, with and without a receipt and a final failure, on a row of that status."""
    every = list(product(Status, Status, (False, True), (False, True)))
    moves = {
        "payment_moves": [
            _move(now, to, has_receipt=has_receipt, is_final=is_final)
            for now, to, has_receipt, is_final in every
            if now is not to and not is_transition_allowed(now, to, has_receipt=has_receipt, is_final=is_final)
        ]
    }
    assert len(moves["payment_moves"]) > 20
    # Constraints that tie other columns to the status are not the subject here.
    await harness.gateway.db.execute(
        "ALTER TABLE payment DISABLE TRIGGER payment_proof_is_kept; "
        + "".join(f"ALTER TABLE payment DROP CONSTRAINT {name};" for name in await _constraints_on_status(harness))
    )
    assert await refusals(harness.gateway.db, moves) == {}
    allowed = [
        _move(now, to, has_receipt=has_receipt, is_final=is_final)
        for now, to, has_receipt, is_final in every
        if is_transition_allowed(now, to, has_receipt=has_receipt, is_final=is_final)
    ]
    refused = await refusals(harness.gateway.db, {"nothing": allowed})
    assert [text for text in refused["nothing"] if not text.endswith(": not refused (DO)")] == []


def _move(now: Status, to: Status, *, has_receipt: bool, is_final: bool) -> str:
    receipt = "'TKN9Z8Y7X6'" if has_receipt else "NULL"
    return f"""DO $$ BEGIN
        ALTER TABLE payment DISABLE TRIGGER payment_moves;
        {OPEN % f"status = '{now}', receipt = NULL, outcome_is_final = {is_final}"};
        ALTER TABLE payment ENABLE TRIGGER payment_moves;
        {OPEN % f"status = '{to}', receipt = {receipt}"};
    END $$"""


async def _constraints_on_status(harness: Harness) -> list[str]:
    rows = await harness.gateway.db.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'payment'::regclass AND contype = 'c' "
        "AND pg_get_constraintdef(oid) LIKE '%status%'"
    )
    return [row["conname"] for row in rows]
