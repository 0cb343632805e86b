-- Questions are put shortcode by shortcode, and payments end by their own time.
DROP INDEX IF EXISTS payment_due;
CREATE INDEX payment_due ON payment (shortcode_id, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX payment_expiry ON payment (expires_at) WHERE status = 'pending' AND mismatch IS NULL;
UPDATE payment SET expires_at = due_at WHERE status = 'pending' AND charge = 'released' AND mismatch IS NULL;
