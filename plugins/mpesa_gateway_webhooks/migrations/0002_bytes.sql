-- A delivery that was taken at its first attempt has no row in attempt: last_attempt_at and last_status tell of that
-- attempt, with ms and answer, which is NULL where it was empty.
ALTER TABLE delivery ADD COLUMN ms integer CHECK (ms >= 0);
ALTER TABLE delivery ADD COLUMN answer text;
ALTER TABLE delivery ADD CONSTRAINT delivery_answer_of_its_attempt
    CHECK (answer IS NULL OR (ms IS NOT NULL AND length(answer) BETWEEN 1 AND 1024));
CREATE INDEX delivery_answered ON delivery (delivery_id) WHERE answer IS NOT NULL;

-- Those attempts, with ids of their own: the time of the attempt, the prefix att and the delivery's chance.
CREATE VIEW attempt_of_delivery AS
SELECT (lpad(to_hex(floor(extract(epoch FROM last_attempt_at) * 1000)::bigint), 12, '0') || '0694'
        || right(delivery_id::text, 17))::uuid AS attempt_id,
    delivery_id, last_attempt_at AS at, last_status AS status, ms, COALESCE(answer, '') AS answer, merchant_id, env
FROM delivery WHERE ms IS NOT NULL;

-- Every attempt, in the order of its id.
CREATE VIEW attempt_log AS
SELECT attempt_id, delivery_id, at, status, ms, error, answer FROM attempt
UNION ALL
SELECT attempt_id, delivery_id, at, status, ms, NULL, answer FROM attempt_of_delivery;
