"""Invariants of account numbers that no constraint of Postgres enforces."""

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
INVARIANTS = (
    Invariant(
        name="account_received_is_its_entries",
        sentence="The received sum of an account number is the sum of its entries",
        sql="""
            SELECT account_id FROM account_number WHERE received_cents <> (
                SELECT COALESCE(sum(amount_cents), 0) FROM account_entry AS entry
                WHERE entry.account_id = account_number.account_id)
        """,
    ),
    Invariant(
        name="account_transactions_are_counted",
        sentence="A transaction allocated to an account number counts to it with its amount",
        sql="""
            SELECT transaction_id FROM transaction
                LEFT JOIN account_entry AS entry ON source_id = transaction_id
                    AND account_id = subject_id AND entry.amount_cents = transaction.amount_cents
            WHERE subject_kind = 'account_number' AND entry.source_id IS NULL
        """,
    ),
    Invariant(
        name="account_entries_are_money",
        sentence="A positive entry is of a transaction allocated to its account number, or of a paid payment",
        sql="""
            SELECT source_id FROM account_entry AS entry WHERE amount_cents > 0 AND NOT EXISTS (
                SELECT 1 FROM transaction WHERE transaction_id = source_id AND subject_id = entry.account_id
                    AND transaction.amount_cents = entry.amount_cents
            ) AND NOT EXISTS (
                SELECT 1 FROM payment WHERE payment_id = source_id AND amount * 100 = entry.amount_cents
                    AND status NOT IN ('pending', 'failed'))
        """,
    ),
)
