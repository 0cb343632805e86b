-- contract: a release before wrote rows without an env, which no merchant could read; none was ever published.
-- An Idempotency-Key and every list belong to (merchant, env).
ALTER TABLE payment
    DROP CONSTRAINT payment_merchant_id_idempotency_key_key,
    ADD CONSTRAINT payment_merchant_id_env_idempotency_key_key UNIQUE (merchant_id, env, idempotency_key);
DROP INDEX payment_newest;
DROP INDEX payment_newest_of_status;
DROP INDEX payment_merchant_phone;
DROP INDEX payment_merchant_reference;
DROP INDEX payment_merchant_amount;
CREATE INDEX payment_newest ON payment (merchant_id, env, created_at DESC, payment_id DESC) INCLUDE (amount);
CREATE INDEX payment_newest_of_status
    ON payment (merchant_id, env, status, created_at DESC, payment_id DESC) INCLUDE (amount);
CREATE INDEX payment_merchant_phone ON payment (merchant_id, env, phone, created_at DESC, payment_id DESC);
CREATE INDEX payment_merchant_reference ON payment (merchant_id, env, reference, created_at DESC, payment_id DESC);
CREATE INDEX payment_merchant_amount ON payment (merchant_id, env, amount, created_at DESC, payment_id DESC);
DROP INDEX payment_held;
CREATE INDEX payment_held ON payment (env, created_at DESC, payment_id DESC)
    WHERE mismatch IS NOT NULL AND looked_after_at IS NULL;
DROP INDEX status_check_merchant;

CREATE TRIGGER status_check_env_is_its_payments AFTER INSERT OR UPDATE OF env, payment_id ON status_check
    FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL) EXECUTE FUNCTION refuse_another_env('payment', 'payment_id');
