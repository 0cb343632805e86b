-- A payer's number is erased on request, from payments that have ended: who paid goes, what was paid stays.
ALTER TABLE payment
    ADD COLUMN erased_at timestamptz,
    DROP CONSTRAINT payment_phone_check,
    ADD CONSTRAINT payment_phone_check CHECK (
        CASE WHEN erased_at IS NULL THEN phone ~ '^254[17][0-9]{8}$' ELSE phone = 'erased' END),
    -- One that had failed may still be claimed to be paid, and is confirmed then, without its number.
    ADD CONSTRAINT payment_erased_when_ended CHECK (erased_at IS NULL OR status <> 'pending');
CREATE INDEX payment_received_phone ON payment (merchant_id, received_phone) WHERE received_phone IS NOT NULL;
CREATE TRIGGER payment_erased_for_good AFTER UPDATE OF phone, erased_at ON payment
    FOR EACH ROW WHEN (OLD.erased_at IS NOT NULL AND (OLD.phone, OLD.erased_at) IS DISTINCT FROM (NEW.phone, NEW.erased_at))
    EXECUTE FUNCTION refuse_rewriting('what was erased', 'it does not come back');
