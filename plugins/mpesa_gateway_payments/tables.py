"""Payments as Piccolo knows them, and the named queries on them; the migrations say the rest."""

from piccolo.columns import JSONB, Array, BigInt, Boolean, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db import idempotency
from mpesa_gateway.db.named import Named

MOST_CANDIDATES = 1000
"""Payments of one receiver and amount that evidence is compared with; beyond that the rule decides nothing."""


class PaymentRow(Table, tablename="payment"):
    """A merchant wants an amount from a payer."""

    payment_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    provider = Text()
    shortcode_id = Text()
    shortcode = Text()
    amount = Integer()
    currency = Text()
    phone = Text()
    reference = Text()
    reference_is_ours = Boolean()
    description = Text()
    callback_url = Text(null=True, default=None)
    metadata = JSONB()
    idempotency_key = Text()
    status = Text()
    charge = Text()
    push_attempt = Integer()
    merchant_request_id = Text(null=True, default=None)
    checkout_request_id = Text(null=True, default=None)
    receipt = Text(null=True, default=None)
    result_code = Text(null=True, default=None)
    result_desc = Text(null=True, default=None)
    failure_reason = Text(null=True, default=None)
    outcome_is_final = Boolean()
    mismatch = Text(null=True, default=None)
    is_mismatch_of_paid = Boolean()
    received_amount = Text(null=True, default=None)
    received_receipt = Text(null=True, default=None)
    received_phone = Text(null=True, default=None)
    refund_reserved = Integer()
    refunded = Integer()
    claim = JSONB(null=True, default=None)
    looked_after_at = Timestamptz(null=True, default=None)
    reversed_outside = Text(null=True, default=None)
    asked = Integer()
    due_at = Timestamptz(null=True, default=None)
    expires_at = Timestamptz()
    created_at = Timestamptz()
    updated_at = Timestamptz()
    completed_at = Timestamptz(null=True, default=None)
    erased_at = Timestamptz(null=True, default=None)


class PaymentTallyRow(Table, tablename="payment_tally"):
    """How one merchant's payments of one hour did, counted beside them."""

    hour = Timestamptz(primary_key=True)
    merchant_id = Text()
    env = Text()
    asked = Integer()
    paid = Integer()
    failed = Integer()
    taken = BigInt()
    returned = BigInt()
    reasons = JSONB()
    waits = Array(Integer())
    counted_at = Timestamptz()


class StatusCheckRow(Table, tablename="status_check"):
    """One question to M-Pesa about a transaction, and its answer."""

    check_id = Text(primary_key=True)
    merchant_id = Text()
    env = Text()
    shortcode = Text()
    payment_id = Text(null=True, default=None)
    receipt = Text(null=True, default=None)
    asked_for = Text()
    reference = Text(null=True, default=None)
    state = Text()
    originator_conversation_id = Text(null=True, default=None)
    conversation_id = Text(null=True, default=None)
    result_code = Text(null=True, default=None)
    result_desc = Text(null=True, default=None)
    transaction_status = Text(null=True, default=None)
    finding = Text(null=True, default=None)
    created_at = Timestamptz()
    finished_at = Timestamptz(null=True, default=None)


class OutgoingReceiptRow(Table, tablename="outgoing_receipt"):
    """The receipt of money that went out of our own receivers."""

    env = Text(primary_key=True)
    receipt = Text()
    payment_id = Text(null=True, default=None)
    noted_at = Timestamptz()
    is_part = Boolean(default=False)


class PaymentStepRow(Table, tablename="payment_step"):
    """One entry of a payment's timeline."""

    payment_id = Text(primary_key=True)
    number = BigInt()
    at = Timestamptz()
    kind = Text()
    cause = Text()
    result_code = Text(null=True, default=None)
    detail = Text()


INSERT = Named("""
WITH made AS (
    INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, amount, currency, phone, reference,
        reference_is_ours, description, callback_url, metadata, idempotency_key, due_at, expires_at, created_at,
        updated_at, shortcode_id, charge)
    VALUES ($payment_id, $merchant_id, $env, 'mpesa', $shortcode, $amount, 'KES', $phone, $reference,
        $reference_is_ours, $description, $callback_url, $metadata::text::jsonb, $idempotency_key, $due_at, $expires_at,
        $created_at, $created_at, $shortcode_id, 'ready')
    ON CONFLICT (merchant_id, env, idempotency_key) DO NOTHING
    RETURNING *
), step AS (
    INSERT INTO payment_step (payment_id, at, kind, cause, detail)
    SELECT payment_id, created_at, 'requested', 'merchant', '' FROM made
)
SELECT * FROM made
""")
"""Nothing where an old payment has the key: what was noted about the key has been let go, the payment never is."""

