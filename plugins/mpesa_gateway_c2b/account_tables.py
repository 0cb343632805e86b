"""Tables and queries of account numbers."""

from piccolo.columns import BigInt, Boolean, Text, Timestamptz
from piccolo.table import Table

from mpesa_gateway.db.keyset import KeysetList
from mpesa_gateway.db.named import Named


class AccountNumberRow(Table, tablename="account_number"):
    """An account number of a merchant at a receiver, with the received sum."""

    account_id = Text(primary_key=True)
    receiver_id = Text()
    merchant_id = Text()
    env = Text()
    number = Text()
    expected_cents = BigInt(null=True, default=None)
    min_cents = BigInt(null=True, default=None)
    max_cents = BigInt(null=True, default=None)
    is_active = Boolean()
    received_cents = BigInt()
    created_at = Timestamptz()
    updated_at = Timestamptz()


class AccountEntryRow(Table, tablename="account_entry"):
    """Money that counts to an account number; a refund is negative."""

    source_id = Text(primary_key=True)
    account_id = Text()
    amount_cents = BigInt()
    at = Timestamptz()


# raw SQL: upsert - any number of account numbers in one statement, sorted, so that two bulk calls cannot deadlock.
STORE = Named("""
INSERT INTO account_number AS known (account_id, receiver_id, merchant_id, env, number, expected_cents, min_cents,
    max_cents, is_active, created_at, updated_at)
SELECT t.account_id, $receiver_id::uuid, $merchant_id::uuid, $env::text, t.number, t.expected_cents, t.min_cents,
    t.max_cents, t.is_active, $now::timestamptz, $now::timestamptz
FROM unnest($account_id::uuid[], $number::text[], $expected_cents::bigint[], $min_cents::bigint[],
    $max_cents::bigint[], $is_active::boolean[])
    AS t(account_id, number, expected_cents, min_cents, max_cents, is_active)
ORDER BY t.number
ON CONFLICT (receiver_id, merchant_id, number) DO UPDATE SET expected_cents = excluded.expected_cents,
    min_cents = excluded.min_cents, max_cents = excluded.max_cents, is_active = excluded.is_active,
    updated_at = excluded.updated_at
RETURNING *
""")

# raw SQL: lock - entries of an account number are counted one after another.
LOCK = "SELECT * FROM account_number WHERE account_id = ANY($1::uuid[]) ORDER BY account_id FOR NO KEY UPDATE"

LOCK_BY_NUMBER = """
SELECT * FROM account_number WHERE receiver_id = $1 AND merchant_id = $2 AND number = ANY($3::text[])
ORDER BY account_id FOR NO KEY UPDATE
"""

# raw SQL: array
ADD_ENTRIES = """
INSERT INTO account_entry (source_id, account_id, amount_cents, at)
SELECT source_id, account_id, amount_cents, $4 FROM unnest($1::uuid[], $2::uuid[], $3::bigint[])
    AS t(source_id, account_id, amount_cents)
ORDER BY source_id
ON CONFLICT (source_id) DO NOTHING
RETURNING source_id
"""

# raw SQL: hot path - each confirmation.
OF_MONEY = """
SELECT place, account_id, account.merchant_id
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::uuid[])
    WITH ORDINALITY AS t(receiver_id, merchant_id, number, receipt, conflict_id, place)
    JOIN account_number AS account USING (receiver_id, merchant_id, number)
    JOIN receiver USING (receiver_id)
WHERE is_active
    AND NOT EXISTS (SELECT 1 FROM outgoing_receipt AS gone WHERE gone.env = receiver.env AND gone.receipt = t.receipt
        AND gone.number = receiver.number AND NOT is_part)
    AND NOT EXISTS (SELECT 1 FROM payment WHERE payment.env = receiver.env AND payment.receipt = t.receipt)
    AND NOT EXISTS (SELECT 1 FROM payment WHERE payment.env = receiver.env AND received_receipt = t.receipt
        AND shortcode = receiver.number AND payment.receipt IS NULL)
    AND NOT EXISTS (SELECT 1 FROM payment WHERE payment_id = t.conflict_id AND payment.receipt IS NULL)
    AND NOT EXISTS (SELECT 1 FROM payment WHERE reference_is_ours AND reference = t.number
        AND payment.env = receiver.env)
"""
"""Without money that M-Pesa sent back, and money of a payment by its receipt or the gateway's own reference.

Money in conflict with a payment that has another receipt is not that payment's.
"""

