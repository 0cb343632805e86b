-- Attempts get a partition for each month (ADR 33). Those of before become the first one, up to the month after next:
-- time enough to apply the next two files before a row comes that this rule would refuse.
DO $$
DECLARE
    months_begin timestamptz := (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '2 months') AT TIME ZONE 'UTC';
    milliseconds bigint := extract(epoch FROM months_begin) * 1000;
    bound text;
BEGIN
    -- What the identifiers of that month begin with, as `Ids.least` makes it.
    SELECT 'att_' || string_agg(
        substr('0123456789abcdefghjkmnpqrstvwxyz', ((milliseconds >> (5 * place)) & 31)::integer + 1, 1), ''
        ORDER BY place DESC)
    INTO bound FROM generate_series(0, 9) AS place;
    EXECUTE format('ALTER TABLE attempt ADD CONSTRAINT attempt_before_months CHECK (attempt_id < %L) NOT VALID', bound);
END
$$;
