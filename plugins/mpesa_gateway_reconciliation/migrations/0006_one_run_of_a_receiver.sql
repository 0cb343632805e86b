-- One run at a time of a live receiver, which has one owner. A sandbox number is shared by merchants that do not know of
-- each other: there each merchant has its own.
INSERT INTO receiver (receiver_id, env, number, kind, created_at)
SELECT 'rcv_' || substr(md5(env || shortcode), 1, 26), env, shortcode, 'paybill', min(started_at)
FROM reconciliation_run GROUP BY env, shortcode
ON CONFLICT (env, number) DO NOTHING;
ALTER TABLE reconciliation_run ADD COLUMN receiver_id text COLLATE "C" REFERENCES receiver;
UPDATE reconciliation_run SET receiver_id = receiver.receiver_id FROM receiver
WHERE receiver.env = reconciliation_run.env AND receiver.number = reconciliation_run.shortcode;
ALTER TABLE reconciliation_run ADD CONSTRAINT reconciliation_run_receiver_present CHECK (receiver_id IS NOT NULL);
ALTER TABLE reconciliation_run ALTER COLUMN receiver_id SET NOT NULL;
ALTER TABLE reconciliation_run DROP CONSTRAINT reconciliation_run_receiver_present;
DROP INDEX reconciliation_run_one_at_a_time;
CREATE UNIQUE INDEX reconciliation_run_one_at_a_time
    ON reconciliation_run (receiver_id, (CASE env WHEN 'live' THEN '' ELSE merchant_id END)) WHERE status = 'running';
