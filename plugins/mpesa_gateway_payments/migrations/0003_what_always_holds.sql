ALTER TABLE payment
    ADD CONSTRAINT payment_shortcode_check CHECK (shortcode ~ '^[0-9]{5,7}$'),
    ADD CONSTRAINT payment_asked_check CHECK (asked >= 0),
    ADD CONSTRAINT payment_receipt_check CHECK (receipt ~ '^[A-Z0-9]{6,20}$'),
    ADD CONSTRAINT payment_received_something_else CHECK (
        mismatch IS NOT NULL OR num_nonnulls(received_amount, received_receipt, received_phone) = 0),
    ADD CONSTRAINT payment_accepted_has_its_ids CHECK (
        charge <> 'accepted' OR num_nulls(merchant_request_id, checkout_request_id) = 0),
    ADD CONSTRAINT payment_claim_is_being_asked_about CHECK (
        claim IS NULL OR (jsonb_typeof(claim) = 'object' AND status IN ('pending', 'failed') AND due_at IS NOT NULL));

-- states.py has the same moves; tests/plugins/payments/test_constraints.py compares the two.
CREATE TRIGGER payment_moves AFTER UPDATE OF status ON payment
    FOR EACH ROW WHEN (OLD.status <> NEW.status AND NOT (
        (OLD.status = 'pending' AND NEW.status IN ('completed', 'failed'))
        OR (OLD.status = 'failed' AND NEW.status = 'completed' AND NEW.receipt IS NOT NULL)
        OR (OLD.status IN ('completed', 'partially_reversed') AND NEW.status IN ('reversed', 'partially_reversed'))))
    EXECUTE FUNCTION refuse_rewriting('the status', 'states.py has no such move');
CREATE TRIGGER payment_asks_for_the_same AFTER UPDATE OF merchant_id, env, provider, shortcode, amount, currency,
    idempotency_key ON payment
    FOR EACH ROW WHEN (
        (OLD.merchant_id, OLD.env, OLD.provider, OLD.shortcode, OLD.amount, OLD.currency, OLD.idempotency_key)
        IS DISTINCT FROM
        (NEW.merchant_id, NEW.env, NEW.provider, NEW.shortcode, NEW.amount, NEW.currency, NEW.idempotency_key))
    EXECUTE FUNCTION refuse_rewriting('what was asked for', 'make another payment');
CREATE TRIGGER payment_proof_is_kept AFTER UPDATE OF receipt, completed_at, refunded ON payment
    FOR EACH ROW WHEN (
        (OLD.receipt IS NOT NULL AND NEW.receipt IS DISTINCT FROM OLD.receipt)
        OR (OLD.completed_at IS NOT NULL AND NEW.completed_at IS DISTINCT FROM OLD.completed_at)
        OR NEW.refunded < OLD.refunded)
    EXECUTE FUNCTION refuse_rewriting('the proof of money', 'a receipt is set once, and what went back stays gone');
CREATE TRIGGER payment_not_deleted BEFORE DELETE ON payment FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_never_emptied BEFORE TRUNCATE ON payment FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A payment fails once, is completed once and is reversed in full once: its timeline says so once.
CREATE UNIQUE INDEX payment_step_change ON payment_step (payment_id,
        (CASE WHEN kind IN ('refused', 'expired') THEN 'failed' ELSE kind END))
    WHERE kind IN ('completed', 'failed', 'refused', 'expired', 'reversed');
-- The detail is left out: a payer's number can be erased from it on request.
CREATE TRIGGER payment_step_append_only BEFORE UPDATE OF payment_id, at, kind, cause, result_code ON payment_step
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_step_not_deleted BEFORE DELETE ON payment_step FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_step_never_emptied BEFORE TRUNCATE ON payment_step
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