FIND_BY_KEY = "SELECT * FROM payment WHERE merchant_id = $1 AND env = $2 AND idempotency_key = $3"

INSERT_MANY = Named(f"""
WITH asked AS (
    SELECT * FROM unnest($payment_id::text[], $merchant_id::text[], $env::text[], $shortcode::text[],
        $amount::integer[], $phone::text[], $reference::text[], $reference_is_ours::boolean[], $description::text[],
        $callback_url::text[], $metadata::text[], $idempotency_key::text[], $fingerprint::bytea[],
        $leased_until::timestamptz[], $due_at::timestamptz[], $expires_at::timestamptz[], $asked_at::timestamptz[],
        $operation::text[], $shortcode_id::text[])
        AS t(subject_id, merchant_id, env, shortcode, amount, phone, reference, reference_is_ours, description,
        callback_url, metadata, idempotency_key, fingerprint, leased_until, due_at, expires_at, asked_at, operation,
        shortcode_id)
    -- What was noted about an old payment's key has been let go, the payment never is.
    WHERE NOT EXISTS (SELECT 1 FROM payment p
        WHERE p.merchant_id = t.merchant_id AND p.env = t.env AND p.idempotency_key = t.idempotency_key)
    LIMIT cardinality($payment_id)
), {idempotency.CLAIMED}, made AS (
    INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, amount, currency, phone, reference,
        reference_is_ours, description, callback_url, metadata, idempotency_key, due_at, expires_at, created_at,
        updated_at, shortcode_id, charge)
    SELECT subject_id, merchant_id, env, 'mpesa', shortcode, amount, 'KES', phone, reference, reference_is_ours,
        description, callback_url, metadata::jsonb, idempotency_key, due_at, expires_at, asked_at, asked_at,
        shortcode_id, 'ready'
    FROM asked JOIN claimed USING (subject_id)
    ORDER BY subject_id
    RETURNING *
), step AS (
    INSERT INTO payment_step (payment_id, at, kind, cause, detail)
    SELECT payment_id, created_at, 'requested', 'merchant', '' FROM made
)
SELECT * FROM made
""")  # noqa: S608 - put together from constants

STEP = """
INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail) VALUES ($1, $2, $3, $4, $5, $6)
RETURNING payment_id
"""

NOTHING_KNOWN = """
status = 'pending' AND mismatch IS NULL AND claim IS NULL AND receipt IS NULL AND received_receipt IS NULL
    AND checkout_request_id IS NULL AND merchant_request_id IS NULL
"""
"""Nothing says that a prompt was shown or that money moved. Only then may a push be sent, or sent again."""

RESEND = f"""
UPDATE payment SET charge = 'ready', push_attempt = push_attempt + 1, updated_at = $2, due_at = $3, expires_at = $4
WHERE payment_id = $1 AND charge = 'released' AND {NOTHING_KNOWN}
RETURNING *
"""  # noqa: S608 - the clause above

SENDING_MANY = f"""
WITH told AS (
    SELECT * FROM unnest($1::text[], $2::integer[]) AS t(payment_id, push_attempt) LIMIT cardinality($1)
), free AS MATERIALIZED (
    SELECT payment_id FROM told JOIN payment USING (payment_id, push_attempt)
    WHERE charge = 'ready' AND {NOTHING_KNOWN}
    ORDER BY payment_id FOR UPDATE OF payment SKIP LOCKED
)
UPDATE payment SET charge = 'sending' FROM free WHERE payment.payment_id = free.payment_id
RETURNING payment.payment_id
"""  # noqa: S608 - the clause above
"""Committed before each push: without it, nothing was sent. A row that another session has locked is passed over."""

SENDING = f"""
UPDATE payment SET charge = 'sending' WHERE payment_id = $1 AND push_attempt = $2 AND charge = 'ready'
    AND {NOTHING_KNOWN}
RETURNING payment_id
"""  # noqa: S608 - the clause above

ACCEPTED = """
UPDATE payment SET charge = 'accepted', merchant_request_id = $2, checkout_request_id = $3, updated_at = $4,
    due_at = CASE WHEN status = 'pending' AND mismatch IS NULL AND claim IS NULL THEN $5::timestamptz
        WHEN status = 'failed' AND failure_reason = 'expired' AND mismatch IS NULL
            THEN COALESCE(due_at, $5::timestamptz)
        ELSE due_at END
WHERE payment_id = $1 AND charge <> 'accepted' AND erased_at IS NULL
RETURNING *
"""

