-- contract: a release before wrote rows without an env, which no merchant could read; none was ever published.
-- An Idempotency-Key and every list belong to (merchant, env), and a refund to the env of its payment.
DROP INDEX refund_idempotency_key;
DROP INDEX refund_merchant;
DROP INDEX refund_merchant_status;
DROP INDEX refund_merchant_attention;
DROP INDEX refund_attention;
CREATE UNIQUE INDEX refund_idempotency_key ON refund (merchant_id, env, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX refund_merchant ON refund (merchant_id, env, created_at DESC, refund_id DESC);
CREATE INDEX refund_merchant_status ON refund (merchant_id, env, status, created_at DESC, refund_id DESC);
CREATE INDEX refund_merchant_attention ON refund (merchant_id, env, created_at DESC, refund_id DESC)
    WHERE attention IS NOT NULL;
CREATE INDEX refund_attention ON refund (env, created_at DESC, refund_id DESC) WHERE attention IS NOT NULL;

CREATE TRIGGER refund_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON refund
    FOR EACH ROW EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');
