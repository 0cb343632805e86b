-- A refund of all that is left of a payment is one, however often it is asked for. Of the refunds before this, only one
-- of the whole amount is known to be such.
ALTER TABLE refund
    ADD COLUMN is_whole boolean NOT NULL DEFAULT false,
    -- A refund that was never sent can be sent again under its key: each time is an attempt.
    ADD COLUMN attempt integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
    DROP CONSTRAINT refund_reversal_check,
    DROP CONSTRAINT refund_reversal_fits_status;
UPDATE refund SET is_whole = true WHERE amount = payment_amount AND status <> 'failed';
-- `ready` is committed with the refund, `sending` immediately before the call: what is still `ready` was never sent.
ALTER TABLE refund
    ADD CONSTRAINT refund_reversal_check CHECK (reversal IN ('ready', 'sending', 'unsent', 'refused', 'accepted',
        'unknown', 'verifying', 'ended')),
    ADD CONSTRAINT refund_reversal_fits_status CHECK (CASE status
        WHEN 'pending' THEN reversal IN ('ready', 'sending', 'accepted', 'unknown', 'verifying')
        WHEN 'completed' THEN reversal = 'ended'
        ELSE reversal IN ('ended', 'unsent', 'refused') END);
CREATE UNIQUE INDEX refund_whole ON refund (payment_id) WHERE is_whole AND status <> 'failed';
