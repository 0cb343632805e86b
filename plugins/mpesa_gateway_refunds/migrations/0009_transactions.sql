-- The receipts of reversals are transactions. outgoing_receipt keeps those that M-Pesa called reversed and that named no
-- payment.
-- contract: a release before would no longer find what went out in outgoing_receipt; nothing is released yet.
INSERT INTO transaction (transaction_id, env, receiver_id, merchant_id, direction, receipt, amount_cents, occurred_at,
    subject_kind, subject_id, first_source)
SELECT 'txn_' || substr(refund_id, 5), refund.env, receiver_id, refund.merchant_id, 'out', reversal_receipt,
    refund.amount * 100::bigint, refund.completed_at, 'refund', refund_id, 'reversal'
FROM refund JOIN payment USING (payment_id) JOIN shortcode ON shortcode.shortcode_id = payment.shortcode_id
WHERE refund.status = 'completed' AND reversal_receipt IS NOT NULL ORDER BY refund.env, reversal_receipt
ON CONFLICT (env, direction, receipt) DO NOTHING;
DELETE FROM outgoing_receipt WHERE payment_id IS NOT NULL;
