-- What a refused callback said, as it came, so that it can go through the pipeline again once somebody has judged it.
ALTER TABLE refused_callback
    ADD COLUMN env text CHECK (env IN ('sandbox', 'live')),
    ADD COLUMN original text CHECK (length(original) <= 16384),
    ADD COLUMN signature text,
    ADD COLUMN replayed_at timestamptz,
    ADD COLUMN callback_id text COLLATE "C" REFERENCES callback;
CREATE INDEX callback_unapplied ON callback (received_at DESC, callback_id DESC) WHERE verdict <> 'applied';
