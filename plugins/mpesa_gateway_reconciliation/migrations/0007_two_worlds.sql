-- contract: a release before wrote rows without an env, which no merchant could read; none was ever published.
-- Every list belongs to (merchant, env).
DROP INDEX reconciliation_run_merchant;
DROP INDEX statement_line_unresolved;
CREATE INDEX reconciliation_run_merchant ON reconciliation_run (merchant_id, env, started_at DESC, run_id DESC);
CREATE INDEX statement_line_unresolved ON statement_line (merchant_id, env, created_at DESC, line_id DESC)
    WHERE finding IN ('not_found', 'mismatched', 'ambiguous') AND set_aside_at IS NULL;

CREATE TRIGGER statement_line_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON statement_line
    FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL) EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');
