-- Ids are uuids in tables and text such as pay_01jd… elsewhere: 48 bits of milliseconds, a zero bit, 15 bits of prefix,
-- 64 random bits. mpesa_gateway/ids.py has the same functions.
CREATE FUNCTION id_text(id uuid) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT concat(chr(96 + substring(bits FROM 50 FOR 5)::integer), chr(96 + substring(bits FROM 55 FOR 5)::integer),
        chr(96 + substring(bits FROM 60 FOR 5)::integer), '_', (
            SELECT string_agg(substr('0123456789abcdefghjkmnpqrstvwxyz',
                substring(B'00' || bits FROM 5 * place + 1 FOR 5)::integer + 1, 1), '' ORDER BY place)
            FROM generate_series(0, 25) AS place))
    FROM (SELECT ('x' || replace(id::text, '-', ''))::bit(128) AS bits) AS each
$$;
CREATE FUNCTION id_uuid(id text) RETURNS uuid LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    bits text := '';
    found uuid;
BEGIN
    IF id ~ '^[a-z]{3}_[0-7][0-9abcdefghjkmnpqrstvwxyz]{25}$' THEN
        FOR place IN 5..30 LOOP
            bits := bits || (strpos('0123456789abcdefghjkmnpqrstvwxyz', substr(id, place, 1)) - 1)::bit(5)::text;
        END LOOP;
        SELECT string_agg(to_hex(substr(bits, 4 * place + 3, 4)::bit(4)::integer), '' ORDER BY place)::uuid INTO found
        FROM generate_series(0, 31) AS place;
    END IF;
    IF found IS NULL OR NOT has_prefix(found, left(id, 3)) THEN
        RAISE EXCEPTION '% is no identifier', id USING ERRCODE = 'invalid_text_representation';
    END IF;
    RETURN found;
END
$$;
-- For constraints: any id of ours, and in a primary key one with the table's prefix. In PL/pgSQL, as Postgres would parse
-- functions in SQL again for each statement that writes to the table.
CREATE FUNCTION is_id(id uuid) RETURNS boolean LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN get_byte(uuid_send(id), 6) BETWEEN 1 AND 127;
END $$;
CREATE FUNCTION has_prefix(id uuid, prefix text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN (get_byte(uuid_send(id), 6) << 8) + get_byte(uuid_send(id), 7) = (
        ((ascii(prefix) & 31) << 10) + ((ascii(substr(prefix, 2)) & 31) << 5) + (ascii(substr(prefix, 3)) & 31));
END $$;
-- Returns the least id of a prefix and a millisecond: all ids of earlier milliseconds are less.
CREATE FUNCTION id_least(prefix text, moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || lpad(to_hex(
        ((ascii(prefix) & 31) << 10) + ((ascii(substr(prefix, 2)) & 31) << 5) + (ascii(substr(prefix, 3)) & 31)), 4, '0')
        || repeat('0', 16))::uuid
$$;

CREATE TABLE gateway_secret (
    name text PRIMARY KEY,
    sealed text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT gateway_secret_is_sealed CHECK (sealed LIKE 'v1.%')
);

CREATE TABLE merchant (
    merchant_id uuid PRIMARY KEY CHECK (has_prefix(merchant_id, 'mer')),
    name text NOT NULL CHECK (name <> ''),
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    envs text[] NOT NULL DEFAULT '{}' CHECK (envs <@ '{live,sandbox}')
);
CREATE INDEX merchant_live ON merchant (merchant_id) WHERE 'live' = ANY (envs);

CREATE TABLE api_key (
    key_id uuid PRIMARY KEY CHECK (has_prefix(key_id, 'key')),
    merchant_id uuid NOT NULL REFERENCES merchant,
    name text NOT NULL,
    digest bytea NOT NULL CHECK (length(digest) = 32),
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    created_by text COLLATE "C" NOT NULL
);
CREATE INDEX api_key_merchant ON api_key (merchant_id, env);
CREATE INDEX api_key_maker ON api_key (created_by) WHERE revoked_at IS NULL;

-- The first 16 bytes of a SHA-256 of a text of a merchant and env. Without convert_to(), which is not immutable, Postgres
-- inlines the function.
CREATE FUNCTION key_digest(merchant_id uuid, env text, key text) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT encode(substr(sha256(replace(merchant_id::text || env || key, E'\\', E'\\\\')::bytea), 1, 16), 'hex')::uuid
$$;

-- Payments and refunds of a merchant in an env share one namespace. digest: key_digest() of the key, which the payment or
-- refund has. fingerprint: the first 16 bytes of a SHA-256 of the request.
CREATE TABLE idempotency_key (
    digest uuid PRIMARY KEY,
    merchant_id uuid NOT NULL REFERENCES merchant,
    subject_id uuid NOT NULL CHECK (is_id(subject_id)),
    leased_until timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 16),
    state text NOT NULL CHECK (state IN ('in_flight', 'released', 'settled')),
    operation text NOT NULL DEFAULT ''
);
CREATE INDEX idempotency_key_created ON idempotency_key (created_at);

