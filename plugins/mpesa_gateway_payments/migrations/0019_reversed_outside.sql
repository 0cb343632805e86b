-- M-Pesa can reverse a payment without us: on its portal, or by its support. An operator has to see it.
ALTER TABLE payment
    ADD COLUMN reversed_outside text CHECK (reversed_outside IN ('whole', 'part')),
    ADD CONSTRAINT payment_reversed_outside_fits_status CHECK (reversed_outside <> 'whole' OR status = 'reversed'),
    DROP CONSTRAINT payment_looked_after_a_mismatch,
    ADD CONSTRAINT payment_looked_after_what_waited CHECK (
        looked_after_at IS NULL OR mismatch IS NOT NULL OR reversed_outside IS NOT NULL);
DROP INDEX payment_held;
CREATE INDEX payment_held ON payment (env, created_at DESC, payment_id DESC)
    WHERE looked_after_at IS NULL AND (mismatch IS NOT NULL OR reversed_outside IS NOT NULL);

ALTER TABLE payment_step DROP CONSTRAINT payment_step_kind_check;
ALTER TABLE payment_step
    ADD CONSTRAINT payment_step_kind_check CHECK (kind IN ('requested', 'sent', 'unsent', 'unknown', 'refused',
        'completed', 'failed', 'expired', 'mismatched', 'receipt_learnt', 'asked', 'confirming', 'unconfirmed',
        'refund_asked', 'refund_failed', 'reversed', 'partially_reversed', 'looked_after', 'reversal_seen'));
