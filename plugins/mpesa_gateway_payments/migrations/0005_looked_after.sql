-- Money that was not what we asked for waits for a person; this is where the person says that it has been seen to.
ALTER TABLE payment ADD COLUMN looked_after_at timestamptz,
    ADD CONSTRAINT payment_looked_after_a_mismatch CHECK (looked_after_at IS NULL OR mismatch IS NOT NULL);
CREATE INDEX payment_held ON payment (created_at DESC, payment_id DESC)
    WHERE mismatch IS NOT NULL AND looked_after_at IS NULL;
CREATE INDEX status_check_payment ON status_check (payment_id, created_at) WHERE payment_id IS NOT NULL;

ALTER TABLE payment_step DROP CONSTRAINT payment_step_kind_check;
ALTER TABLE payment_step
    ADD CONSTRAINT payment_step_kind_check CHECK (kind IN ('requested', 'sent', 'unsent', 'unknown', 'refused',
        'completed', 'failed', 'expired', 'mismatched', 'receipt_learnt', 'asked', 'confirming', 'unconfirmed',
        'refund_asked', 'refund_failed', 'reversed', 'partially_reversed', 'looked_after'));