ACCEPTED_MANY = f"""
WITH told AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $8::text[])
        AS t(payment_id, merchant_id, idempotency_key, merchant_request_id, checkout_request_id, env)
    LIMIT cardinality($1)
), {idempotency.UNLOCKED}, free AS MATERIALIZED (
    -- What another session has locked, the key or the payment, is written by itself afterwards.
    SELECT told.* FROM told JOIN unlocked ON unlocked.subject_id = told.payment_id
        JOIN payment ON payment.payment_id = told.payment_id
    WHERE charge <> 'accepted' AND erased_at IS NULL
    ORDER BY told.payment_id FOR UPDATE OF payment SKIP LOCKED
), {idempotency.SETTLED}, step AS (
    INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail)
    SELECT payment_id, $6::timestamptz, 'sent', 'ack', '0', '' FROM free
)
UPDATE payment SET charge = 'accepted', merchant_request_id = free.merchant_request_id,
    checkout_request_id = free.checkout_request_id, updated_at = $6::timestamptz,
    due_at = CASE WHEN status = 'pending' AND mismatch IS NULL AND claim IS NULL THEN $7::timestamptz
        WHEN status = 'failed' AND failure_reason = 'expired' AND mismatch IS NULL
            THEN COALESCE(due_at, $7::timestamptz)
        ELSE due_at END
FROM free WHERE payment.payment_id = free.payment_id
RETURNING payment.*
"""  # noqa: S608 - put together from constants

RELEASE_PUSH = f"""
UPDATE payment SET charge = 'released', updated_at = $3, due_at = $4,
    -- What was never sent ends when it may no longer be sent.
    expires_at = $4
WHERE payment_id = $1 AND push_attempt = $2 AND charge IN ('ready', 'sending') AND {NOTHING_KNOWN}
RETURNING *
"""  # noqa: S608 - the clause above

OUTCOME_UNKNOWN = """
UPDATE payment SET charge = 'unknown', updated_at = $2,
    due_at = CASE WHEN due_at IS NOT NULL AND claim IS NULL THEN expires_at ELSE due_at END
WHERE payment_id = $1 AND charge IN ('ready', 'sending', 'released')
RETURNING *
"""

COMPLETE = """
UPDATE payment SET status = 'completed', receipt = $2, result_code = $3, result_desc = $4, failure_reason = NULL,
    mismatch = COALESCE($5, mismatch), received_phone = COALESCE($6, received_phone),
    completed_at = $7, updated_at = $7, due_at = NULL, claim = NULL
WHERE payment_id = $1 AND status = ANY($8::text[])
    AND (status <> 'failed' OR $2::text IS NOT NULL OR NOT outcome_is_final)
RETURNING *
"""

LEARN_RECEIPT = """
UPDATE payment SET receipt = $2, updated_at = $3, mismatch = COALESCE(mismatch, $4),
    received_phone = COALESCE($5, received_phone)
WHERE payment_id = $1 AND status IN ('completed', 'reversed', 'partially_reversed') AND receipt IS NULL
RETURNING *
"""

FAIL = """
UPDATE payment SET status = 'failed', result_code = $2, result_desc = $3, failure_reason = $4, updated_at = $5,
    due_at = $9, outcome_is_final = $8, charge = CASE WHEN $6 THEN 'refused' ELSE charge END
WHERE payment_id = $1 AND status = ANY($7::text[]) AND mismatch IS NULL AND claim IS NULL
RETURNING *
"""

HOLD = """
UPDATE payment SET mismatch = $2, received_amount = $3, received_receipt = $4, received_phone = $5,
    result_code = CASE WHEN status = 'failed' THEN result_code ELSE $6 END,
    result_desc = CASE WHEN status = 'failed' THEN result_desc ELSE $7 END,
    is_mismatch_of_paid = receipt IS NOT NULL AND $2 IN ('amount', 'receipt'), looked_after_at = NULL,
    updated_at = $8, due_at = NULL, claim = NULL
WHERE payment_id = $1 AND (mismatch IS NULL OR mismatch = 'phone')
RETURNING *
"""

HAS_MISMATCH = """
SELECT EXISTS (SELECT 1 FROM payment_step WHERE payment_id = $1 AND kind = 'mismatched' AND detail = $2)
"""

HOLD_AGAIN = """
UPDATE payment SET is_mismatch_of_paid = is_mismatch_of_paid OR (receipt IS NOT NULL AND $2 IN ('amount', 'receipt')),
    looked_after_at = NULL, updated_at = $3
WHERE payment_id = $1
"""
"""A further report that does not fit: a person who has looked after the first one has not seen it."""

