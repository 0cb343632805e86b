-- Tells every process what has changed of what it may remember for a moment: `topic:key` on the schema's own channel.
CREATE FUNCTION tell_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(TG_TABLE_SCHEMA || '_changed', TG_ARGV[0] || ':' || (to_jsonb(OLD) ->> TG_ARGV[1]));
    RETURN NULL;
END
$$;
CREATE TRIGGER api_key_told AFTER UPDATE OF merchant_id, digest, env, scopes, expires_at, revoked_at OR DELETE ON api_key
    FOR EACH ROW EXECUTE FUNCTION tell_change('api_key', 'key_id');
CREATE TRIGGER merchant_told AFTER UPDATE OF is_active OR DELETE ON merchant
    FOR EACH ROW EXECUTE FUNCTION tell_change('merchant', 'merchant_id');
