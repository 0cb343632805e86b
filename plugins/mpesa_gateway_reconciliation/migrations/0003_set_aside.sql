-- A person has seen to a line that no payment of ours explains: it is asked about no more.
ALTER TABLE statement_line
    ADD COLUMN set_aside_at timestamptz,
    ADD COLUMN set_aside_by text,
    ADD COLUMN set_aside_reason text,
    ADD CONSTRAINT statement_line_set_aside_says_why CHECK (
        num_nulls(set_aside_at, set_aside_by, set_aside_reason) IN (0, 3) AND set_aside_reason <> '');
CREATE INDEX statement_line_unresolved ON statement_line (merchant_id, created_at DESC, line_id DESC)
    WHERE finding IN ('not_found', 'mismatched', 'ambiguous') AND set_aside_at IS NULL;
