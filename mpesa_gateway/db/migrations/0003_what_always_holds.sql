-- No constraint compares the times of two moments: they may come from clocks of two machines, and a skewed clock must
-- not stop money. What is refused by a trigger is looked at AFTER the change and WHEN it differs, which costs nothing
-- where nothing is wrong; a BEFORE trigger would lock each row once more.

CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is not changed so: %', TG_ARGV[0], TG_ARGV[1]
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END
$$;
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END
$$;

ALTER TABLE gateway_secret ADD CONSTRAINT gateway_secret_is_sealed CHECK (sealed LIKE 'v1.%');

ALTER TABLE idempotency_key ADD CONSTRAINT idempotency_key_has_a_subject CHECK (subject_id <> '');
CREATE TRIGGER idempotency_key_one_subject AFTER UPDATE OF merchant_id, key, fingerprint, subject_id ON idempotency_key
    FOR EACH ROW WHEN ((OLD.merchant_id, OLD.key, OLD.fingerprint, OLD.subject_id)
        IS DISTINCT FROM (NEW.merchant_id, NEW.key, NEW.fingerprint, NEW.subject_id))
    EXECUTE FUNCTION refuse_rewriting('what a key stands for', 'one key, one payment');
CREATE TRIGGER idempotency_key_settled_for_good AFTER UPDATE OF state ON idempotency_key
    FOR EACH ROW WHEN (OLD.state = 'settled' AND NEW.state = 'released')
    EXECUTE FUNCTION refuse_rewriting('a settled key', 'free again, it would send a second time');

ALTER TABLE event
    ADD CONSTRAINT event_kind_check CHECK (kind ~ '^[a-z][a-z0-9_]*([.][a-z][a-z0-9_]*)*$'),
    ADD CONSTRAINT event_payload_check CHECK (jsonb_typeof(payload) = 'object'),
    ADD CONSTRAINT event_public_has_a_subject CHECK (NOT is_public OR subject_id <> '');
-- Payload and body are left out: a payer's number can be erased from them on request.
CREATE TRIGGER event_append_only BEFORE UPDATE OF event_id, kind, merchant_id, subject_id, occurred_at, is_public ON event
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER event_not_deleted BEFORE DELETE ON event FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER event_never_emptied BEFORE TRUNCATE ON event FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE event_task
    ADD CONSTRAINT event_task_attempts_check CHECK (attempts >= 0),
    ADD CONSTRAINT event_task_done_is_not_leased CHECK (done_at IS NULL OR leased_until IS NULL);

ALTER TABLE audit_entry
    ADD CONSTRAINT audit_entry_number_check CHECK (number > 0),
    ADD CONSTRAINT audit_entry_previous_digest_check CHECK (length(previous_digest) = 32),
    ADD CONSTRAINT audit_entry_says_what CHECK (actor <> '' AND action <> '');
