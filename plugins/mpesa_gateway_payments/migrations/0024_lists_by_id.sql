-- Ids begin with their time, so every list is in the order of its ids.
DROP INDEX payment_newest;
DROP INDEX payment_newest_of_status;
DROP INDEX payment_merchant_phone;
DROP INDEX payment_merchant_reference;
DROP INDEX payment_merchant_amount;
DROP INDEX payment_held;
DROP INDEX status_check_payment;
CREATE INDEX payment_newest ON payment (merchant_id, env, payment_id) INCLUDE (amount);
CREATE INDEX payment_newest_of_status ON payment (merchant_id, env, status, payment_id) INCLUDE (amount);
CREATE INDEX payment_merchant_phone ON payment (merchant_id, env, phone, payment_id);
CREATE INDEX payment_merchant_reference ON payment (merchant_id, env, reference, payment_id);
CREATE INDEX payment_merchant_amount ON payment (merchant_id, env, amount, payment_id);
CREATE INDEX payment_held ON payment (merchant_id, env, payment_id)
    WHERE looked_after_at IS NULL AND (mismatch IS NOT NULL OR reversed_outside IS NOT NULL);
CREATE INDEX status_check_payment ON status_check (payment_id, check_id) WHERE payment_id IS NOT NULL;
