-- A line is evidence. is_timed: at least one reading of its time lies in the window that was asked for and not in the
-- future. zone: what its payment proves about times that end in Z. answered_at: when M-Pesa said all that it knows of it;
-- is_to_us: whether the credit party that it named then is our receiver.
ALTER TABLE statement_line
    ADD COLUMN is_timed boolean NOT NULL DEFAULT true,
    ADD COLUMN zone text CHECK (zone IN ('eat', 'utc')),
    ADD COLUMN answered_at timestamptz,
    ADD COLUMN is_to_us boolean;
CREATE INDEX statement_line_zone ON statement_line (env, shortcode, line_id DESC) WHERE zone IS NOT NULL;
CREATE INDEX statement_line_unallocated ON statement_line (env, shortcode, amount, created_at)
    WHERE finding IN ('new', 'not_found', 'ambiguous') AND set_aside_at IS NULL;
