-- Payments keep the receipts of money that went out. They get a reversal's when it is done; these were done before.
INSERT INTO outgoing_receipt (env, receipt, payment_id, noted_at)
SELECT env, reversal_receipt, payment_id, completed_at FROM refund
WHERE status = 'completed' AND reversal_receipt IS NOT NULL ORDER BY env, reversal_receipt
ON CONFLICT (env, receipt) DO NOTHING;