CLAIM = """
UPDATE payment SET claim = $2::text::jsonb, due_at = $3, expires_at = GREATEST(expires_at, $4), updated_at = $3
WHERE payment_id = $1 AND claim IS NULL
RETURNING *
"""

DROP_CLAIM = """
UPDATE payment SET claim = NULL, updated_at = $2,
    due_at = CASE WHEN status = 'pending' OR failure_reason = 'expired' THEN due_at END
WHERE payment_id = $1
"""

LEARN_CHECKOUT = """
UPDATE payment SET merchant_request_id = COALESCE(merchant_request_id, $2), checkout_request_id = $3
WHERE payment_id = $1 AND checkout_request_id IS NULL
"""

RESERVE = """
UPDATE payment SET refund_reserved = refund_reserved + $2, updated_at = $3
WHERE payment_id = $1 AND status IN ('completed', 'partially_reversed') AND refund_reserved + refunded + $2 <= amount
RETURNING *
"""

RELEASE = """
UPDATE payment SET refund_reserved = refund_reserved - $2, updated_at = $3 WHERE payment_id = $1
"""

REVERSE = """
WITH reversed AS (
    UPDATE payment SET refund_reserved = refund_reserved - $2, refunded = refunded + $2, updated_at = $3,
        status = CASE WHEN refunded + $2 = amount THEN 'reversed' ELSE 'partially_reversed' END
    WHERE payment_id = $1 AND status IN ('completed', 'partially_reversed') AND refund_reserved >= $2
    RETURNING *
), outgoing AS (
    INSERT INTO outgoing_receipt (env, receipt, payment_id, noted_at)
    SELECT env, $4, payment_id, $3 FROM reversed WHERE $4::text IS NOT NULL
    ON CONFLICT (env, receipt) DO NOTHING
)
SELECT * FROM reversed
"""
"""``$4`` is the reversal's own receipt: it is known as money that went out."""

REVERSED_OUTSIDE = """
UPDATE payment SET reversed_outside = $2, looked_after_at = NULL, updated_at = $3,
    refunded = CASE WHEN $2 = 'whole' THEN amount ELSE refunded END,
    status = CASE WHEN $2 = 'whole' THEN 'reversed' ELSE status END
WHERE payment_id = $1 AND status = 'completed' AND refunded = 0 AND refund_reserved = 0
    AND (reversed_outside IS NULL OR (reversed_outside = 'part' AND $2 = 'whole'))
RETURNING *
"""

NOTE_GONE = """
INSERT INTO outgoing_receipt (env, receipt, noted_at, is_part) VALUES ($1, $2, $3, $4)
ON CONFLICT (env, receipt) DO UPDATE SET is_part = excluded.is_part
    WHERE outgoing_receipt.payment_id IS NULL AND outgoing_receipt.is_part
"""
"""A payment that has the receipt may be committed at this moment: GONE_AND_PAID finds it afterwards."""

GONE_AND_PAID = """
SELECT payment.payment_id FROM outgoing_receipt AS gone
    JOIN payment ON payment.env = gone.env AND payment.receipt = gone.receipt
WHERE gone.payment_id IS NULL AND gone.noted_at >= $1
ORDER BY gone.noted_at LIMIT 100
"""

TAKE_GONE = """
DELETE FROM outgoing_receipt WHERE env = $1 AND receipt = $2 AND payment_id IS NULL RETURNING is_part
"""
"""Of two that find the same payment, one takes the note: the payment is locked before."""

LOCK = "SELECT * FROM payment WHERE payment_id = $1 FOR UPDATE"

FIND_MANY = """
SELECT payment.* FROM (SELECT unnest($1::text[]) AS payment_id LIMIT cardinality($1)) AS told
    JOIN payment USING (payment_id)
"""
"""``LIMIT cardinality($1)``, here and in other statements about many, takes nothing away: it lets Postgres expect one
row of a list that it does not know, and not ten, and so keep the plan. Making one takes up to 4 ms."""

