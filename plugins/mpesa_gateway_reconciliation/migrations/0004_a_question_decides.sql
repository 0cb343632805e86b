-- What a line shows of its payer as a pattern, so that Postgres finds the lines that fit a payment; and when M-Pesa was
-- asked whose money it is. The answer goes to the line itself; check_id is that of the release before.
ALTER TABLE statement_line
    ADD COLUMN payer_pattern text,
    ADD COLUMN asked_at timestamptz;
CREATE INDEX reconciliation_run_reached_by_cron ON reconciliation_run (merchant_id, env, shortcode, window_end DESC)
    WHERE status = 'completed' AND cause = 'cron';
DROP INDEX reconciliation_run_reached;
