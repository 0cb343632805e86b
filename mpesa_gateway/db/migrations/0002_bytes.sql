-- A fingerprint is the first 16 bytes of a SHA-256.
ALTER TABLE idempotency_key DROP CONSTRAINT idempotency_key_fingerprint_check;
ALTER TABLE idempotency_key DISABLE TRIGGER idempotency_key_one_subject;
UPDATE idempotency_key SET fingerprint = substr(fingerprint, 1, 16);
ALTER TABLE idempotency_key ENABLE TRIGGER idempotency_key_one_subject;
ALTER TABLE idempotency_key ADD CONSTRAINT idempotency_key_fingerprint_check CHECK (length(fingerprint) = 16);
