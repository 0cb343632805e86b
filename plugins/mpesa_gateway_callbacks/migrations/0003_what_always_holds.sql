ALTER TABLE callback
    ADD CONSTRAINT callback_counts_check CHECK (repeats >= 0 AND tries >= 0),
    ADD CONSTRAINT callback_env_is_its_tokens CHECK ((subject_id = '') = (env IS NULL)),
    ADD CONSTRAINT callback_merchant_is_its_tokens CHECK (subject_id <> '' OR merchant_id = '');
ALTER TABLE refused_callback
    ADD CONSTRAINT refused_callback_kind_check
        CHECK (kind IN ('stk', 'status', 'status-timeout', 'reversal', 'reversal-timeout', 'pull')),
    ADD CONSTRAINT refused_callback_says_why CHECK (reason <> '');
