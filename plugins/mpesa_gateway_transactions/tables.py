"""Piccolo tables of transactions, and the statement that records them."""

from piccolo.columns import BigInt, Boolean, SmallInt, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.named import Named


class TransactionRow(Table, tablename="transaction"):
    """Money that M-Pesa moved: one row for each receipt, env and direction."""

    transaction_id = Text(primary_key=True)
    env = Text()
    receiver_id = Text()
    merchant_id = Text()
    direction = Text()
    kind = Text(null=True, default=None)
    receipt = Text()
    amount_cents = BigInt(null=True, default=None)
    fee_cents = BigInt(null=True, default=None)
    payer = Text(null=True, default=None)
    payer_digest = Text(null=True, default=None)
    payer_name = Text(null=True, default=None)
    account_number = Text(null=True, default=None)
    occurred_at = Timestamptz()
    subject_kind = Text(null=True, default=None)
    subject_id = Text(null=True, default=None)
    conflict_id = Text(null=True, default=None)
    first_source = Text()
    announce_at = Timestamptz(null=True, default=None)
    announced_at = Timestamptz(null=True, default=None)
    category = Text(default="other")
    refund_reserved_cents = BigInt(default=0)
    refunded_cents = BigInt(default=0)
    # Generated.
    is_settled = Boolean()
    reversed_outside = Text(null=True, default=None)


class WitnessRow(Table, tablename="transaction_witness"):
    """A later report of a transaction: one row for each source."""

    transaction_id = Text(primary_key=True)
    source = Text()
    seen_at = Timestamptz()
    detail = Text(null=True, default=None)
    reviewed_at = Timestamptz(null=True, default=None)
    reviewed_by = Text(null=True, default=None)
    review_note = Text(null=True, default=None)


class AllocationRow(Table, tablename="allocation"):
    """A decision of a rule or a person on incoming money. Insert-only."""

    transaction_id = Text(primary_key=True)
    number = SmallInt()
    subject_kind = Text()
    subject_id = Text()
    by = Text()
    at = Timestamptz()
    note = Text(null=True, default=None)


# raw SQL: hot path - each callback that completes a payment; both statements bind the same values.
_SEEN = """
    SELECT * FROM unnest($transaction_id::uuid[], $env::text[], $number::text[], $merchant_id::uuid[],
        $direction::text[], $kind::text[], $receipt::text[], $amount_cents::bigint[], $fee_cents::bigint[],
        $payer::text[], $payer_digest::text[], $payer_name::text[], $account_number::text[],
        $occurred_at::timestamptz[], $is_announced::boolean[],
        $subject_kind::text[], $subject_id::uuid[], $conflict_id::uuid[], $source::text[])
        AS t(transaction_id, env, number, merchant_id, direction, kind, receipt, amount_cents, fee_cents, payer,
        payer_digest, payer_name, account_number, occurred_at, is_announced, subject_kind, subject_id, conflict_id,
        source)
    LIMIT cardinality($transaction_id)
"""

