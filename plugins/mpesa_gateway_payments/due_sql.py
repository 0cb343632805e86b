"""Statements that find and claim due and expired payments."""

from collections.abc import Sequence
from datetime import datetime

from piccolo.columns.combination import Where, WhereRaw

from mpesa_gateway.db.engine import Database, Found, Row
from mpesa_gateway_payments.states import Charge
from mpesa_gateway_payments.tables import PaymentRow

# raw SQL: join - the shortcodes with due payments, each found in the index.
# raw SQL: lock - several workers claim payments at once.

DUE_SHORTCODES = """
WITH RECURSIVE open AS (
    -- Steps through the index from one shortcode to the next, without reading all payments of each.
    (SELECT shortcode_id FROM payment WHERE due_at IS NOT NULL ORDER BY shortcode_id LIMIT 1)
    UNION ALL
    SELECT (SELECT payment.shortcode_id FROM payment
        WHERE due_at IS NOT NULL AND payment.shortcode_id > open.shortcode_id ORDER BY payment.shortcode_id LIMIT 1)
    FROM open WHERE open.shortcode_id IS NOT NULL
)
SELECT shortcode_id, oldest.due_at FROM open CROSS JOIN LATERAL (
    SELECT due_at FROM payment
    WHERE payment.shortcode_id = open.shortcode_id AND due_at <= $1
        AND checkout_request_id IS NOT NULL AND mismatch IS NULL
    ORDER BY due_at LIMIT 1
) AS oldest
ORDER BY oldest.due_at
"""
"""A shortcode is an account at Daraja; each has its own job."""

CLAIM_DUE_OF = """
UPDATE payment SET due_at = $3, asked = asked + 1
WHERE payment_id IN (
    SELECT payment_id FROM payment
    WHERE shortcode_id = $1 AND due_at <= $2 AND checkout_request_id IS NOT NULL AND mismatch IS NULL
    -- Expired payments come last: there may be thousands after an outage.
    ORDER BY status = 'failed' AND claim IS NULL, due_at LIMIT $4 FOR UPDATE SKIP LOCKED
)
RETURNING *
"""

LOCK_EXPIRED = """
SELECT payment.*, payment.xmin::text AS version FROM payment
WHERE status = 'pending' AND mismatch IS NULL AND expires_at <= $1 AND NOT payment_id = ANY($3::uuid[])
    AND charge NOT IN ('ready', 'sending')
ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""
"""Thousands may have expired after an outage; the next run finds locked rows."""

# raw SQL: array
UNSENT_REASONS = """
SELECT DISTINCT ON (payment_id) payment_id, detail FROM payment_step
WHERE payment_id = ANY($1::uuid[]) AND kind = 'unsent' ORDER BY payment_id, number DESC
"""

_IS_WAITING = WhereRaw("status = 'pending' AND mismatch IS NULL")
"""The predicate of the index ``payment_expiry``, as text: a generic plan does not match parameters with it."""

_IS_ASKED_ABOUT = WhereRaw(
    "(status = 'pending' OR claim IS NOT NULL OR (status = 'failed' AND failure_reason = 'expired'))"
)


async def read_unsent_reasons(db: Database, rows: Sequence[Row]) -> dict[str, str]:
    """Return the reasons by payment id."""
    released = [row["payment_id"] for row in rows if row["charge"] == Charge.RELEASED.value]
    found = await db.fetch(UNSENT_REASONS, released) if released else []
    return {row["payment_id"]: row["detail"] for row in found}


async def find_abandoned(db: Database, begun_before: datetime, now: datetime, limit: int) -> Sequence[str]:
    """Return payments without an outcome after their key's lease, oldest first.

    ``expires_at`` counts from the same time as the lease.
    """
    rows: list[Found] = await db.run(
        PaymentRow.select(PaymentRow.payment_id)
        .where(
            _IS_WAITING,
            PaymentRow.expires_at <= begun_before,
            PaymentRow.charge.is_in(["ready", "sending"]),
            PaymentRow.checkout_request_id.is_null(),
            PaymentRow.due_at <= now,
        )
        .order_by(PaymentRow.expires_at)
        .limit(limit)
    )
    return [row["payment_id"] for row in rows]


async def claim_due(db: Database, payment_id: str, now: datetime, until: datetime, *, is_forced: bool) -> Found | None:
    """Claim a payment until ``until``; None if it is not due. ``is_forced`` claims it in any case."""
    conditions: list[Where | WhereRaw] = [
        PaymentRow.payment_id == payment_id,
        _IS_ASKED_ABOUT,
        PaymentRow.mismatch.is_null(),
    ]
    if not is_forced:
        conditions.append(PaymentRow.due_at <= now)
    rows: list[Found] = await db.run(
        PaymentRow.update({PaymentRow.due_at: until, PaymentRow.asked: PaymentRow.asked + 1})
        .where(*conditions)
        .returning(*PaymentRow.all_columns())
    )
    return rows[0] if rows else None


async def set_next_query(db: Database, payment_id: str, at: datetime | None) -> None:
    await db.run(
        PaymentRow.update({PaymentRow.due_at: at}).where(
            PaymentRow.payment_id == payment_id, _IS_ASKED_ABOUT, PaymentRow.due_at.is_not_null()
        )
    )
