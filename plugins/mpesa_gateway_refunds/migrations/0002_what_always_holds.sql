ALTER TABLE refund
    ADD CONSTRAINT refund_asked_check CHECK (asked >= 0),
    ADD CONSTRAINT refund_receipt_check CHECK (receipt ~ '^[A-Z0-9]{6,20}$' AND reversal_receipt ~ '^[A-Z0-9]{6,20}$'),
    ADD CONSTRAINT refund_reversal_fits_status CHECK (CASE status
        WHEN 'pending' THEN reversal IN ('sending', 'accepted', 'unknown', 'verifying')
        WHEN 'completed' THEN reversal = 'ended'
        ELSE reversal IN ('ended', 'unsent', 'refused') END),
    ADD CONSTRAINT refund_outcome_fits_status CHECK (CASE status
        WHEN 'pending' THEN outcome IS NULL
        WHEN 'completed' THEN outcome IN ('reversed', 'already_reversed')
        ELSE outcome NOT IN ('reversed', 'already_reversed') END),
    ADD CONSTRAINT refund_attention_while_pending CHECK (attention IS NULL OR status = 'pending'),
    ADD CONSTRAINT refund_reversal_receipt_is_of_money CHECK (reversal_receipt IS NULL OR status = 'completed');

CREATE TRIGGER refund_moves AFTER UPDATE OF status ON refund
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND NOT (
        OLD.status = 'pending'
        OR (OLD.status = 'failed' AND NEW.status = 'completed')
        OR (OLD.status = 'failed' AND NEW.status = 'pending' AND OLD.reversal = 'unsent')))
    EXECUTE FUNCTION refuse_rewriting('the status', 'what went back stays gone, and only what was never sent is sent again');
CREATE TRIGGER refund_asks_for_the_same AFTER UPDATE OF refund_id, merchant_id, payment_id, env, amount,
    payment_amount ON refund
    FOR EACH ROW WHEN (
        (OLD.refund_id, OLD.merchant_id, OLD.payment_id, OLD.env, OLD.payment_amount)
            IS DISTINCT FROM (NEW.refund_id, NEW.merchant_id, NEW.payment_id, NEW.env, NEW.payment_amount)
        OR (OLD.amount <> NEW.amount AND OLD.reversal <> 'unsent'))
    EXECUTE FUNCTION refuse_rewriting('what was asked for', 'make another refund');
CREATE TRIGGER refund_not_deleted BEFORE DELETE ON refund FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER refund_never_emptied BEFORE TRUNCATE ON refund FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