END_MANY = """
UPDATE payment SET status = told.status, receipt = told.receipt, result_code = told.result_code,
    result_desc = told.result_desc, failure_reason = told.failure_reason,
    completed_at = CASE WHEN told.status = 'completed' THEN $8::timestamptz END, updated_at = $8::timestamptz,
    outcome_is_final = told.outcome_is_final, due_at = NULL
FROM (
    SELECT * FROM (
        SELECT payment.ctid AS place, t.* FROM (
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::boolean[])
                AS t(payment_id, status, receipt, result_code, result_desc, failure_reason, outcome_is_final)
            LIMIT cardinality($1)
        ) AS t JOIN payment USING (payment_id)
        -- Nobody waits for one of many: what somebody else is at is taken by itself afterwards.
        FOR UPDATE OF payment SKIP LOCKED
    ) AS free
    -- Two batches that bring the same receipts, for other payments each, write them in the same order.
    ORDER BY receipt
) AS told
-- By its place, so that Postgres goes through them in that order: by payment_id it may begin with the payments.
WHERE payment.ctid = told.place AND payment.status = 'pending' AND mismatch IS NULL AND claim IS NULL
RETURNING payment.payment_id
"""

END_STEPS = """
INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail)
SELECT payment_id, $5::timestamptz, status, 'callback', result_code, result_desc
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS told(payment_id, status, result_code, result_desc)
RETURNING payment_id
"""

IS_CHECKOUT_OF_ANOTHER = """
SELECT true FROM payment WHERE checkout_request_id = $1 AND env = $2 AND payment_id <> $3
"""

LOCK_BY_CHECKOUT = "SELECT * FROM payment WHERE checkout_request_id = $1 ORDER BY payment_id LIMIT 2 FOR UPDATE"
"""For a callback that does not say its env. Two rows: one push of each env has that handle."""

DUE_SHORTCODES = """
WITH RECURSIVE open AS (
    -- From one shortcode with open payments to the next, along the index: many of one are not read for it.
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
"""A shortcode is an account at Daraja; each has its own questions."""

CLAIM_DUE_OF = """
UPDATE payment SET due_at = $3, asked = asked + 1
WHERE payment_id IN (
    SELECT payment_id FROM payment
    WHERE shortcode_id = $1 AND due_at <= $2 AND checkout_request_id IS NOT NULL AND mismatch IS NULL
    -- Those that expired wait for those that have not: after an outage there may be thousands.
    ORDER BY status = 'failed' AND claim IS NULL, due_at LIMIT $4 FOR UPDATE SKIP LOCKED
)
RETURNING *
"""

_PAST_THEIR_TIME = """
status = 'pending' AND mismatch IS NULL AND expires_at <= $1 AND NOT payment_id = ANY($3::text[])
    AND charge NOT IN ('ready', 'sending')
"""

EXPIRED = f"SELECT * FROM payment WHERE {_PAST_THEIR_TIME} ORDER BY expires_at LIMIT $2"  # noqa: S608 - the clause above

LOCK_EXPIRED_CLAIMS = f"""
SELECT * FROM payment WHERE {_PAST_THEIR_TIME} AND claim IS NOT NULL
ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - the clause above

END_EXPIRED = f"""
WITH due AS MATERIALIZED (
    SELECT payment_id FROM payment WHERE {_PAST_THEIR_TIME} AND claim IS NULL
    ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
), ended AS (
    UPDATE payment SET status = 'failed', updated_at = $1, outcome_is_final = charge = 'released',
        failure_reason = CASE charge WHEN 'released' THEN 'not_sent' ELSE 'expired' END,
        result_code = CASE charge WHEN 'released' THEN 'unsent' ELSE 'expired' END,
        result_desc = CASE charge WHEN 'released' THEN $5 ELSE $6 END,
        due_at = CASE WHEN charge <> 'released' AND checkout_request_id IS NOT NULL THEN (
            SELECT min(created_at + make_interval(secs => after)) FROM unnest($4::double precision[]) AS after
            WHERE created_at + make_interval(secs => after) > $1) END
    FROM due WHERE payment.payment_id = due.payment_id
    RETURNING payment.*
), step AS (
    INSERT INTO payment_step (payment_id, at, kind, cause, result_code, detail)
    SELECT payment_id, $1, 'expired', 'expiry', result_code, result_desc FROM ended
)
SELECT * FROM ended
"""  # noqa: S608 - the clause above
"""A set-based ``FAIL`` with its steps: after an outage thousands are past their time."""

ABANDONED = """
SELECT payment_id FROM payment
WHERE status = 'pending' AND mismatch IS NULL AND expires_at <= $1 AND charge IN ('ready', 'sending')
    AND checkout_request_id IS NULL AND due_at <= $2
ORDER BY expires_at LIMIT $3
"""
"""Payments whose push has no record after the lease of their key; ``expires_at`` counts from the same moment."""

LOCK_ONE_EXPIRED = """
SELECT * FROM payment WHERE payment_id = $1 AND status = 'pending' AND mismatch IS NULL AND expires_at <= $2
FOR UPDATE SKIP LOCKED
"""

