"""Invariants of transactions that no constraint of Postgres enforces."""

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
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
    Invariant(
        name="allocations_rebuild_subjects",
        sentence="The newest allocation of money is its subject, and money that was dealt with has one",
        sql="""
            SELECT transaction_id FROM transaction LEFT JOIN LATERAL (
                SELECT subject_kind AS decided_kind, subject_id AS decided_id FROM allocation
                WHERE allocation.transaction_id = transaction.transaction_id ORDER BY number DESC LIMIT 1
            ) AS decided ON true
            WHERE (decided_id IS NOT NULL OR subject_kind = 'resolved')
                AND (subject_kind, subject_id) IS DISTINCT FROM (decided_kind, decided_id)
        """,
    ),
    Invariant(
        name="allocated_money_came_in",
        sentence="Only money in is allocated by a rule or a person, or announced",
        sql="""
            SELECT transaction_id FROM transaction LEFT JOIN allocation USING (transaction_id)
            WHERE direction = 'out' AND (allocation.number IS NOT NULL OR announced_at IS NOT NULL)
        """,
    ),
)
