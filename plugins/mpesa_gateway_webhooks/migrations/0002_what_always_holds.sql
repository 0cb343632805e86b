ALTER TABLE webhook_endpoint
    ADD CONSTRAINT webhook_endpoint_url_is_web CHECK (url ~ '^https?://'),
    ADD CONSTRAINT webhook_endpoint_secrets_are_sealed CHECK (
        secret LIKE 'v1.%' AND COALESCE(previous_secret LIKE 'v1.%', true));
ALTER TABLE delivery
    DROP CONSTRAINT delivery_check1,
    ADD CONSTRAINT delivery_was_taken CHECK (
        (status = 'delivered') = (delivered_at IS NOT NULL) AND (status <> 'delivered' OR last_status BETWEEN 200 AND 299)),
    ADD CONSTRAINT delivery_leased_while_pending CHECK (leased_until IS NULL OR status = 'pending');
ALTER TABLE attempt
    ADD CONSTRAINT attempt_ms_check CHECK (ms >= 0);
