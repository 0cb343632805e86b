CREATE INDEX idempotency_key_created ON idempotency_key (created_at);

-- Where the kept part of the audit log's chain begins: the number and digest of the last entry that was let go.
CREATE TABLE audit_checkpoint (
    is_the_only_one boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_one),
    number bigint NOT NULL CHECK (number > 0),
    digest bytea NOT NULL CHECK (length(digest) = 32)
);

-- The one way in which entries go: the oldest, up to the one that the log's own newest entry about a cut names.
CREATE FUNCTION audit_cut(most integer) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    through bigint;
    last_gone bigint;
    gone bigint := 0;
BEGIN
    SELECT (detail::jsonb ->> 'through')::bigint INTO through FROM audit_entry
    WHERE action = 'audit.cut' ORDER BY number DESC LIMIT 1;
    -- One at a time; whoever comes second finds nothing to do.
    IF through IS NULL OR NOT pg_try_advisory_xact_lock(hashtextextended('mpesa_gateway.audit_cut', 0)) THEN
        RETURN 0;
    END IF;
    SELECT max(number) INTO last_gone
    FROM (SELECT number FROM audit_entry WHERE number <= through ORDER BY number LIMIT most) oldest;
    IF last_gone IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM set_config('mpesa_gateway.audit_cut', last_gone::text, true);
    INSERT INTO audit_checkpoint (number, digest) SELECT number, digest FROM audit_entry WHERE number = last_gone
    ON CONFLICT (is_the_only_one) DO UPDATE SET number = excluded.number, digest = excluded.digest;
    DELETE FROM audit_entry WHERE number <= last_gone;
    GET DIAGNOSTICS gone = ROW_COUNT;
    PERFORM set_config('mpesa_gateway.audit_cut', '', true);
    RETURN gone;
END
$$;
CREATE FUNCTION refuse_change_but_by_audit_cut() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE(current_setting('mpesa_gateway.audit_cut', true), '') = '' THEN
        RAISE EXCEPTION '% is append-only: only audit_cut() lets its beginning go', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN COALESCE(NEW, OLD);
END
$$;
DROP TRIGGER audit_entry_append_only ON audit_entry;
CREATE TRIGGER audit_entry_append_only BEFORE UPDATE ON audit_entry FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_entry_not_deleted BEFORE DELETE ON audit_entry
    FOR EACH ROW EXECUTE FUNCTION refuse_change_but_by_audit_cut();
CREATE TRIGGER audit_checkpoint_not_written BEFORE INSERT OR UPDATE OR DELETE ON audit_checkpoint
    FOR EACH ROW EXECUTE FUNCTION refuse_change_but_by_audit_cut();
CREATE TRIGGER audit_checkpoint_never_emptied BEFORE TRUNCATE ON audit_checkpoint
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
