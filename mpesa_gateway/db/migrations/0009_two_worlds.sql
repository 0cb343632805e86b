-- contract: a release before wrote rows without an env, which no merchant could read; none was ever published.
-- Sandbox and live are two worlds: each row of a merchant belongs to one of them. Rows from before take the env of what
-- they are about: of the row with that id in any table that has an env. What has no such row is of the sandbox.
ALTER TABLE idempotency_key
    ADD COLUMN env text,
    ADD COLUMN operation text NOT NULL DEFAULT '';
ALTER TABLE event ADD COLUMN env text;
-- The trigger below is made again for all columns that never change, env among them.
DROP TRIGGER event_append_only ON event;

DO $$
DECLARE
    subject record;
BEGIN
    FOR subject IN
        SELECT pg_class.oid::regclass AS name, key.attname AS key
        FROM pg_class
        JOIN pg_index ON pg_index.indrelid = pg_class.oid AND indisprimary AND indnatts = 1
        JOIN pg_attribute key ON key.attrelid = pg_class.oid AND key.attnum = indkey[0] AND key.atttypid = 'text'::regtype
        JOIN pg_attribute env ON env.attrelid = pg_class.oid AND env.attname = 'env' AND NOT env.attisdropped
        WHERE pg_class.relnamespace = current_schema()::regnamespace AND pg_class.relkind IN ('r', 'p')
            AND pg_class.relname NOT IN ('event', 'merchant')
    LOOP
        EXECUTE format('UPDATE idempotency_key SET env = t.env FROM %s AS t WHERE idempotency_key.subject_id = t.%I', subject.name, subject.key);
        EXECUTE format('UPDATE event SET env = t.env FROM %s AS t WHERE event.subject_id = t.%I AND event.is_public', subject.name, subject.key);
    END LOOP;
END
$$;
UPDATE idempotency_key SET env = 'sandbox' WHERE env IS NULL;
UPDATE event SET env = 'sandbox' WHERE env IS NULL AND is_public;
-- What merchants hear says its env, at its top and in its data, and the payload decodes as the new events do.
UPDATE event SET payload = payload || jsonb_build_object('env', env),
    body = regexp_replace(regexp_replace(body,
        '^(\{"id":"[^"]*","type":"[^"]*")', '\1,"env":"' || env || '"'),
        '("created_at":"[^"]*","data":\{)', '\1"env":"' || env || '",')
WHERE env IS NOT NULL AND body IS NOT NULL;

ALTER TABLE idempotency_key ADD CONSTRAINT idempotency_key_env_check CHECK (env IN ('sandbox', 'live'));
ALTER TABLE idempotency_key ALTER COLUMN env SET NOT NULL;
ALTER TABLE idempotency_key DROP CONSTRAINT idempotency_key_pkey, ADD PRIMARY KEY (merchant_id, env, key);
DROP TRIGGER idempotency_key_one_subject ON idempotency_key;
CREATE TRIGGER idempotency_key_one_subject AFTER UPDATE OF merchant_id, env, key, operation, fingerprint, subject_id
    ON idempotency_key
    FOR EACH ROW WHEN ((OLD.merchant_id, OLD.env, OLD.key, OLD.operation, OLD.fingerprint, OLD.subject_id)
        IS DISTINCT FROM (NEW.merchant_id, NEW.env, NEW.key, NEW.operation, NEW.fingerprint, NEW.subject_id))
    EXECUTE FUNCTION refuse_rewriting('what a key stands for', 'one key, one payment');

-- An event of no world, such as a callback without a token, is for our own plugins only.
ALTER TABLE event ADD CONSTRAINT event_env_check
    CHECK (env IN ('sandbox', 'live') AND NOT (is_public AND env IS NULL));
CREATE TRIGGER event_append_only
    BEFORE UPDATE OF event_id, kind, merchant_id, env, subject_id, occurred_at, is_public ON event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE INDEX event_newest ON event (merchant_id, env, occurred_at DESC, event_id DESC) WHERE is_public;
CREATE INDEX event_newest_of_kind ON event (merchant_id, env, kind, occurred_at DESC, event_id DESC) WHERE is_public;
DROP INDEX event_merchant;
DROP INDEX event_merchant_kind;

-- For tables whose rows name another row: an AFTER trigger refuse_another_env('payment', 'payment_id') ends the
-- statement where the row with that id is of another env.
CREATE FUNCTION refuse_another_env() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    named text := to_jsonb(NEW) ->> TG_ARGV[1];
    its text;
BEGIN
    IF named IS NOT NULL THEN
        EXECUTE format('SELECT env FROM %I WHERE %I = $1', TG_ARGV[0], TG_ARGV[1]) INTO its USING named;
        IF its IS DISTINCT FROM NEW.env THEN
            RAISE EXCEPTION '% of % belongs to a % of %', TG_TABLE_NAME, NEW.env, TG_ARGV[0], its
                USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
        END IF;
    END IF;
    RETURN NULL;
END
$$;
