-- Of a body that was too large to be taken: its length as announced or read, how much of it was read, and that much's
-- SHA-256. What is kept of it is its beginning.
ALTER TABLE refused_callback
    ADD COLUMN cut_length bigint,
    ADD COLUMN cut_read bigint,
    ADD COLUMN cut_sha256 bytea,
    ADD CONSTRAINT refused_callback_cut_is_whole CHECK (num_nulls(cut_length, cut_read, cut_sha256) IN (0, 3)),
    ADD CONSTRAINT refused_callback_cut_counts
        CHECK (cut_read >= 0 AND cut_length >= cut_read AND length(cut_sha256) = 32);
-- What came to an address of ours or from Safaricom's, and could not be read.
CREATE INDEX refused_callback_unread ON refused_callback (at DESC, refused_id DESC)
    WHERE is_trusted AND callback_id IS NULL AND reason IN ('size', 'shape', 'doubled');
