-- contract: the release before cuts the audit log by audit_cut(integer), which goes; nothing is released yet.
-- What the role that runs the gateway may not do itself, the role that owns these tables does in its place (ADR 50, 51).
-- Each such function finds our tables only: pg_temp, where any role can put a table of the same name, comes last.

-- The audit log. Its times for letting go are those of Postgres' own clock.
ALTER TABLE audit_entry ADD COLUMN recorded_at timestamptz;
DROP TRIGGER audit_entry_append_only ON audit_entry;
UPDATE audit_entry SET recorded_at = at;
CREATE TRIGGER audit_entry_append_only BEFORE UPDATE ON audit_entry FOR EACH ROW EXECUTE FUNCTION refuse_change();
ALTER TABLE audit_entry ALTER COLUMN recorded_at SET DEFAULT clock_timestamp();
ALTER TABLE audit_entry ALTER COLUMN recorded_at SET NOT NULL;

-- For how many days the log is kept, 0 for ever, and the least that it ever was: written by `migrate` from
-- retention.audit_days, and by no role that runs the gateway.
CREATE TABLE audit_policy (
    is_the_only_one boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_one),
    keep_days integer NOT NULL CHECK (keep_days >= 0),
    least_days integer NOT NULL CHECK (least_days > 0)
);
INSERT INTO audit_policy (keep_days, least_days) VALUES (2557, 2557);

-- What was recorded at this moment or later is kept.
CREATE FUNCTION audit_kept_since() RETURNS timestamptz LANGUAGE sql AS $$
    SELECT CASE keep_days WHEN 0 THEN '-infinity' ELSE clock_timestamp() - make_interval(days => keep_days) END
    FROM audit_policy
$$;

