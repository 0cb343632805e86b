-- A CheckoutRequestID, ws_CO_DDMMYYYYHHMMSS…, with the year before the month and the month before the day: an index in
-- that order grows at its end. The characters of every other text change their places likewise, so that different texts
-- stay different.
CREATE FUNCTION handle_by_time(handle text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT substr(handle, 11, 4) || substr(handle, 9, 2) || substr(handle, 7, 2) || substr(handle, 15) || left(handle, 6)
$$;
DROP INDEX payment_checkout_request_id;
CREATE UNIQUE INDEX payment_checkout_request_id ON payment (handle_by_time(checkout_request_id), env)
    WHERE checkout_request_id IS NOT NULL;

-- result_desc is NULL where result_code is 0 and M-Pesa's text is the ordinary one.
UPDATE payment SET result_desc = NULL
WHERE result_code = '0' AND result_desc = 'The service request is processed successfully.';
CREATE OR REPLACE VIEW payment_timeline AS
SELECT payment_id, created_at AS at, 'requested' AS kind, 'merchant' AS cause, NULL AS result_code, '' AS detail,
    0 AS rank, 0::bigint AS number
FROM payment
UNION ALL
SELECT payment_id, accepted_at, 'sent', 'ack', '0', '', 1, 0 FROM payment WHERE accepted_at IS NOT NULL
UNION ALL
SELECT payment_id, at, kind, cause, result_code, detail, CASE WHEN kind IN ('receipt_learnt', 'refund_asked',
    'refund_failed', 'partially_reversed', 'reversed', 'reversal_seen', 'looked_after') THEN 4 ELSE 2 END, number
FROM payment_step WHERE kind <> 'requested'
UNION ALL
SELECT payment_id, completed_at, 'completed', completed_by, result_code, COALESCE(result_desc, CASE
    WHEN result_code = '0' THEN 'The service request is processed successfully.' ELSE '' END), 3, 0
FROM payment WHERE completed_by IS NOT NULL;
