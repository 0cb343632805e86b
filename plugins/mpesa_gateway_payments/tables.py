"""Piccolo tables of payments and their statements."""

from piccolo.columns import JSONB, Array, BigInt, Boolean, Integer, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db import idempotency
from mpesa_gateway.db.named import Named
from mpesa_gateway.phone import GAP


class PaymentRow(Table, tablename="payment"):
    """A merchant's request for an amount from a payer, and its outcome."""

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
    requested_by = Text(null=True, default=None)
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
    reviewed_at = Timestamptz(null=True, default=None)
    reversed_outside = Text(null=True, default=None)
    asked = Integer()
    due_at = Timestamptz(null=True, default=None)
    expires_at = Timestamptz()
    created_at = Timestamptz()
    updated_at = Timestamptz()
    accepted_at = Timestamptz(null=True, default=None)
    completed_at = Timestamptz(null=True, default=None)
    completed_by = Text(null=True, default=None)
    erased_at = Timestamptz(null=True, default=None)


class PaymentStatsRow(Table, tablename="payment_stats"):
    """Counts of one merchant's payments in one hour."""

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
    """A status query and its answer."""

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
    answered_receipt = Text(null=True, default=None)
    answered_amount = Text(null=True, default=None)
    created_at = Timestamptz()
    finished_at = Timestamptz(null=True, default=None)
    reviewed_at = Timestamptz(null=True, default=None)
    reviewed_by = Text(null=True, default=None)
    review_note = Text(null=True, default=None)


class OutgoingReceiptRow(Table, tablename="outgoing_receipt"):
    """A reversed receipt without a payment."""

    env = Text(primary_key=True)
    number = Text()
    receipt = Text()
    noted_at = Timestamptz()
    is_part = Boolean(default=False)


class PaymentStepRow(Table, tablename="payment_step"):
    """A step of a payment's timeline. The view ``payment_timeline`` adds the steps in its columns."""

    payment_id = Text(primary_key=True)
    number = BigInt()
    at = Timestamptz()
    kind = Text()
    cause = Text()
    result_code = Text(null=True, default=None)
    detail = Text()


# raw SQL: hot path - what each payment takes: its create, its push, its callback and its read.
# raw SQL: lock - a payment is locked before it is judged.
# raw SQL: expression - when a payment whose outcome is unknown is asked about.
# raw SQL: aggregate - what operators, the doctor and metrics see counted.

HAS_KEY = "key_digest(merchant_id, env, idempotency_key) = key_digest({}, {}, {})"

HAS_KEY_OF_ANY = """key_digest(merchant_id, env, idempotency_key) = ANY(ARRAY(
    SELECT key_digest(merchant.merchant_id, {}, {}) FROM merchant))"""

HAS_PHONE = "reverse(phone) = reverse({}::text)"
"""One index serves whole numbers and last digits."""

PHONE_ENDS = "reverse(phone) >= {} AND reverse(phone) < {}"

REFERENCE_STARTS = "NOT reference_is_ours AND reference >= {} AND reference < {}"

_NUMBER = f"(^|[^0-9])(254{GAP}(0{GAP})?|0{GAP})?[17]({GAP}[0-9]){{8}}([^0-9]|$)".replace("{", "{{").replace("}", "}}")
WITHOUT_NUMBERS = f"reference !~ '{_NUMBER}'"
"""Without references that may hold a phone number."""

OWN_REFERENCE_STARTS = "reference_is_ours AND reference >= {} AND reference < {}"

RECEIPT_STARTS = "receipt >= {} AND receipt < {}"

HAS_METADATA = """metadata <> '{{}}'
    AND payment_metadata(merchant_id, env, metadata) @> ARRAY[key_digest({}, {}, lower({}::text))]
    AND payment_metadata(merchant_id, env, metadata) && ARRAY[key_digest({}, {}, lower({}::text))]"""
"""A value of the metadata, in any case.

Postgres expects 0.5 % of all rows to have any value, and would read a million payments by their ids until a page is
full. Said twice, it expects few and uses the index.
"""

HAS_METADATA_OF_EACH = HAS_METADATA.replace("key_digest({}", "key_digest(merchant.merchant_id")

FIND_BY_KEY = f"SELECT * FROM payment WHERE {HAS_KEY.format('$1', '$2', '$3')}"

