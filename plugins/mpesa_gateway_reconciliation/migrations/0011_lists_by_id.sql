-- Ids begin with their time, so every list is in the order of its ids.
DROP INDEX reconciliation_run_merchant;
DROP INDEX statement_line_unresolved;
CREATE INDEX reconciliation_run_merchant ON reconciliation_run (merchant_id, env, run_id);
CREATE INDEX statement_line_unresolved ON statement_line (merchant_id, env, line_id)
    WHERE finding IN ('not_found', 'mismatched', 'ambiguous') AND set_aside_at IS NULL;
