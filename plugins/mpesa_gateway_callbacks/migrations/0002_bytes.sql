-- A fingerprint is the first 16 bytes of a SHA-256.
ALTER TABLE callback DROP CONSTRAINT callback_fingerprint_check;
UPDATE callback SET fingerprint = substr(fingerprint, 1, 16);
ALTER TABLE callback ADD CONSTRAINT callback_fingerprint_check CHECK (length(fingerprint) = 16);

-- A callback about something of ours is found by its subject. By its handle are found those without a subject, and
-- those that wait.
DROP INDEX callback_handle;
CREATE INDEX callback_handle ON callback (handle, callback_id) WHERE subject_id IS NULL AND handle <> '';
CREATE INDEX callback_waiting_handle ON callback (handle, callback_id) WHERE verdict <> 'applied' AND handle <> '';
