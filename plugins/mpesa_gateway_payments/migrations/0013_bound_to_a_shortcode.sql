-- A payment is bound to its (env, shortcode) for good: shortcode_id names whose credentials its questions and refunds use,
-- and shortcode becomes the number that payers pay, which for a till is not the store number. What has no shortcode any
-- more gets a retired one without secrets.
ALTER TABLE payment ADD COLUMN shortcode_id text COLLATE "C" REFERENCES shortcode;
DROP TRIGGER payment_asks_for_the_same ON payment;

WITH known AS (
    SELECT shortcode_id, merchant_id, env, number, store_number FROM shortcode JOIN receiver USING (receiver_id, env)
)
UPDATE payment SET shortcode_id = known.shortcode_id, shortcode = known.number FROM known
WHERE payment.merchant_id = known.merchant_id AND payment.env = known.env
    AND payment.shortcode = COALESCE(known.store_number, known.number);

INSERT INTO receiver (receiver_id, env, number, kind, created_at)
SELECT 'rcv_' || substr(md5(env || shortcode), 1, 26), env, shortcode, 'paybill', min(created_at)
FROM payment WHERE shortcode_id IS NULL GROUP BY env, shortcode
ON CONFLICT (env, number) DO NOTHING;
INSERT INTO shortcode (shortcode_id, merchant_id, env, receiver_id, is_default, created_at, updated_at, retired_at,
    wiped_at)
SELECT 'shc_' || substr(md5(merchant_id || receiver_id), 1, 26), merchant_id, payment.env, receiver_id, false,
    min(payment.created_at), now(), now(), now()
FROM payment JOIN receiver ON receiver.env = payment.env AND receiver.number = payment.shortcode
WHERE shortcode_id IS NULL GROUP BY merchant_id, payment.env, receiver_id
ON CONFLICT (merchant_id, receiver_id) DO NOTHING;
UPDATE payment SET shortcode_id = known.shortcode_id
FROM (SELECT shortcode_id, merchant_id, env, number FROM shortcode JOIN receiver USING (receiver_id, env)) AS known
WHERE payment.shortcode_id IS NULL AND payment.merchant_id = known.merchant_id AND payment.env = known.env
    AND payment.shortcode = known.number;

ALTER TABLE payment ADD CONSTRAINT payment_shortcode_id_present CHECK (shortcode_id IS NOT NULL);
ALTER TABLE payment ALTER COLUMN shortcode_id SET NOT NULL;
ALTER TABLE payment DROP CONSTRAINT payment_shortcode_id_present;
CREATE TRIGGER payment_asks_for_the_same AFTER UPDATE OF merchant_id, env, provider, shortcode, shortcode_id, amount,
    currency, idempotency_key ON payment
    FOR EACH ROW WHEN (
        (OLD.merchant_id, OLD.env, OLD.provider, OLD.shortcode, OLD.shortcode_id, OLD.amount, OLD.currency,
            OLD.idempotency_key)
        IS DISTINCT FROM
        (NEW.merchant_id, NEW.env, NEW.provider, NEW.shortcode, NEW.shortcode_id, NEW.amount, NEW.currency,
            NEW.idempotency_key))
    EXECUTE FUNCTION refuse_rewriting('what was asked for', 'make another payment');

UPDATE status_check SET shortcode = receiver.number
FROM shortcode JOIN receiver USING (receiver_id, env)
WHERE status_check.merchant_id = shortcode.merchant_id AND status_check.env = shortcode.env
    AND status_check.shortcode = shortcode.store_number;