_INSERT = f"""
INSERT INTO transaction AS known (transaction_id, env, receiver_id, merchant_id, direction, kind, receipt, amount_cents,
    fee_cents, payer, payer_digest, payer_name, account_number, occurred_at, subject_kind, subject_id, conflict_id,
    first_source, category, announce_at, announced_at)
SELECT t.transaction_id, t.env, receiver.receiver_id,
    CASE WHEN COALESCE(t.subject_id, t.conflict_id) IS NULL THEN COALESCE(receiver.owner_id, t.merchant_id)
        ELSE t.merchant_id END,
    t.direction, t.kind, t.receipt, t.amount_cents, t.fee_cents, t.payer, t.payer_digest, t.payer_name,
    t.account_number, t.occurred_at, t.subject_kind, t.subject_id, t.conflict_id, t.source,
    money_category(t.direction, t.kind, t.source, t.subject_kind),
    CASE WHEN t.direction = 'in' AND COALESCE(t.subject_id, t.conflict_id) IS NULL THEN $announce_at::timestamptz END,
    -- Only for the comparison below: a row of announced money exists.
    CASE WHEN t.is_announced THEN $announce_at::timestamptz END
FROM ({_SEEN}) AS t LEFT JOIN receiver ON receiver.env = t.env AND receiver.number = t.number
ORDER BY t.env, t.direction, t.receipt
ON CONFLICT (env, direction, receipt) DO UPDATE SET
    merchant_id = CASE WHEN known.subject_id IS NULL AND excluded.subject_id IS NOT NULL THEN excluded.merchant_id
        WHEN known.subject_id IS NULL AND known.conflict_id IS NULL AND excluded.conflict_id IS NOT NULL
            AND known.receiver_id = excluded.receiver_id THEN excluded.merchant_id
        ELSE known.merchant_id END,
    kind = COALESCE(known.kind, excluded.kind),
    category = money_category(known.direction, COALESCE(known.kind, excluded.kind), known.first_source,
        COALESCE(known.subject_kind, excluded.subject_kind)),
    -- The requested amount replaces a contradicting one, as for the payment.
    amount_cents = CASE WHEN known.subject_id IS NULL AND known.conflict_id = excluded.subject_id
        THEN excluded.amount_cents ELSE COALESCE(known.amount_cents, excluded.amount_cents) END,
    fee_cents = COALESCE(known.fee_cents, excluded.fee_cents),
    payer = COALESCE(known.payer, excluded.payer),
    -- Of an erased payer nothing is learnt again.
    payer_digest = COALESCE(known.payer_digest,
        CASE WHEN known.payer IS DISTINCT FROM 'erased' THEN excluded.payer_digest END),
    payer_name = COALESCE(known.payer_name,
        CASE WHEN known.payer IS DISTINCT FROM 'erased' THEN excluded.payer_name END),
    account_number = COALESCE(known.account_number,
        CASE WHEN known.payer IS DISTINCT FROM 'erased' THEN excluded.account_number END),
    subject_kind = COALESCE(known.subject_kind, excluded.subject_kind),
    subject_id = COALESCE(known.subject_id, excluded.subject_id),
    -- Money of another receiver contradicts no payment of this one: the witness states the difference.
    conflict_id = COALESCE(known.conflict_id,
        CASE WHEN known.receiver_id = excluded.receiver_id THEN excluded.conflict_id END),
    announce_at = CASE WHEN COALESCE(known.subject_id, excluded.subject_id, known.conflict_id) IS NULL
        AND (excluded.conflict_id IS NULL OR known.receiver_id <> excluded.receiver_id)
        -- Another source may show of money that was kept back that it came in.
        THEN COALESCE(known.announce_at, CASE WHEN known.announced_at IS NULL AND known.direction = 'in'
            AND known.first_source = 'pull' AND excluded.first_source <> 'pull' THEN excluded.announce_at END) END
-- No row for money of another subject, amount or receiver, refunded, or announced without the writer's knowledge: it
-- decides again.
WHERE excluded.subject_id IS NULL OR known.subject_id = excluded.subject_id
    OR (known.subject_id IS NULL AND known.receiver_id = excluded.receiver_id
        AND known.refund_reserved_cents + known.refunded_cents = 0 AND known.reversed_outside IS NULL
        AND (known.amount_cents IS NULL OR known.amount_cents = excluded.amount_cents
            OR known.conflict_id = excluded.subject_id)
        AND (known.announced_at IS NULL OR excluded.announced_at IS NOT NULL))
RETURNING known.transaction_id, known.env, known.direction, known.receipt, known.amount_cents, known.subject_kind,
    known.subject_id, known.merchant_id, known.first_source, known.receiver_id
"""

_DIFFERENCE = """NULLIF(concat_ws(', ',
        CASE WHEN (t.amount_cents = COALESCE(before.amount_cents, found.amount_cents)) IS FALSE
            THEN 'reports ' || t.amount_cents || ' cents, not ' || COALESCE(before.amount_cents, found.amount_cents)
        END,
        (SELECT 'reports receiver ' || t.number || ', not ' || number FROM receiver
            WHERE receiver_id = found.receiver_id AND number <> t.number)), '')"""

_WITNESS = f"""
INSERT INTO transaction_witness (transaction_id, source, seen_at, detail)
SELECT found.it, t.source, $seen_at::timestamptz, {_DIFFERENCE}
FROM {{written}} AS found
    JOIN ({_SEEN}) AS t ON t.env = found.env AND t.direction = found.direction AND t.receipt = found.receipt
    -- The row before this statement.
    LEFT JOIN transaction AS before ON before.transaction_id = found.it
WHERE found.it <> t.transaction_id
    AND (t.source <> found.first_source OR {_DIFFERENCE} IS NOT NULL)
ORDER BY found.it
-- A new difference needs a review of its own. The audit log has the note of an earlier one.
ON CONFLICT (transaction_id, source) DO UPDATE SET detail = excluded.detail, seen_at = excluded.seen_at,
    reviewed_at = NULL, reviewed_by = NULL, review_note = NULL
    WHERE excluded.detail IS NOT NULL AND excluded.detail IS DISTINCT FROM transaction_witness.detail
"""

BOTH = Named(f"{_INSERT};{_WITNESS}")
INSERT, WITNESS = BOTH.sql.split(";")
"""INSERT records transactions, sorted by key; WITNESS adds later witnesses."""

bind_rows = BOTH.bind_rows

# For callers that need the result at once.
RECORD = f"""
WITH written (it) AS ({INSERT}), witness AS ({WITNESS.replace("{written}", "written")}) SELECT * FROM written
"""