-- The forms of bodies: templates of format(). form_id: the first 4 bytes of the template's SHA-256.
CREATE TABLE body_form (
    form_id integer PRIMARY KEY,
    template text NOT NULL CHECK (length(template) <= 2000)
);
-- The text of a body. The first arguments of its template are the columns of its row, the others its values, which
-- U+001F separates. Without a form, the stored body is the text.
CREATE FUNCTION body_text(form_id integer, stored_body text, columns text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN form_id IS NULL THEN stored_body ELSE (
    SELECT format(template, VARIADIC columns || string_to_array(stored_body, U&'\001F')) FROM body_form AS form
    WHERE form.form_id = body_text.form_id) END;

-- event.body is the webhook as it is sent; payload: the fields, NULL if the body holds them all unchanged.
CREATE TABLE event (
    event_id uuid PRIMARY KEY CHECK (has_prefix(event_id, 'evt')),
    occurred_at timestamptz NOT NULL,
    form_id integer,
    is_public boolean NOT NULL,
    merchant_id uuid REFERENCES merchant,
    subject_id uuid CHECK (is_id(subject_id)),
    env text,
    kind text NOT NULL CHECK (kind ~ '^[a-z][a-z0-9_]*([.][a-z][a-z0-9_]*)*$'),
    payload jsonb CHECK (jsonb_typeof(payload) = 'object'),
    stored_body text,
    CONSTRAINT event_check CHECK (is_public = (stored_body IS NOT NULL)),
    CONSTRAINT event_form_of_a_body CHECK (form_id IS NULL OR stored_body IS NOT NULL),
    CONSTRAINT event_check1 CHECK (merchant_id IS NOT NULL OR NOT is_public),
    CONSTRAINT event_env_check CHECK (env IN ('sandbox', 'live') AND (NOT (is_public AND env IS NULL))),
    CONSTRAINT event_payload_unless_public CHECK (payload IS NOT NULL OR is_public),
    CONSTRAINT event_public_has_a_subject CHECK (NOT is_public OR subject_id IS NOT NULL)
);
CREATE INDEX event_newest ON event (merchant_id, env, event_id) WHERE is_public;
CREATE INDEX event_newest_of_kind ON event (merchant_id, env, kind, event_id) WHERE is_public;
CREATE INDEX event_subject ON event (subject_id);
CREATE FUNCTION body(event) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN $1.form_id IS NULL THEN $1.stored_body ELSE body_text($1.form_id, $1.stored_body, ARRAY[
    id_text($1.event_id), id_text($1.merchant_id), id_text($1.subject_id),
    to_char($1.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')]) END;

-- One subscriber's task for an event.
CREATE TABLE event_task (
    event_id uuid NOT NULL REFERENCES event,
    subscriber text NOT NULL,
    due_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    leased_until timestamptz,
    last_error text,
    done_at timestamptz,
    CONSTRAINT event_task_done_is_not_leased CHECK (done_at IS NULL OR leased_until IS NULL),
    PRIMARY KEY (event_id, subscriber)
);
CREATE INDEX event_task_due ON event_task (due_at) WHERE done_at IS NULL;

-- The audit log: a chain of digests, written by audit_append() only. Ids are text, because the digests cover text.
CREATE TABLE audit_entry (
    number bigint PRIMARY KEY CHECK (number > 0),
    entry_id text COLLATE "C" NOT NULL UNIQUE,
    at timestamptz NOT NULL,
    merchant_id text COLLATE "C",
    actor text NOT NULL,
    action text NOT NULL,
    subject_id text COLLATE "C",
    detail text NOT NULL,
    previous_digest bytea NOT NULL CHECK (length(previous_digest) = 32),
    digest bytea NOT NULL CHECK (length(digest) = 32),
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT audit_entry_says_what CHECK (actor <> '' AND action <> '')
);
CREATE INDEX audit_entry_merchant ON audit_entry (merchant_id, number DESC);
CREATE INDEX audit_entry_action ON audit_entry (action, number DESC);
CREATE INDEX audit_entry_subject ON audit_entry (subject_id, number DESC) WHERE subject_id IS NOT NULL;

-- Number and digest of the last deleted entry, where the remaining chain begins.
CREATE TABLE audit_checkpoint (
    is_the_only_one boolean DEFAULT true PRIMARY KEY CHECK (is_the_only_one),
    number bigint NOT NULL CHECK (number > 0),
    digest bytea NOT NULL CHECK (length(digest) = 32)
);

-- Days that the log is kept (0: unlimited), and their minimum so far. `mpesa-gateway migrate` writes them from
-- retention.audit_days; the running role cannot.
CREATE TABLE audit_policy (
    is_the_only_one boolean DEFAULT true PRIMARY KEY CHECK (is_the_only_one),
    keep_days integer NOT NULL CHECK (keep_days >= 0),
    least_days integer NOT NULL CHECK (least_days > 0)
);

-- No constraint compares two times: they may come from clocks of two machines, and a skewed clock must not stop money.
-- Triggers run AFTER the change, WHEN a row differs: valid changes cost nothing.
CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% cannot be changed so: %', TG_ARGV[0], TG_ARGV[1]
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END
$$;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END
$$;

-- Notifies every process of a change to a cached row: `topic:key` on the schema's channel.
CREATE FUNCTION notify_change() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_notify(
        TG_TABLE_SCHEMA || '_changed', TG_ARGV[0] || ':' || id_text((to_jsonb(OLD) ->> TG_ARGV[1])::uuid)
    );
    RETURN NULL;
END
$$;

CREATE FUNCTION refuse_change_but_by_audit_cut() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE(current_setting('mpesa_gateway.audit_cut', true), '') = '' THEN
        RAISE EXCEPTION '% is append-only: only audit_cut() deletes entries', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN COALESCE(NEW, OLD);
END
$$;

-- Fails a statement that wrote another number of rows than expected, because of a concurrent change.
CREATE FUNCTION written_as_expected(written bigint, expected bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF written <> expected THEN
        RAISE EXCEPTION 'wrote % rows instead of %: another session was faster', written, expected
            USING ERRCODE = 'MG001';
    END IF;
    RETURN written;
END
$$;

-- For rows that name another row: an AFTER trigger refuse_another_env('payment', 'payment_id') fails the statement if
-- the row with that id is of another env.
CREATE FUNCTION refuse_another_env() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    named uuid := to_jsonb(NEW) ->> TG_ARGV[1];
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

-- Entries recorded at this time or later are kept.
CREATE FUNCTION audit_kept_since() RETURNS timestamptz LANGUAGE sql AS $$
    SELECT CASE keep_days WHEN 0 THEN '-infinity' ELSE clock_timestamp() - make_interval(days => keep_days) END
    FROM audit_policy
$$;

-- Adds an entry to the chain and returns its number. `Audit.verify` computes the same digest of the entry's JSON.
CREATE FUNCTION audit_write(
    entry_id text, at timestamptz, merchant_id text, actor text, action text, subject_id text, detail text
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    previous record;
    entry_number bigint;
    content text;
BEGIN
    -- A chain has one writer at a time; the lock ends with the transaction.
    PERFORM pg_advisory_xact_lock(6066773084971159533);
    SELECT number, digest INTO previous FROM audit_entry ORDER BY number DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT number, digest INTO previous FROM audit_checkpoint;
    END IF;
    entry_number := COALESCE(previous.number, 0) + 1;
    content := concat('[', entry_number,
        ',', to_json(entry_id),
        ',', to_json(to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        ',', COALESCE(to_json(merchant_id)::text, 'null'),
        ',', to_json(actor),
        ',', to_json(action),
        ',', COALESCE(to_json(subject_id)::text, 'null'),
        ',', to_json(detail), ']');
    INSERT INTO audit_entry (number, entry_id, at, merchant_id, actor, action, subject_id, detail, previous_digest, digest)
    VALUES (entry_number, entry_id, at, merchant_id, actor, action, subject_id, detail,
        COALESCE(previous.digest, decode(repeat('00', 32), 'hex')),
        sha256(COALESCE(previous.digest, decode(repeat('00', 32), 'hex')) || convert_to(content, 'UTF8')));
    RETURN entry_number;
END
$$;

-- The only way for the running role to add an entry. Postgres itself announces cuts.
CREATE FUNCTION audit_append(
    entry_id text, at timestamptz, merchant_id text, actor text, action text, subject_id text, detail text
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF action LIKE 'audit.%' THEN
        RAISE EXCEPTION '% is written by audit_announce_cut() and `mpesa-gateway migrate` only', action
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN audit_write(entry_id, at, merchant_id, actor, action, subject_id, detail);
END
$$;

-- Announces in the log which unbroken range from its beginning has expired; returns the last number of the range, or
-- NULL if there is nothing to announce.
CREATE FUNCTION audit_announce_cut(entry_id text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    days integer;
    before timestamptz;
    young bigint;
    last_old record;
    announced bigint;
BEGIN
    SELECT keep_days INTO STRICT days FROM audit_policy;
    IF days = 0 THEN
        RETURN NULL;
    END IF;
    before := audit_kept_since();
    SELECT number INTO young FROM audit_entry WHERE recorded_at >= before ORDER BY number LIMIT 1;
    SELECT number, digest INTO last_old FROM audit_entry
    WHERE number < COALESCE(young, 9223372036854775807) ORDER BY number DESC LIMIT 1;
    IF last_old.number IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(6066773084971159533);
    SELECT (detail::jsonb ->> 'through')::bigint INTO announced FROM audit_entry
    WHERE action = 'audit.cut' ORDER BY number DESC LIMIT 1;
    IF announced >= last_old.number THEN
        RETURN NULL;
    END IF;
    PERFORM audit_write(entry_id, clock_timestamp(), NULL, 'retention', 'audit.cut', NULL,
        format('{"before":"%s","days":%s,"digest":"%s","through":%s}',
            to_char(before AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), days,
            encode(last_old.digest, 'hex'), last_old.number));
    RETURN last_old.number;
END
$$;

-- The only way to delete entries: the oldest, up to the number that the newest announcement names.
CREATE FUNCTION audit_cut() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    through bigint;
    since timestamptz := audit_kept_since();
    last_gone bigint;
    is_young boolean;
    gone bigint := 0;
BEGIN
    SELECT (detail::jsonb ->> 'through')::bigint INTO through FROM audit_entry
    WHERE action = 'audit.cut' ORDER BY number DESC LIMIT 1;
    -- One session at a time; a second one has nothing to do.
    IF through IS NULL OR NOT pg_try_advisory_xact_lock(hashtextextended('mpesa_gateway.audit_cut', 0)) THEN
        RETURN 0;
    END IF;
    SELECT max(number), bool_or(recorded_at >= since) INTO last_gone, is_young
    FROM (SELECT number, recorded_at FROM audit_entry WHERE number <= through ORDER BY number LIMIT 500) oldest;
    IF last_gone IS NULL OR is_young THEN
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

-- Also for the owner's direct writes: Postgres sets the time, and young entries are neither announced nor deleted. Only
-- the owner and a superuser can disable triggers.
CREATE FUNCTION audit_entry_comes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz := audit_kept_since();
BEGIN
    NEW.recorded_at := clock_timestamp();
    IF NEW.action = 'audit.cut' AND EXISTS (
        SELECT FROM audit_entry
        WHERE number <= (NEW.detail::jsonb ->> 'through')::bigint AND recorded_at >= since
    ) THEN
        RAISE EXCEPTION 'entries younger than retention.audit_days are not deleted'
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION audit_entry_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE(current_setting('mpesa_gateway.audit_cut', true), '') = '' OR OLD.recorded_at >= audit_kept_since() THEN
        RAISE EXCEPTION '% is append-only: only audit_cut() deletes entries', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN OLD;
END
$$;

CREATE TRIGGER merchant_notified AFTER DELETE OR UPDATE OF is_active, envs ON merchant
    FOR EACH ROW
    EXECUTE FUNCTION notify_change('merchant', 'merchant_id');

CREATE TRIGGER api_key_notified AFTER DELETE
    OR UPDATE OF merchant_id, digest, env, scopes, expires_at, revoked_at ON api_key
    FOR EACH ROW
    EXECUTE FUNCTION notify_change('api_key', 'key_id');

CREATE TRIGGER idempotency_key_settled_for_good AFTER UPDATE OF state ON idempotency_key
    FOR EACH ROW WHEN (OLD.state = 'settled' AND NEW.state = 'released')
    EXECUTE FUNCTION refuse_rewriting('a settled key', 'a released key would send a second time');
CREATE TRIGGER idempotency_key_one_subject AFTER UPDATE OF merchant_id, env, digest, operation, fingerprint,
    subject_id ON idempotency_key
    FOR EACH ROW WHEN (OLD.merchant_id IS DISTINCT FROM NEW.merchant_id OR OLD.env IS DISTINCT FROM NEW.env
    OR OLD.digest IS DISTINCT FROM NEW.digest OR OLD.operation IS DISTINCT FROM NEW.operation
    OR OLD.fingerprint IS DISTINCT FROM NEW.fingerprint OR OLD.subject_id IS DISTINCT FROM NEW.subject_id)
    EXECUTE FUNCTION refuse_rewriting('the subject of a key', 'one key, one payment');

CREATE TRIGGER event_not_deleted BEFORE DELETE ON event
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER event_never_emptied BEFORE TRUNCATE ON event
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_change();
-- Without payload, form_id and stored_body: a payer's number can be erased from them on request.
CREATE TRIGGER event_append_only BEFORE UPDATE OF event_id, kind, merchant_id, env, subject_id, occurred_at,
    is_public ON event
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();

CREATE TRIGGER body_form_stays BEFORE UPDATE OR DELETE ON body_form
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER body_form_never_emptied BEFORE TRUNCATE ON body_form
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_change();

CREATE TRIGGER audit_entry_never_emptied BEFORE TRUNCATE ON audit_entry
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_entry_append_only BEFORE UPDATE ON audit_entry
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_entry_comes BEFORE INSERT ON audit_entry
    FOR EACH ROW
    EXECUTE FUNCTION audit_entry_comes();
CREATE TRIGGER audit_entry_not_deleted BEFORE DELETE ON audit_entry
    FOR EACH ROW
    EXECUTE FUNCTION audit_entry_goes();

CREATE TRIGGER audit_checkpoint_not_written BEFORE INSERT OR DELETE OR UPDATE ON audit_checkpoint
    FOR EACH ROW
    EXECUTE FUNCTION refuse_change_but_by_audit_cut();
CREATE TRIGGER audit_checkpoint_never_emptied BEFORE TRUNCATE ON audit_checkpoint
    FOR EACH STATEMENT
    EXECUTE FUNCTION refuse_change();

INSERT INTO audit_policy (keep_days, least_days) VALUES (2557, 2557);

DO $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT oid::regprocedure AS name FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND proname IN (
            'audit_kept_since', 'audit_write', 'audit_append', 'audit_announce_cut', 'audit_cut', 'audit_entry_comes',
            'audit_entry_goes', 'refuse_another_env')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', each.name, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', each.name);
    END LOOP;
END
$$;
