"""Statements that write decisions and refunds."""

from mpesa_gateway_payments.result_codes import SUCCESS_TEXT

_COLUMNS = {
    "status": "text",
    "charge": "text",
    "merchant_request_id": "text",
    "checkout_request_id": "text",
    "receipt": "text",
    "result_code": "text",
    "result_desc": "text",
    "failure_reason": "text",
    "outcome_is_final": "boolean",
    "mismatch": "text",
    "is_mismatch_of_paid": "boolean",
    "received_amount": "text",
    "received_receipt": "text",
    "received_phone": "text",
    "claim": "text",
    "looked_after_at": "timestamptz",
    "due_at": "timestamptz",
    "expires_at": "timestamptz",
    "updated_at": "timestamptz",
    "completed_at": "timestamptz",
    "completed_by": "text",
}
"""Columns that a decision can change."""

WRITTEN = ("payment_id", "version", *_COLUMNS)
"""The parameters of ``CHANGE``, in order."""

_TYPES = _COLUMNS | {"payment_id": "uuid"}
_ARRAYS = ", ".join(f"${number}::{_TYPES.get(name, 'text')}[]" for number, name in enumerate(WRITTEN, 1))
_VALUES = {
    "claim": "given.claim::jsonb",
    # A late report does not restore an erased number.
    "received_phone": "CASE WHEN payment.erased_at IS NULL OR given.received_phone IS NOT DISTINCT FROM "
    "payment.received_phone THEN given.received_phone ELSE 'erased' END",
    "result_desc": f"CASE WHEN given.result_code = '0' THEN NULLIF(given.result_desc, '{SUCCESS_TEXT}') "
    "ELSE given.result_desc END",
}
_SET = ", ".join(f"{name} = {_VALUES.get(name, f'given.{name}')}" for name in _COLUMNS)

# raw SQL: hot path - each callback.
UPDATE_PAYMENTS = f"""
UPDATE payment SET {_SET}
FROM (
    SELECT * FROM (
        SELECT payment.ctid AS place, payment.xmin::text AS found, t.* FROM (
            SELECT * FROM unnest({_ARRAYS}) AS t({", ".join(WRITTEN)}) LIMIT cardinality($1)
        ) AS t JOIN payment USING (payment_id)
        -- A batch waits for no lock: the reports of locked rows are applied alone.
        FOR UPDATE OF payment SKIP LOCKED
    ) AS free
    -- Two batches with the same receipts for different payments write them in the same order.
    ORDER BY receipt
) AS given
-- By ctid, so that Postgres keeps that order: a join by payment_id may start with the payments.
WHERE payment.ctid = given.place AND given.found = given.version
RETURNING payment.payment_id
"""
"""Writes decided payments; skips rows that have changed since the read."""

STEPS = """
INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail)
SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[])
RETURNING payment_id
"""

# raw SQL: aggregate
MISMATCHES = """
SELECT payment_id, array_agg(detail) AS details FROM payment_step
WHERE payment_id = ANY($1::uuid[]) AND kind = 'mismatched' GROUP BY payment_id
"""

# raw SQL: expression
REVERSE = """
UPDATE payment SET refund_reserved = refund_reserved - $2, refunded = refunded + $2, updated_at = $3,
    status = CASE WHEN refunded + $2 = amount THEN 'reversed' ELSE 'partially_reversed' END
WHERE payment_id = $1 AND status IN ('completed', 'partially_reversed') AND refund_reserved >= $2
RETURNING *
"""
