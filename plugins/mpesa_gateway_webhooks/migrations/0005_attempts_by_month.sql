-- The name goes to a table with partitions, of which the table of before is the first. No row is read or written: the
-- rule that was validated says that all of them belong there. Whoever writes `attempt`, the release before as well,
-- goes on doing so. Names of rules and indexes stay what they were.
-- Less than Postgres waits until it looks for a ring of waiters and ends one of them: that shall be us, not a delivery.
SET LOCAL lock_timeout = '500ms';
DO $$
DECLARE
    bound text;
    granted record;
BEGIN
    LOCK TABLE delivery IN SHARE ROW EXCLUSIVE MODE;
    LOCK TABLE attempt IN ACCESS EXCLUSIVE MODE;
    SELECT substring(pg_get_constraintdef(oid) FROM 'att_[0-9a-z]{10}') INTO STRICT bound
    FROM pg_constraint WHERE conrelid = 'attempt'::regclass AND conname = 'attempt_before_months';

    ALTER TABLE attempt RENAME TO attempt_before;
    ALTER INDEX attempt_pkey RENAME TO attempt_before_pkey;
    ALTER INDEX attempt_delivery RENAME TO attempt_before_delivery;

    CREATE TABLE attempt (
        attempt_id text COLLATE "C" NOT NULL,
        delivery_id text COLLATE "C" NOT NULL,
        at timestamptz NOT NULL,
        status integer,
        ms integer,
        error text,
        answer text NOT NULL DEFAULT '',
        CONSTRAINT attempt_pkey PRIMARY KEY (attempt_id),
        CONSTRAINT attempt_delivery_id_fkey FOREIGN KEY (delivery_id) REFERENCES delivery,
        CONSTRAINT attempt_answer_check CHECK (length(answer) <= 1024),
        CONSTRAINT attempt_check CHECK ((status IS NULL) = (error IS NOT NULL)),
        CONSTRAINT attempt_ms_check CHECK (ms >= 0)
    ) PARTITION BY RANGE (attempt_id);
    CREATE INDEX attempt_delivery ON attempt (delivery_id, at, attempt_id);

    -- Whoever may read or write it, such as a role for reports, still may.
    FOR granted IN
        SELECT privilege_type, is_grantable, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS to_whom
        FROM pg_class CROSS JOIN LATERAL aclexplode(relacl)
        WHERE oid = 'attempt_before'::regclass AND grantee <> relowner
    LOOP
        EXECUTE format('GRANT %s ON attempt TO %s %s', granted.privilege_type, granted.to_whom,
            CASE WHEN granted.is_grantable THEN 'WITH GRANT OPTION' ELSE '' END);
    END LOOP;

    EXECUTE format('ALTER TABLE attempt ATTACH PARTITION attempt_before FOR VALUES FROM (MINVALUE) TO (%L)', bound);
    ALTER TABLE attempt_before DROP CONSTRAINT attempt_before_months;
    -- The net: a row for which there is no month yet.
    CREATE TABLE attempt_rest PARTITION OF attempt DEFAULT;
END
$$;
