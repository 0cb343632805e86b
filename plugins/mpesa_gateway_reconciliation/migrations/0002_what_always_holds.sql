-- That runs of one merchant never overlap is the unique index reconciliation_run_one_at_a_time: what overlaps is the
-- running, not the windows, which reach back over each other on purpose.
ALTER TABLE reconciliation_run
    ADD CONSTRAINT reconciliation_run_counts_check CHECK (
        least(pages, lines, malformed, already_known, recovered, not_found, mismatched, ambiguous) >= 0
        AND already_known + recovered + not_found + mismatched + ambiguous <= lines);
ALTER TABLE statement_line
    ADD CONSTRAINT statement_line_receipt_check CHECK (receipt ~ '^[A-Z0-9]{6,20}$'),
    ADD CONSTRAINT statement_line_amount_check CHECK (amount >= 0),
    ADD CONSTRAINT statement_line_settled_with_its_payment CHECK ((settled_at IS NULL) = (payment_id IS NULL));
