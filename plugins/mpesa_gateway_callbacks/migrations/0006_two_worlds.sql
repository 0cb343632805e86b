-- Operators look at one env at a time; a callback without a token belongs to none.
CREATE INDEX callback_newest ON callback (env, received_at DESC, callback_id DESC);
DROP INDEX callback_received;