-- Adds an entry to the chain, and gives its number. The digest is that of the entry's JSON, as `Audit.verify` makes it.
CREATE FUNCTION audit_write(
    entry_id text, at timestamptz, merchant_id text, actor text, action text, subject_id text, detail text
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    previous record;
    entry_number bigint;
    content text;
BEGIN
    -- One chain means one writer at a time; the lock goes with the transaction.
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

-- The one way in which the role that runs the gateway adds an entry. What is let go, Postgres itself says.
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

-- Says in the log which unbroken stretch from its beginning has been kept long enough; gives the last number of it, and
-- NULL where there is nothing new to say.
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

-- Lets the oldest entries go that were announced, 500 at most; gives how many. It asks nobody for how long to keep them.
DROP FUNCTION audit_cut(integer);
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
    -- One at a time; whoever comes second finds nothing to do.
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

-- Whoever writes the table itself, as its owner can: the time is Postgres', and what is young is neither announced nor
-- let go. An owner can switch triggers off, and so can a superuser; nobody else can.
CREATE FUNCTION audit_entry_comes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz := audit_kept_since();
BEGIN
    NEW.recorded_at := clock_timestamp();
    IF NEW.action = 'audit.cut' AND EXISTS (
        SELECT FROM audit_entry
        WHERE number <= (NEW.detail::jsonb ->> 'through')::bigint AND recorded_at >= since
    ) THEN
        RAISE EXCEPTION 'what was recorded within retention.audit_days is not let go'
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER audit_entry_comes BEFORE INSERT ON audit_entry FOR EACH ROW EXECUTE FUNCTION audit_entry_comes();
CREATE FUNCTION audit_entry_goes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF COALESCE(current_setting('mpesa_gateway.audit_cut', true), '') = '' OR OLD.recorded_at >= audit_kept_since() THEN
        RAISE EXCEPTION '% is append-only: only audit_cut() lets its beginning go', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
    END IF;
    RETURN OLD;
END
$$;
DROP TRIGGER audit_entry_not_deleted ON audit_entry;
CREATE TRIGGER audit_entry_not_deleted BEFORE DELETE ON audit_entry
    FOR EACH ROW EXECUTE FUNCTION audit_entry_goes();

-- Tables by month (ADR 33): the partitions that come and go at run time belong to the owner of their table.
CREATE FUNCTION month_bounds(of text)
RETURNS TABLE (part text, begins text, ends text, is_rest boolean) LANGUAGE sql STABLE AS $$
    SELECT child.relname::text,
        substring(pg_get_expr(child.relpartbound, child.oid) FROM $r$FROM \('([^']*)'\)$r$) COLLATE "C",
        substring(pg_get_expr(child.relpartbound, child.oid) FROM $r$TO \('([^']*)'\)$r$) COLLATE "C",
        pg_get_expr(child.relpartbound, child.oid) = 'DEFAULT'
    FROM pg_inherits
    JOIN pg_class child ON child.oid = inhrelid
    JOIN pg_class parent ON parent.oid = inhparent
    WHERE parent.relname = of AND parent.relnamespace = current_schema()::regnamespace AND parent.relkind = 'p'
$$;

-- Makes the partition of the month of a moment; gives its name, and NULL where there is one, or where more than `few`
-- of its rows are in the partition for the rest. The caller sets a lock_timeout.
CREATE FUNCTION make_month(of text, prefix text, moment timestamptz, few integer) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    month timestamptz := date_trunc('month', moment, 'UTC');
    part text := format('%s_%s', of, to_char(month AT TIME ZONE 'UTC', 'YYYY_MM'));
    key text;
    first text;
    last text;
    rest text;
    early bigint;
BEGIN
    SELECT attname INTO key FROM pg_partitioned_table
    JOIN pg_class ON pg_class.oid = partrelid
    JOIN pg_attribute ON attrelid = partrelid AND attnum = partattrs[0]
    WHERE relname = of AND relnamespace = current_schema()::regnamespace AND partstrat = 'r' AND partnatts = 1;
    IF key IS NULL OR prefix !~ '^[a-z]{2,8}$' THEN
        RAISE EXCEPTION '% is no table by month', of USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- What the identifiers of a month begin with, as `Ids.least` makes it.
    SELECT min(bound), max(bound) INTO first, last FROM (
        SELECT (prefix || '_' || string_agg(
            substr('0123456789abcdefghjkmnpqrstvwxyz', ((milliseconds >> (5 * place)) & 31)::integer + 1, 1), ''
            ORDER BY place DESC)) COLLATE "C" AS bound
        FROM (VALUES ((extract(epoch FROM month) * 1000)::bigint),
            ((extract(epoch FROM (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC') * 1000)::bigint)
        ) AS each (milliseconds), generate_series(0, 9) AS place GROUP BY milliseconds
    ) AS bounds;
    -- Nobody else makes partitions now, and everybody writes on.
    EXECUTE format('LOCK TABLE ONLY %I IN SHARE UPDATE EXCLUSIVE MODE', of);
    IF EXISTS (
        SELECT FROM month_bounds(of)
        WHERE NOT is_rest AND (begins IS NULL OR begins <= first) AND (ends IS NULL OR first < ends)
    ) THEN
        RETURN NULL;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, of);
    FOR rest IN SELECT month_bounds.part FROM month_bounds(of) WHERE is_rest LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', rest);
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %I WHERE %I >= $1 AND %I < $2 LIMIT $3 + 1) AS early', rest, key, key)
            INTO early USING first, last, few;
        IF early > few THEN
            EXECUTE format('DROP TABLE %I', part);
            RETURN NULL;
        END IF;
        EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= $1 AND %I < $2 RETURNING *) INSERT INTO %I SELECT * FROM moved',
            rest, key, key, part) USING first, last;
    END LOOP;
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', of, part, first, last);
    RETURN part;
END
$$;

-- Drops one partition, and never that for the rest; false where it is none. Its rows can be deleted by the role that
-- asks for it, too. The caller sets a lock_timeout.
CREATE FUNCTION drop_month(of text, gone text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM month_bounds(of) WHERE part = gone AND NOT is_rest) THEN
        RETURN false;
    END IF;
    -- Not CONCURRENTLY, which Postgres refuses beside a partition for the rest. The files go after the locks.
    EXECUTE format('DROP TABLE IF EXISTS %I', gone);
    RETURN true;
END
$$;

DO $$
DECLARE
    each record;
BEGIN
    FOR each IN
        SELECT oid::regprocedure AS name FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND proname IN (
            'audit_kept_since', 'audit_write', 'audit_append', 'audit_announce_cut', 'audit_cut', 'audit_entry_comes',
            'audit_entry_goes', 'month_bounds', 'make_month', 'drop_month', 'refuse_another_env')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', each.name, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', each.name);
    END LOOP;
END
$$;
