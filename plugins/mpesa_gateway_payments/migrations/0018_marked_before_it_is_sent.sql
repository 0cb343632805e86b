-- `ready` is committed with the payment, `sending` immediately before its push: what is still `ready` was never sent.
-- The default stays `sending`, so that a process of an older release claims nothing that it cannot know.
ALTER TABLE payment DROP CONSTRAINT payment_charge_check, DROP CONSTRAINT payment_failure_reason_check;
ALTER TABLE payment
    ADD COLUMN push_attempt integer NOT NULL DEFAULT 1 CHECK (push_attempt > 0),
    ADD CONSTRAINT payment_charge_check
        CHECK (charge IN ('ready', 'sending', 'released', 'accepted', 'refused', 'unknown')),
    ADD CONSTRAINT payment_failure_reason_check CHECK (failure_reason IN ('insufficient_funds', 'cancelled_by_user',
        'wrong_pin', 'timeout', 'unreachable', 'limit_exceeded', 'duplicate_in_progress', 'rejected_by_provider',
        'expired', 'not_sent', 'other'));