INSERT = Named(f"""
WITH asked AS (
    SELECT * FROM (SELECT * FROM unnest($payment_id::uuid[], $merchant_id::uuid[], $env::text[], $shortcode::text[],
        $amount::integer[], $phone::text[], $reference::text[], $reference_is_ours::boolean[], $description::text[],
        $callback_url::text[], $metadata::text[], $idempotency_key::text[], $fingerprint::bytea[],
        $leased_until::timestamptz[], $due_at::timestamptz[], $expires_at::timestamptz[], $asked_at::timestamptz[],
        $operation::text[], $shortcode_id::uuid[], $requested_by::text[])
        AS t(subject_id, merchant_id, env, shortcode, amount, phone, reference, reference_is_ours, description,
        callback_url, metadata, idempotency_key, fingerprint, leased_until, due_at, expires_at, asked_at, operation,
        shortcode_id, requested_by) LIMIT cardinality($payment_id)) AS t
    -- The record of an old payment's key is deleted; the payment is not.
    WHERE NOT EXISTS (SELECT 1 FROM payment p
        WHERE key_digest(p.merchant_id, p.env, p.idempotency_key) = key_digest(
            t.merchant_id, t.env, t.idempotency_key))
        -- A scalar query, so that the plan looks up each merchant by its key.
        AND (SELECT is_active FROM merchant WHERE merchant.merchant_id = t.merchant_id)
), {idempotency.CLAIMED}
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, amount, currency, phone, reference,
    reference_is_ours, description, callback_url, metadata, idempotency_key, due_at, expires_at, created_at,
    updated_at, shortcode_id, charge, requested_by)
SELECT subject_id, merchant_id, env, 'mpesa', shortcode, amount, 'KES', phone, reference, reference_is_ours,
    description, callback_url, metadata::jsonb, idempotency_key, due_at, expires_at, asked_at, asked_at,
    shortcode_id, 'ready', requested_by
FROM asked JOIN claimed USING (subject_id)
ORDER BY subject_id
RETURNING *
""")

IS_UNREPORTED = """
status = 'pending' AND mismatch IS NULL AND claim IS NULL AND receipt IS NULL AND received_receipt IS NULL
    AND checkout_request_id IS NULL AND merchant_request_id IS NULL
"""
"""No report states a prompt or money. A push is sent or resent only while this holds."""

RESEND = f"""
UPDATE payment SET charge = 'ready', push_attempt = push_attempt + 1, updated_at = $2, due_at = $3, expires_at = $4
WHERE payment_id = $1 AND charge = 'released' AND {IS_UNREPORTED}
RETURNING *
"""

SENDING = f"""
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[]) AS t(payment_id, push_attempt) LIMIT cardinality($1)
), free AS MATERIALIZED (
    SELECT payment_id FROM given JOIN payment USING (payment_id, push_attempt)
    WHERE charge = 'ready' AND {IS_UNREPORTED}
    ORDER BY payment_id FOR UPDATE OF payment SKIP LOCKED
)
UPDATE payment SET charge = 'sending' FROM free WHERE payment.payment_id = free.payment_id
RETURNING payment.payment_id
"""
"""Committed before each push: without it, nothing was sent. Skips locked rows."""

ACCEPTED = f"""
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $8::text[])
        AS t(payment_id, merchant_id, idempotency_key, merchant_request_id, checkout_request_id, env)
    LIMIT cardinality($1)
), {idempotency.UNLOCKED}, free AS MATERIALIZED (
    -- Locked keys and payments are written alone afterwards. Old keys have no row.
    SELECT given.* FROM given LEFT JOIN unlocked ON unlocked.subject_id = given.payment_id
        JOIN payment ON payment.payment_id = given.payment_id
    WHERE charge <> 'accepted' AND erased_at IS NULL AND (unlocked.subject_id IS NOT NULL OR NOT EXISTS (
        SELECT 1 FROM idempotency_key AS known
        WHERE known.digest = key_digest(given.merchant_id, given.env, given.idempotency_key)))
    ORDER BY given.payment_id FOR UPDATE OF payment SKIP LOCKED
), {idempotency.SETTLED}
UPDATE payment SET charge = 'accepted', merchant_request_id = free.merchant_request_id,
    checkout_request_id = free.checkout_request_id, accepted_at = $6::timestamptz, updated_at = $6::timestamptz,
    due_at = CASE WHEN status = 'pending' AND mismatch IS NULL AND claim IS NULL THEN $7::timestamptz
        WHEN status = 'failed' AND failure_reason = 'expired' AND mismatch IS NULL
            THEN COALESCE(due_at, $7::timestamptz)
        ELSE due_at END
FROM free WHERE payment.payment_id = free.payment_id
RETURNING payment.*
"""

RELEASE_PUSH = f"""
UPDATE payment SET charge = 'released', updated_at = $3, due_at = $4,
    -- An unsent payment expires when it can no longer be sent.
    expires_at = $4
WHERE payment_id = $1 AND push_attempt = $2 AND charge IN ('ready', 'sending') AND {IS_UNREPORTED}
RETURNING *
"""

OUTCOME_UNKNOWN = """
UPDATE payment SET charge = 'unknown', updated_at = $2,
    due_at = CASE WHEN due_at IS NOT NULL AND claim IS NULL THEN expires_at ELSE due_at END
WHERE payment_id = $1 AND charge IN ('ready', 'sending', 'released')
RETURNING *
"""

