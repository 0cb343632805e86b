-- A refund uses the newest credentials of its payment's shortcode.
ALTER TABLE refund ADD COLUMN shortcode_id text COLLATE "C" REFERENCES shortcode;
UPDATE refund SET shortcode_id = payment.shortcode_id, shortcode = payment.shortcode
FROM payment WHERE payment.payment_id = refund.payment_id;
ALTER TABLE refund ADD CONSTRAINT refund_shortcode_id_present CHECK (shortcode_id IS NOT NULL);
ALTER TABLE refund ALTER COLUMN shortcode_id SET NOT NULL;
ALTER TABLE refund DROP CONSTRAINT refund_shortcode_id_present;
