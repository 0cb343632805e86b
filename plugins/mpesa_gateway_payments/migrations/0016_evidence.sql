-- Whether the failure of a payment was M-Pesa's last word. Where it was not, money may still be matched to the payment, and
-- M-Pesa's own answer to an STK query completes it. Codes: daraja.md, "Final?".
ALTER TABLE payment
    ADD COLUMN outcome_is_final boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT payment_due_while_open,
    -- An expired payment is asked about further: its merchant was told, and M-Pesa may still know better.
    ADD CONSTRAINT payment_due_while_open CHECK (
        status = 'pending' OR due_at IS NULL OR claim IS NOT NULL
        OR (status = 'failed' AND failure_reason = 'expired' AND checkout_request_id IS NOT NULL));
UPDATE payment SET outcome_is_final = true WHERE status = 'failed' AND (
    charge IN ('refused', 'released')
    OR EXISTS (SELECT 1 FROM payment_step WHERE payment_step.payment_id = payment.payment_id AND kind = 'failed'
        AND (cause = 'status_query' OR (cause = 'callback' AND payment_step.result_code IN ('1', '2', '3', '4', '8',
            '17', '1025', '1001', '1031', '1032', '2001', '2028', 'SFC_IC0003', '8006')))));

DROP TRIGGER payment_moves ON payment;
-- states.py has the same moves; tests/plugins/payments/test_constraints.py compares the two.
CREATE TRIGGER payment_moves AFTER UPDATE OF status ON payment
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND NOT (
        (OLD.status = 'pending' AND NEW.status IN ('completed', 'failed'))
        OR (OLD.status = 'failed' AND NEW.status = 'completed' AND (NEW.receipt IS NOT NULL OR NOT OLD.outcome_is_final))
        OR (OLD.status IN ('completed', 'partially_reversed') AND NEW.status IN ('reversed', 'partially_reversed'))))
    EXECUTE FUNCTION refuse_rewriting('the status', 'states.py has no such move');

-- Receipts of money that went out of our own receivers: they pay for nothing.
CREATE TABLE outgoing_receipt (
    env text NOT NULL CHECK (env IN ('sandbox', 'live')),
    receipt text COLLATE "C" NOT NULL CHECK (receipt ~ '^[A-Z0-9]{6,20}$'),
    payment_id text COLLATE "C" NOT NULL REFERENCES payment,
    noted_at timestamptz NOT NULL,
    PRIMARY KEY (env, receipt)
);