_ASKED_ABOUT = "(status = 'pending' OR claim IS NOT NULL OR (status = 'failed' AND failure_reason = 'expired'))"

CLAIM_DUE = f"""
UPDATE payment SET due_at = $3, asked = asked + 1
WHERE payment_id = $1 AND {_ASKED_ABOUT} AND (due_at <= $2 OR $4) AND mismatch IS NULL
RETURNING *
"""  # noqa: S608 - the clause above

ASK_AGAIN = f"""
UPDATE payment SET due_at = $2 WHERE payment_id = $1 AND {_ASKED_ABOUT} AND due_at IS NOT NULL
"""  # noqa: S608 - likewise

ASK_NOW = "UPDATE payment SET due_at = $2 WHERE payment_id = $1 AND status = 'pending' AND due_at > $2"

OPEN_OF_SHORTCODES = """
SELECT shortcode_id, count(*) AS open FROM payment
WHERE (due_at IS NOT NULL OR (mismatch IS NOT NULL AND looked_after_at IS NULL)) AND shortcode_id = ANY($1::text[])
GROUP BY shortcode_id
"""
"""Payments that are asked about, or wait for a person. Served by payment_due and payment_held."""

FIND = "SELECT * FROM payment WHERE merchant_id = $1 AND env = $2 AND payment_id = $3"

FIND_ANY = "SELECT * FROM payment WHERE payment_id = $1"

WAITS_FOR_A_PERSON = """
looked_after_at IS NULL AND (reversed_outside IS NOT NULL OR (mismatch IS NOT NULL AND (
    status IN ('pending', 'failed') OR mismatch = 'receipt' OR is_mismatch_of_paid
    OR (received_receipt = receipt) IS FALSE OR (mismatch = 'amount' AND (received_receipt = receipt) IS NOT TRUE))))
"""
"""A report of another amount is settled only by the same receipt, reported later for the amount that was asked for."""

COUNT_OPEN = """
SELECT count(*) AS open, min(created_at) AS oldest
FROM (
    SELECT created_at FROM payment
    WHERE env = $1 AND due_at IS NOT NULL AND (status = 'pending' OR claim IS NOT NULL) LIMIT 10000
) AS due
"""

COUNT_HELD = f"SELECT count(*) FROM payment WHERE env = ANY($1::text[]) AND {WAITS_FOR_A_PERSON}"  # noqa: S608 - the clause above

LOOK_AFTER = f"""
UPDATE payment SET looked_after_at = $2, updated_at = $2 WHERE payment_id = $1 AND {WAITS_FOR_A_PERSON} RETURNING *
"""  # noqa: S608 - likewise

CHECKS_OF = "SELECT * FROM status_check WHERE payment_id = $1 ORDER BY created_at LIMIT 50"

TIMELINE = """
SELECT at, kind, cause, result_code, detail FROM payment_step WHERE payment_id = $1 ORDER BY number
"""

FIND_BY_RECEIPT = "SELECT * FROM payment WHERE merchant_id = $1 AND env = $2 AND receipt = $3"

_FACTS = """payment_id, merchant_id, env, shortcode, amount, phone, erased_at, reference, reference_is_ours, created_at,
    status, failure_reason, outcome_is_final, receipt, received_receipt, checkout_request_id, mismatch"""

NAMED = f"""
SELECT {_FACTS} FROM payment WHERE env = $1 AND receipt = ANY($2::text[])
UNION ALL
SELECT {_FACTS} FROM payment WHERE env = $1 AND received_receipt = ANY($2::text[])
UNION ALL
SELECT {_FACTS} FROM payment WHERE reference_is_ours AND reference = ANY($3::text[]) AND env = $1
"""  # noqa: S608 - the columns above
"""Payments of all merchants that have one of these receipts, or one of these references of our own."""

CANDIDATES = f"""
SELECT found.* FROM (
    SELECT * FROM unnest($2::text[], $3::integer[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[])
        AS t(number, value, since, likely, until)
    LIMIT cardinality($2)
) AS wanted CROSS JOIN LATERAL (
    SELECT {_FACTS} FROM payment
    WHERE env = $1 AND shortcode = wanted.number AND amount = wanted.value AND receipt IS NULL
        AND status IN ('pending', 'failed', 'completed') AND erased_at IS NULL
        AND created_at BETWEEN wanted.since AND wanted.until
    ORDER BY (created_at >= wanted.likely) DESC, created_at DESC LIMIT {MOST_CANDIDATES}
) AS found
"""  # noqa: S608 - likewise
"""Payments of all merchants of these receivers that have no receipt, those that the rule can fit first."""