MAY_HAVE = """
SELECT place, payment_id, reference, phone, erased_at, status, payment.merchant_id <> t.merchant_id AS is_of_user,
    CASE WHEN NOT is_fresh THEN (SELECT count(*) FROM transaction AS former
        WHERE former.receiver_id = t.receiver_id AND former.amount_cents = value::bigint * 100 AND direction = 'in'
            AND subject_id IS NULL AND conflict_id IS NULL AND upper(account_number) = upper(typed)
            AND (former.transaction_id < t.transaction_id OR t.transaction_id IS NULL)
            AND occurred_at BETWEEN since AND until) END AS former
FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::timestamptz[], $5::timestamptz[], $6::boolean[], $7::text[],
    $8::uuid[], $9::timestamptz[])
    WITH ORDINALITY AS t(receiver_id, merchant_id, value, since, until, is_fresh, typed, transaction_id, users_since,
        place)
    JOIN receiver USING (receiver_id)
    JOIN payment ON payment.env = receiver.env AND shortcode = number AND amount = value
        AND payment.created_at BETWEEN since AND until
WHERE receipt IS NULL AND status IN ('pending', 'failed', 'completed') AND NOT outcome_is_final
    AND (payment.merchant_id = t.merchant_id OR status = 'completed'
        OR (status = 'pending' AND payment.created_at > users_since))
"""
"""Payments without receipt that the money may be of: the account's merchant's, and others' completed or recent ones.

``former``: like money that came first and is left as well.
"""

OF_PAYMENTS = """
SELECT payment_id, amount, account_id, receipt, phone, erased_at, payment.created_at
FROM unnest($1::uuid[], $2::text[]) AS t(payment_id, number)
    JOIN payment USING (payment_id)
    JOIN receiver ON receiver.env = payment.env AND receiver.number = payment.shortcode
    JOIN account_number AS account ON account.receiver_id = receiver.receiver_id
        AND account.merchant_id = payment.merchant_id AND account.number = t.number
WHERE account.is_active
"""
"""The account numbers that completed payments have as reference."""

# raw SQL: hot path - each callback that completes a payment.
OF_REFERENCES = """
SELECT account_id FROM (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS t(merchant_id, env, shortcode, number)
    LIMIT cardinality($1)
) AS t
    JOIN receiver ON receiver.env = t.env AND receiver.number = t.shortcode
    JOIN account_number AS account ON account.receiver_id = receiver.receiver_id
        AND account.merchant_id = t.merchant_id AND account.number = t.number
WHERE account.is_active
"""

ALREADY_COUNTED = """
SELECT source_id, place, payer, payer_digest
FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::timestamptz[])
    WITH ORDINALITY AS t(account_id, value, since, until, place)
    JOIN account_entry AS entry ON entry.account_id = t.account_id AND entry.amount_cents = value
        AND source_id >= id_least('txn', since)
    JOIN transaction ON transaction_id = source_id
WHERE occurred_at BETWEEN since AND until
    OR (first_source = 'c2b' AND occurred_at BETWEEN since - $5::interval AND until
        AND source_id < id_least('txn', until))
ORDER BY source_id
"""
"""Transactions of account numbers that may be the money of a payment without receipt.

By M-Pesa's time or, of a confirmation, by that of its arrival: M-Pesa's clock may be behind.
"""

COUNTED = "SELECT source_id, account_id, amount_cents FROM account_entry WHERE source_id = ANY($1::uuid[])"

ACCOUNTS = KeysetList(
    table="account_number",
    key="account_id",
    prefix="acc",
    source="account_number JOIN receiver USING (receiver_id, env)",
    columns="account_number.*, receiver.number AS shortcode",
)

# raw SQL: join
FIND = """
SELECT account_number.*, receiver.number AS shortcode FROM account_number JOIN receiver USING (receiver_id, env)
WHERE receiver_id = $1 AND merchant_id = $2 AND account_number.number = $3
"""

