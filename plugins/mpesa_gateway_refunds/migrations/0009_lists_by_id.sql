-- Ids begin with their time, so every list is in the order of its ids.
DROP INDEX refund_payment;
DROP INDEX refund_merchant;
DROP INDEX refund_merchant_status;
DROP INDEX refund_merchant_attention;
DROP INDEX refund_attention;
CREATE INDEX refund_payment ON refund (payment_id, refund_id);
CREATE INDEX refund_merchant ON refund (merchant_id, env, refund_id);
CREATE INDEX refund_merchant_status ON refund (merchant_id, env, status, refund_id);
CREATE INDEX refund_attention ON refund (merchant_id, env, refund_id) WHERE attention IS NOT NULL;
