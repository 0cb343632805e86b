-- Money that M-Pesa calls reversed before a payment had it pays for nothing, and is no payment's.
ALTER TABLE outgoing_receipt ALTER COLUMN payment_id DROP NOT NULL;

-- A report of another amount that came after the money was counted is settled by no receipt: a person has to look.
ALTER TABLE payment ADD COLUMN is_mismatch_of_paid boolean NOT NULL DEFAULT false;
UPDATE payment SET is_mismatch_of_paid = true
WHERE mismatch = 'amount' AND completed_at IS NOT NULL AND completed_at < (
    SELECT min(at) FROM payment_step WHERE payment_step.payment_id = payment.payment_id AND kind = 'mismatched');
