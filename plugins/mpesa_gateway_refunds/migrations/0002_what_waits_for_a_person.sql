ALTER TABLE refund ADD COLUMN advice text, ADD COLUMN shortcode text;
CREATE INDEX refund_attention ON refund (merchant_id, created_at DESC, refund_id DESC) WHERE attention IS NOT NULL;
