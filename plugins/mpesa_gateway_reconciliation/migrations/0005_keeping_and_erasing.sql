-- A line is let go once no run has it any more.
CREATE INDEX reconciliation_line_line ON reconciliation_line (line_id);
CREATE INDEX statement_line_phone ON statement_line (merchant_id, phone) WHERE payment_id IS NULL AND phone IS NOT NULL;
