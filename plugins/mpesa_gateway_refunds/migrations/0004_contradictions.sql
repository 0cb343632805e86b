-- M-Pesa contradicts itself about refunds that have ended, too: somebody has to look at those as well.
ALTER TABLE refund
    DROP CONSTRAINT refund_attention_while_pending,
    ADD COLUMN advice text,
    ADD COLUMN shortcode text;
CREATE INDEX refund_merchant_attention ON refund (merchant_id, created_at DESC, refund_id DESC)
    WHERE attention IS NOT NULL;
