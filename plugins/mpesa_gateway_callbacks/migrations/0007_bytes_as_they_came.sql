-- A body as it came, where its text does not give its bytes back: NULL for almost every callback.
ALTER TABLE callback ADD COLUMN body_bytes bytea;
-- A body at a valid token, or from a listed address, is kept whole and is not pushed out by strangers' refusals.
ALTER TABLE refused_callback
    DROP CONSTRAINT refused_callback_original_check,
    ADD COLUMN body_bytes bytea,
    ADD COLUMN is_trusted boolean NOT NULL DEFAULT false;
CREATE INDEX refused_callback_of_strangers ON refused_callback (at DESC, refused_id DESC) WHERE NOT is_trusted;