_VERSIONED = "SELECT payment.*, payment.xmin::text AS version FROM"

READ = f"""
{_VERSIONED} (SELECT unnest($1::uuid[]) AS payment_id LIMIT cardinality($1)) AS given
    JOIN payment USING (payment_id)
"""
"""``version`` changes with each write; ``CHANGE`` writes only unchanged rows.

``LIMIT cardinality($1)``, here and in other statements on lists, removes no row. It makes Postgres expect one row
instead of ten and keep the generic plan; planning takes up to 4 ms.
"""

HAS_HANDLE = "handle_by_time(checkout_request_id) = handle_by_time({})"
"""Served by the unique index on CheckoutRequestIDs."""

READ_BY_CHECKOUT = f"""
{_VERSIONED} (SELECT unnest($1::text[]) AS checkout_request_id LIMIT cardinality($1)) AS given
    JOIN payment ON handle_by_time(payment.checkout_request_id) = handle_by_time(given.checkout_request_id)
"""
"""For callbacks without an env: a handle can have one row in each."""

LOCK = f"{READ} ORDER BY payment_id FOR UPDATE OF payment"
LOCK_BY_CHECKOUT = f"{READ_BY_CHECKOUT} ORDER BY payment_id FOR UPDATE OF payment"
"""Locks in the order of ids, to avoid deadlocks."""

OPEN_OF_SHORTCODES = """
SELECT shortcode_id, count(*) AS open FROM payment
WHERE (due_at IS NOT NULL OR (mismatch IS NOT NULL AND reviewed_at IS NULL)) AND shortcode_id = ANY($1::uuid[])
GROUP BY shortcode_id
"""
"""Payments that are due or need review. Served by payment_due and payment_held."""

FIND = "SELECT * FROM payment WHERE merchant_id = $1 AND env = $2 AND payment_id = $3"

SIMILAR = """
SELECT * FROM payment WHERE receipt IS NULL AND status IN ('pending', 'failed') AND payment_id = ANY (ARRAY(
    (SELECT payment_id FROM payment WHERE merchant_id = $1 AND env = $2 AND payment_id BETWEEN $3 AND $4
        AND amount = $5 ORDER BY payment_id DESC LIMIT 20)
    UNION (SELECT payment_id FROM payment WHERE merchant_id = $1 AND env = $2 AND payment_id BETWEEN $3 AND $4
        AND reverse(phone) = reverse($6::text) ORDER BY payment_id DESC LIMIT 20)
    UNION (SELECT payment_id FROM payment WHERE merchant_id = $1 AND env = $2 AND payment_id BETWEEN $3 AND $4
        AND reference = $7 ORDER BY payment_id DESC LIMIT 20)))
ORDER BY payment_id DESC LIMIT 10
"""

NEEDS_REVIEW = """
reviewed_at IS NULL AND (reversed_outside IS NOT NULL OR (mismatch IS NOT NULL AND (
    status IN ('pending', 'failed') OR mismatch = 'receipt' OR is_mismatch_of_paid
    OR (received_receipt = receipt) IS FALSE OR (mismatch = 'amount' AND (received_receipt = receipt) IS NOT TRUE))))
"""
"""A mismatched amount is settled by a later report of the same receipt with the requested amount."""

COUNT_OPEN = """
SELECT count(*) AS open, min(created_at) AS oldest
FROM (
    SELECT created_at FROM payment
    WHERE env = $1 AND due_at IS NOT NULL AND (status = 'pending' OR claim IS NOT NULL) LIMIT 10000
) AS due
"""

COUNT_NEEDING_REVIEW = f"SELECT count(*) FROM payment WHERE env = ANY($1::text[]) AND {NEEDS_REVIEW}"
COUNT_NEEDING_REVIEW_OF = f"{COUNT_NEEDING_REVIEW} AND merchant_id = $2"

TIMELINE = """
SELECT at, kind, cause, result_code, detail FROM payment_timeline WHERE payment_id = $1 ORDER BY at, rank, number
"""

COUNT_FOR_DOCTOR = f"""
WITH recent AS (
    SELECT payment_id FROM payment
    WHERE merchant_id = $1 AND env = $3 AND payment_id >= $2 AND charge = 'accepted' AND status <> 'pending'
    ORDER BY payment_id DESC LIMIT 50
)
SELECT (SELECT count(*) FROM recent) AS ended,
    (SELECT count(DISTINCT payment_id) FROM recent JOIN payment_timeline USING (payment_id) WHERE cause = 'callback')
        AS by_callback,
    (SELECT count(*) FROM payment WHERE merchant_id = $1 AND env = $3 AND {NEEDS_REVIEW}) AS held
"""