FACTS_LOCKED = f"""
SELECT {_FACTS} FROM payment WHERE payment_id = ANY($1::text[]) ORDER BY payment_id FOR UPDATE
"""  # noqa: S608 - likewise

RECEIPTS_KNOWN = """
SELECT receipt FROM payment WHERE env = $1 AND receipt = ANY($2::text[])
"""

PAID_AT = """
SELECT payment_id FROM payment WHERE env = $1 AND receipt = ANY($3::text[]) AND shortcode = $2
ORDER BY payment_id LIMIT 1
"""

OUTGOING = "SELECT receipt FROM outgoing_receipt WHERE env = $1 AND receipt = ANY($2::text[])"

INSERT_CHECK = Named("""
INSERT INTO status_check (check_id, merchant_id, env, shortcode, payment_id, receipt, asked_for, reference, created_at)
VALUES ($check_id, $merchant_id, $env, $shortcode, $payment_id, $receipt, $asked_for, $reference, $created_at)
""")

CHECK_ASKED = """
UPDATE status_check SET state = CASE WHEN state = 'sending' THEN 'asked' ELSE state END,
    originator_conversation_id = NULLIF($2, ''), conversation_id = NULLIF($3, '')
WHERE check_id = $1 AND originator_conversation_id IS NULL AND conversation_id IS NULL
RETURNING check_id
"""

CHECK_FAILED = """
UPDATE status_check SET state = $2, result_code = $3, result_desc = $4, finished_at = $5
WHERE check_id = $1 AND state = 'sending'
"""

CHECK_FINISHED = """
UPDATE status_check SET state = $2, result_code = $3, result_desc = $4, transaction_status = $5, finding = $6,
    finished_at = $7
WHERE check_id = $1 AND state <> 'answered'
"""

FIND_CHECK = "SELECT * FROM status_check WHERE merchant_id = $1 AND env = $2 AND check_id = $3"

LOCK_CHECK = "SELECT * FROM status_check WHERE check_id = $1 FOR UPDATE"

FIND_OF_PAYER = """
SELECT payment_id FROM payment
WHERE merchant_id = $1 AND env IN ('sandbox', 'live') AND phone = $2 AND payment_id > $4
UNION
SELECT payment_id FROM payment WHERE merchant_id = $1 AND received_phone = ANY($3::text[]) AND payment_id > $4
ORDER BY payment_id LIMIT $5
"""

LOCK_OF_CASE = "SELECT * FROM payment WHERE payment_id = ANY($1::text[]) ORDER BY payment_id FOR UPDATE"

CHECKS_OF_CASE = "SELECT * FROM status_check WHERE payment_id = ANY($1::text[]) OR check_id = ANY($1::text[])"

STEPS_OF_CASE = "SELECT payment_id, number, detail FROM payment_step WHERE payment_id = ANY($1::text[])"

ERASED = (
    "phone",
    "erased_at",
    "received_phone",
    "reference",
    "description",
    "result_desc",
    "callback_url",
    "checkout_request_id",
    "metadata",
)

ERASE = """
UPDATE payment SET phone = $2, erased_at = $3, received_phone = $4, reference = $5, description = $6, result_desc = $7,
    callback_url = $8, checkout_request_id = $9, metadata = $10::text::jsonb
WHERE payment_id = $1
"""
"""Takes what ``ERASED`` names, in this order."""

RELEARN_CHECKOUT = "UPDATE payment SET checkout_request_id = $2 WHERE payment_id = $1"

ERASE_STEP = "UPDATE payment_step SET detail = $3 WHERE payment_id = $1 AND number = $2"

ERASE_CHECK = "UPDATE status_check SET result_desc = $2, reference = $3, asked_for = $4 WHERE check_id = $1"

FORGET_CHECKS = """
DELETE FROM status_check WHERE check_id IN (
    SELECT check_id FROM status_check WHERE check_id < $1 ORDER BY check_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
"""

LOCK_CHECK_BY_HANDLE = """
SELECT * FROM status_check WHERE originator_conversation_id = $1 OR ($1::text IS NULL AND conversation_id = $2)
ORDER BY created_at DESC LIMIT 1 FOR UPDATE
"""

EXAMINE = f"""
WITH lately AS (
    SELECT payment_id FROM payment
    WHERE merchant_id = $1 AND env = $3 AND created_at >= $2 AND charge = 'accepted' AND status <> 'pending'
    ORDER BY created_at DESC, payment_id DESC LIMIT 50
)
SELECT (SELECT count(*) FROM lately) AS ended,
    (SELECT count(DISTINCT payment_id) FROM lately JOIN payment_step USING (payment_id) WHERE cause = 'callback')
        AS by_callback,
    (SELECT count(*) FROM payment WHERE merchant_id = $1 AND env = $3 AND {WAITS_FOR_A_PERSON}) AS held
"""  # noqa: S608 - the clause above

