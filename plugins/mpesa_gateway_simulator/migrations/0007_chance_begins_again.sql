-- A reset begins chance anew. Only a sequence's owner restarts it, and the role that runs the simulator is another one.
CREATE FUNCTION sim_chance_begins_again() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    ALTER SEQUENCE sim_chance RESTART;
    ALTER SEQUENCE sim_handle RESTART;
    PERFORM setval('sim_receipt', 1 + floor(random() * 78364164095)::bigint);
END
$$;
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION sim_chance_begins_again() SET search_path = %I, pg_temp', current_schema());
END
$$;
