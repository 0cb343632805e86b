-- contract: a release before wrote rows without an env, which no merchant could read; none was ever published.
-- An endpoint belongs to (merchant, env), and a delivery to the env of its event.
ALTER TABLE webhook_endpoint ADD COLUMN env text;
UPDATE webhook_endpoint SET env = CASE WHEN 'live' = ANY(envs) THEN 'live' ELSE 'sandbox' END FROM merchant
WHERE merchant.merchant_id = webhook_endpoint.merchant_id;
ALTER TABLE webhook_endpoint ADD CONSTRAINT webhook_endpoint_env_check CHECK (env IN ('sandbox', 'live'));
ALTER TABLE webhook_endpoint ALTER COLUMN env SET NOT NULL;
DROP INDEX webhook_endpoint_active;
CREATE UNIQUE INDEX webhook_endpoint_active ON webhook_endpoint (merchant_id, env) WHERE is_active;
ALTER TABLE webhook_endpoint ADD CONSTRAINT webhook_endpoint_of_its_env UNIQUE (endpoint_id, env);
CREATE TRIGGER webhook_endpoint_stays_in_its_env AFTER UPDATE OF merchant_id, env ON webhook_endpoint
    FOR EACH ROW WHEN ((OLD.merchant_id, OLD.env) IS DISTINCT FROM (NEW.merchant_id, NEW.env))
    EXECUTE FUNCTION refuse_rewriting('whose endpoint it is', 'set another one');

ALTER TABLE delivery ADD COLUMN env text;
UPDATE delivery SET env = event.env FROM event WHERE event.event_id = delivery.event_id;
-- What was sent to the endpoint of the other env keeps its record, without the endpoint.
ALTER TABLE delivery ALTER COLUMN endpoint_id DROP NOT NULL;
UPDATE delivery SET endpoint_id = NULL,
    status = CASE status WHEN 'pending' THEN 'cancelled' ELSE status END,
    due_at = NULL, leased_until = NULL
FROM webhook_endpoint WHERE webhook_endpoint.endpoint_id = delivery.endpoint_id AND webhook_endpoint.env <> delivery.env;
ALTER TABLE delivery ALTER COLUMN env SET NOT NULL;
ALTER TABLE delivery
    ADD CONSTRAINT delivery_env_check CHECK (env IN ('sandbox', 'live')),
    DROP CONSTRAINT delivery_endpoint_id_fkey,
    ADD CONSTRAINT delivery_endpoint_of_its_env FOREIGN KEY (endpoint_id, env) REFERENCES webhook_endpoint (endpoint_id, env),
    -- A delivery waits while its merchant has no endpoint in its env.
    DROP CONSTRAINT delivery_status_check,
    ADD CONSTRAINT delivery_status_check CHECK (status IN ('waiting', 'pending', 'delivered', 'dead', 'cancelled')),
    ADD CONSTRAINT delivery_pending_to_an_endpoint CHECK (status <> 'pending' OR endpoint_id IS NOT NULL);
-- Events of before that went to no endpoint wait as well, and so does what was owed to endpoints that were removed.
UPDATE delivery SET status = 'waiting' WHERE status = 'cancelled';
INSERT INTO delivery (delivery_id, event_id, merchant_id, env, event_type, payment_id, status, created_at)
SELECT 'dlv_' || substr(event_id, 5), event_id, merchant_id, env, kind, subject_id, 'waiting', occurred_at
FROM event WHERE is_public AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.event_id = event.event_id);

DROP INDEX delivery_merchant;
DROP INDEX delivery_merchant_status;
DROP INDEX delivery_merchant_type;
CREATE INDEX delivery_merchant ON delivery (merchant_id, env, created_at DESC, delivery_id DESC);
CREATE INDEX delivery_merchant_status ON delivery (merchant_id, env, status, created_at DESC, delivery_id DESC);
CREATE INDEX delivery_merchant_type ON delivery (merchant_id, env, event_type, created_at DESC, delivery_id DESC);
CREATE INDEX delivery_waiting ON delivery (merchant_id, env, created_at) WHERE status = 'waiting';