TALLIED_AT = "SELECT counted_at FROM payment_tally ORDER BY counted_at DESC LIMIT 1"

TALLY = """
WITH changed AS (
    SELECT DISTINCT payment.merchant_id, payment.env, date_trunc('hour', payment.created_at, 'UTC') AS hour
    FROM payment_step JOIN payment USING (payment_id) WHERE payment_step.at >= $1
), one AS (
    SELECT changed.*, status, failure_reason, amount, refunded, completed_at IS NOT NULL AS is_paid,
        width_bucket(extract(epoch FROM completed_at - created_at)::float8, $3::float8[]) AS wait
    FROM changed CROSS JOIN LATERAL (
        SELECT * FROM payment
        WHERE payment.merchant_id = changed.merchant_id AND payment.env = changed.env
            AND payment.created_at >= changed.hour AND payment.created_at < changed.hour + interval '1 hour'
        OFFSET 0
    ) AS asked
), why AS (
    SELECT hour, merchant_id, env, jsonb_object_agg(failure_reason, count) AS reasons
    FROM (SELECT hour, merchant_id, env, failure_reason, count(*) FROM one WHERE status = 'failed' GROUP BY 1, 2, 3, 4)
        AS failed
    GROUP BY 1, 2, 3
), counted AS (
    SELECT hour, merchant_id, env, count(*) AS asked, count(*) FILTER (WHERE is_paid) AS paid,
        count(*) FILTER (WHERE status = 'failed') AS failed, coalesce(sum(amount) FILTER (WHERE is_paid), 0) AS taken,
        sum(refunded) AS returned, ARRAY[
            count(*) FILTER (WHERE wait = 0), count(*) FILTER (WHERE wait = 1), count(*) FILTER (WHERE wait = 2),
            count(*) FILTER (WHERE wait = 3), count(*) FILTER (WHERE wait = 4), count(*) FILTER (WHERE wait = 5)
        ] AS waits
    FROM one GROUP BY 1, 2, 3
)
INSERT INTO payment_tally AS known (hour, merchant_id, env, asked, paid, failed, taken, returned, reasons, waits,
    counted_at)
SELECT hour, merchant_id, env, asked, paid, failed, taken, returned, coalesce(reasons, '{}'), waits, $2
FROM counted LEFT JOIN why USING (hour, merchant_id, env) ORDER BY hour, merchant_id, env
ON CONFLICT (hour, merchant_id, env) DO UPDATE SET asked = EXCLUDED.asked, paid = EXCLUDED.paid,
    failed = EXCLUDED.failed, taken = EXCLUDED.taken, returned = EXCLUDED.returned, reasons = EXCLUDED.reasons,
    waits = EXCLUDED.waits, counted_at = EXCLUDED.counted_at
WHERE known.counted_at <= EXCLUDED.counted_at
"""

TALLIED_ANY = "SELECT EXISTS (SELECT 1 FROM payment_tally WHERE env = $1 AND hour >= $2)"

TALLIED = """
SELECT hour, sum(asked)::bigint AS asked, sum(paid)::bigint AS paid, sum(failed)::bigint AS failed,
    sum(taken)::bigint AS taken, sum(returned)::bigint AS returned, ARRAY[sum(waits[1])::bigint, sum(waits[2])::bigint,
        sum(waits[3])::bigint, sum(waits[4])::bigint, sum(waits[5])::bigint, sum(waits[6])::bigint] AS waits
FROM payment_tally WHERE env = $1 AND hour >= $2 GROUP BY hour
"""

TALLIED_LATELY = """
SELECT env, sum(asked)::bigint AS asked, sum(paid)::bigint AS paid, sum(failed)::bigint AS failed,
    sum(taken)::bigint AS taken, sum(returned)::bigint AS returned
FROM payment_tally WHERE hour >= $1 GROUP BY env
"""

TALLIED_REASONS_LATELY = """
SELECT env, key AS reason, sum(value::bigint)::bigint AS count
FROM payment_tally CROSS JOIN LATERAL jsonb_each_text(reasons) WHERE hour >= $1 GROUP BY env, key
"""

TALLIED_REASONS = """
SELECT key AS reason, sum(value::bigint)::bigint AS count
FROM payment_tally CROSS JOIN LATERAL jsonb_each_text(reasons) WHERE env = $1 AND hour >= $2
GROUP BY key ORDER BY count DESC, key
"""
