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

OF_MONEY = """
SELECT place, account_id, account.merchant_id
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[])
    WITH ORDINALITY AS t(receiver_id, merchant_id, number, amount_cents, place)
    JOIN account_number AS account USING (receiver_id, merchant_id, number)
    JOIN receiver USING (receiver_id)
WHERE is_active AND NOT EXISTS (SELECT 1 FROM payment
    WHERE payment.env = receiver.env AND payment.shortcode = receiver.number AND amount = t.amount_cents / 100
        AND receipt IS NULL AND status IN ('pending', 'completed') AND upper(reference) = t.number)
"""
"""Money that a payment without receipt may have had is left for its callback, and for the job."""

OF_PAYMENTS = """
SELECT payment_id, amount, account_id FROM unnest($1::uuid[], $2::text[]) AS t(payment_id, number)
    JOIN payment USING (payment_id)
    JOIN receiver ON receiver.env = payment.env AND receiver.number = payment.shortcode
    JOIN account_number AS account ON account.receiver_id = receiver.receiver_id
        AND account.merchant_id = payment.merchant_id AND account.number = t.number
WHERE account.is_active
"""
"""The account numbers that completed payments have as reference."""

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

# raw SQL: expression - one query within the time that Safaricom waits.
FOR_VALIDATION = """
SELECT CASE WHEN receiver.owner_id <> address.merchant_id THEN 'accept' ELSE address.validation END AS validation,
    COALESCE(receiver.owner_id, address.merchant_id) AS merchant_id,
    receiver.number AS shortcode, receiver.kind, account.account_id, account.min_cents,
    account.max_cents,
    (SELECT array_agg(amount) FROM (
        SELECT amount FROM payment WHERE reference_is_ours AND reference = upper($2) AND payment.env = receiver.env
            AND payment.shortcode = receiver.number
        UNION ALL
        SELECT amount FROM shortcode JOIN payment ON payment.merchant_id = shortcode.merchant_id
            AND payment.env = shortcode.env AND NOT reference_is_ours AND reference = ANY(ARRAY[$2, $3])
        WHERE shortcode.receiver_id = receiver.receiver_id AND payment.shortcode = receiver.number
            AND payment.payment_id >= id_least('pay', $4::timestamptz)
    ) AS requested) AS requested
FROM c2b_address AS address JOIN receiver USING (receiver_id)
    LEFT JOIN account_number AS account ON account.receiver_id = address.receiver_id
        AND account.merchant_id = COALESCE(receiver.owner_id, address.merchant_id) AND account.number = $3
        AND account.is_active
WHERE address.receiver_id = $1
"""
"""``requested``: amounts of payments with this reference. Safaricom may ask about the money of our own pushes too."""

# raw SQL: join
WAITING = """
SELECT open.env, receiver.number AS shortcode, open.merchant_id, receipt, occurred_at, amount_cents, first_source
FROM receiver CROSS JOIN LATERAL (
    SELECT * FROM transaction WHERE transaction.receiver_id = receiver.receiver_id AND direction = 'in'
        AND subject_id IS NULL AND conflict_id IS NULL AND amount_cents IS NOT NULL AND account_number IS NOT NULL
        AND refund_reserved_cents + refunded_cents = 0
        AND transaction_id >= id_least('txn', $1::timestamptz)
) AS open
    JOIN account_number AS account ON account.receiver_id = open.receiver_id AND account.merchant_id = open.merchant_id
        AND account.number = upper(open.account_number) AND account.is_active
ORDER BY open.transaction_id LIMIT $2
"""
"""By the receivers' unallocated money, which is little, not by their account numbers."""

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
