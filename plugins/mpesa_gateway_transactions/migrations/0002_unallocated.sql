-- Money that came in and belongs to nothing is looked for by its receiver and amount.
CREATE INDEX transaction_unallocated ON transaction (receiver_id, amount_cents)
    WHERE direction = 'in' AND subject_id IS NULL AND conflict_id IS NULL;
