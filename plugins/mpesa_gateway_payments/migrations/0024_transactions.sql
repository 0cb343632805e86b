-- Money that payments have, and money that contradicts them, as transactions. The release before kept it in payment only.
INSERT INTO transaction (transaction_id, env, receiver_id, merchant_id, direction, receipt, amount_cents, payer, occurred_at,
    subject_kind, subject_id, first_source)
SELECT 'txn_' || substr(payment_id, 5), payment.env, receiver_id, payment.merchant_id, 'in', receipt, amount * 100::bigint,
    CASE WHEN received_phone IS NOT NULL AND mismatch = 'phone' THEN received_phone WHEN erased_at IS NULL THEN phone END,
    completed_at, 'payment', payment_id,
    CASE completed_by WHEN 'statement' THEN 'pull' WHEN 'status_query' THEN 'status' ELSE 'stk' END
FROM payment JOIN shortcode USING (shortcode_id)
WHERE receipt IS NOT NULL ORDER BY payment.env, receipt;

INSERT INTO transaction AS known (transaction_id, env, receiver_id, merchant_id, direction, receipt, amount_cents, payer,
    occurred_at, conflict_id, first_source)
SELECT DISTINCT ON (payment.env, received_receipt)
    'txn_' || substr(payment_id, 5, 10) || substr(md5(payment_id || received_receipt), 1, 16), payment.env, receiver_id,
    payment.merchant_id, 'in', received_receipt,
    CASE WHEN received_amount ~ '^[0-9]{1,12}[.]00$' THEN split_part(received_amount, '.', 1)::bigint * 100 END,
    received_phone, payment.updated_at, payment_id, 'stk'
FROM payment JOIN shortcode USING (shortcode_id)
WHERE received_receipt ~ '^[A-Z0-9]{6,20}$' AND received_receipt IS DISTINCT FROM receipt
ORDER BY payment.env, received_receipt, payment_id
ON CONFLICT (env, direction, receipt) DO UPDATE SET conflict_id = COALESCE(known.conflict_id, excluded.conflict_id);