BY_IDS = """
SELECT account_number.*, receiver.number AS shortcode FROM account_number JOIN receiver USING (receiver_id, env)
WHERE account_id = ANY($1::uuid[])
"""

ENTRIES = """
SELECT source_id, entry.amount_cents, entry.at, transaction.receipt, transaction.occurred_at, transaction.transaction_id
FROM account_entry AS entry LEFT JOIN transaction ON direction = 'in' AND (
    transaction.transaction_id = source_id
    OR (transaction.subject_kind = 'payment' AND transaction.subject_id = source_id))
WHERE entry.account_id = $1 ORDER BY source_id DESC LIMIT $2
"""

MOST_REQUESTED = 1000
"""Payments of one merchant and reference that an answer to a validation request reads, newest first."""

# raw SQL: expression - one query within the time that Safaricom waits.
FOR_VALIDATION = f"""
SELECT CASE WHEN COALESCE(receiver.owner_id, address.merchant_id) <> address.merchant_id THEN 'accept'
        ELSE address.validation END AS validation,
    COALESCE(receiver.owner_id, address.merchant_id) AS merchant_id,
    receiver.number AS shortcode, receiver.kind, account.account_id, account.min_cents,
    account.max_cents,
    ARRAY(
        SELECT amount FROM payment WHERE reference_is_ours AND reference = upper($2) AND payment.env = receiver.env
            AND payment.shortcode = receiver.number
        UNION ALL
        SELECT amount
        FROM shortcode CROSS JOIN (SELECT $2 AS number UNION SELECT $3) AS typed CROSS JOIN LATERAL (
            SELECT amount, shortcode FROM payment
            WHERE merchant_id = shortcode.merchant_id AND env = shortcode.env AND NOT reference_is_ours
                AND reference = typed.number AND payment_id >= id_least('pay', $4::timestamptz)
            ORDER BY payment_id DESC LIMIT {MOST_REQUESTED}
        ) AS recent
        WHERE shortcode.receiver_id = receiver.receiver_id AND recent.shortcode = receiver.number
    ) AS requested
FROM c2b_address AS address JOIN receiver USING (receiver_id)
    LEFT JOIN account_number AS account ON account.receiver_id = address.receiver_id
        AND account.merchant_id = COALESCE(receiver.owner_id, address.merchant_id) AND account.number = $3
        AND account.is_active
WHERE address.receiver_id = $1
"""
"""``requested``: amounts of payments with this reference, of each merchant the newest.

Safaricom may ask about the money of our own pushes too."""

# raw SQL: hot path - each minute, all money without a subject.
RECEIVERS = """
SELECT receiver_id, env, number, kind, owner_id FROM receiver
WHERE EXISTS (SELECT 1 FROM account_number AS account WHERE account.receiver_id = receiver.receiver_id AND is_active)
ORDER BY receiver_id
"""

WAITING = """
SELECT * FROM transaction
WHERE receiver_id = $1 AND direction = 'in' AND subject_id IS NULL
    AND amount_cents IS NOT NULL AND account_number IS NOT NULL AND refund_reserved_cents + refunded_cents = 0
    AND reversed_outside IS NULL
    AND transaction_id > $2
ORDER BY transaction_id LIMIT $3
"""
"""By the receivers' unallocated money, which is little, not by their account numbers."""

LEAST = "SELECT id_least('txn', $1::timestamptz)"

# raw SQL: join
OF_CASE = """
SELECT transaction_id, receipt FROM transaction WHERE direction = 'in' AND (transaction_id = ANY($1::uuid[])
    OR (subject_kind IN ('payment', 'refund', 'payout') AND subject_id = ANY($1::uuid[])))
UNION
SELECT transaction_id, receipt FROM transaction
WHERE env = ANY('{sandbox,live}') AND direction = 'in' AND receipt = ANY($2::text[]) AND merchant_id = $3
"""

NUMBERS_OF_CASE = """
SELECT account_id, number FROM transaction JOIN account_number ON account_id = subject_id
WHERE transaction_id = ANY($1::uuid[]) AND subject_kind = 'account_number'
"""
