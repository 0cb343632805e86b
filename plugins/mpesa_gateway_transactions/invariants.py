"""Invariants of transactions that no constraint of Postgres enforces."""

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant is a statement that the ledger's query encloses.
INVARIANTS = (
    Invariant(
        name="receipt_is_once",
        sentence="A receipt is one transaction of its env and direction",
        sql="SELECT receipt FROM transaction GROUP BY env, direction, receipt HAVING count(*) > 1",
    ),
    Invariant(
        name="subject_is_once",
        sentence="A payment, refund or payout has one transaction",
        sql="""
            SELECT subject_id FROM transaction WHERE subject_kind IN ('payment', 'refund', 'payout')
            GROUP BY subject_id HAVING count(*) > 1
        """,
    ),
    Invariant(
        name="env_is_its_receivers",
        sentence="A transaction belongs to the env of its receiver",
        sql="""
            SELECT transaction_id FROM transaction JOIN receiver USING (receiver_id)
            WHERE transaction.env <> receiver.env
        """,
    ),
)
