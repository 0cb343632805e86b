-- Ids begin with their time, so every list is in the order of its ids.
DROP INDEX delivery_merchant;
DROP INDEX delivery_merchant_status;
DROP INDEX delivery_merchant_type;
DROP INDEX delivery_payment;
DROP INDEX delivery_waiting;
DROP INDEX attempt_delivery;
CREATE INDEX delivery_merchant ON delivery (merchant_id, env, delivery_id);
CREATE INDEX delivery_merchant_status ON delivery (merchant_id, env, status, delivery_id);
CREATE INDEX delivery_merchant_type ON delivery (merchant_id, env, event_type, delivery_id);
CREATE INDEX delivery_payment ON delivery (payment_id, delivery_id);
CREATE INDEX delivery_waiting ON delivery (merchant_id, env, delivery_id) WHERE status = 'waiting';
CREATE INDEX attempt_delivery ON attempt (delivery_id, attempt_id);
