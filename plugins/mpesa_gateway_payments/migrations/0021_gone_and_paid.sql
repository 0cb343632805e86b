-- A receipt that M-Pesa calls reversed and that named no payment at that time (payment_id is NULL) may become a payment's
-- all the same: by a callback, or by a statement line that was settled at the same moment. Then the payment is reversed.
-- is_part: M-Pesa called it reversed in part.
ALTER TABLE outgoing_receipt ADD COLUMN is_part boolean NOT NULL DEFAULT false;
CREATE INDEX outgoing_receipt_gone ON outgoing_receipt (noted_at) WHERE payment_id IS NULL;
