ALTER TABLE provider_credentials
    ADD CONSTRAINT provider_credentials_are_sealed CHECK (consumer_key LIKE 'v1.%' AND consumer_secret LIKE 'v1.%'
        AND passkey LIKE 'v1.%' AND COALESCE(security_credential LIKE 'v1.%', true)),
    ADD CONSTRAINT provider_credentials_initiator_is_whole CHECK ((initiator IS NULL) = (security_credential IS NULL)),
    ADD CONSTRAINT provider_credentials_live_is_whole CHECK (
        env <> 'live' OR num_nulls(initiator, security_credential, nominated_number) = 0);
