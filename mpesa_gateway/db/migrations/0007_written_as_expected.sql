-- Ends a statement that found other rows than the process which sent it had looked at: somebody was faster.
CREATE FUNCTION written_as_expected(written bigint, expected bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF written <> expected THEN
        RAISE EXCEPTION 'wrote % rows instead of %: somebody else was faster', written, expected
            USING ERRCODE = 'MG001';
    END IF;
    RETURN written;
END
$$;
