"""Invariants of statements and payments that no constraint of Postgres enforces."""

from datetime import timedelta

from mpesa_gateway.invariant import Invariant

# raw SQL: declared - an invariant.
INVARIANTS = (
    Invariant(
        name="lines_fit_their_payments",
        sentence="A line of a payment has its receipt and amount, or reversed it; other lines are mismatched",
        sql="""
            SELECT line_id FROM noted_line AS line JOIN payment USING (payment_id)
            WHERE (line.merchant_id, line.env) <> (payment.merchant_id, payment.env)
                OR (finding IN ('already_known', 'recovered')
                    AND NOT (kind ILIKE '%revers%' AND (refunded > 0 OR reversed_outside IS NOT NULL))
                    AND (line.receipt, line.amount)
                        IS DISTINCT FROM (payment.receipt, payment.amount))
                OR (finding = 'mismatched' AND mismatch IS NULL
                    AND line.amount IS NOT DISTINCT FROM payment.amount)
        """,
    ),
    Invariant(
        name="env_is_its_runs",
        sentence="A run reads only lines of its own env",
        sql="""
            SELECT transaction_id FROM reconciliation_line JOIN reconciliation_run USING (run_id)
                JOIN transaction USING (transaction_id)
            WHERE transaction.env <> reconciliation_run.env
        """,
    ),
    Invariant(
        name="runs_add_up",
        sentence="A completed run has a finding for each line, and its counts agree with its lines",
        sql="""
            SELECT run_id FROM reconciliation_run LEFT JOIN reconciliation_line USING (run_id)
            WHERE status = 'completed' GROUP BY run_id
            HAVING lines <> count(transaction_id) OR already_known <> count(*) FILTER (WHERE finding = 'already_known')
                OR recovered <> count(*) FILTER (WHERE finding = 'recovered')
                OR not_found <> count(*) FILTER (WHERE finding = 'not_found')
                OR mismatched <> count(*) FILTER (WHERE finding = 'mismatched')
                OR ambiguous <> count(*) FILTER (WHERE finding = 'ambiguous')
                OR count(*) FILTER (WHERE finding = 'new') > 0
        """,
    ),
    Invariant(
        name="runs_end",
        sentence="No run is running after its process has stopped",
        sql="SELECT run_id FROM reconciliation_run WHERE status = 'running' AND lease_until < $1",
        grace=timedelta(minutes=30),
    ),
)
