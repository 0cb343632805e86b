CREATE INDEX refund_attention ON refund (created_at DESC, refund_id DESC) WHERE attention IS NOT NULL;
