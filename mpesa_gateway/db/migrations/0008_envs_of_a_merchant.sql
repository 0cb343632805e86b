-- contract: a merchant has credentials for the sandbox, for live, or for both; nothing is released yet.
-- The plugin that keeps credentials writes the column in the transactions that change them.
ALTER TABLE merchant ADD COLUMN envs text[] NOT NULL DEFAULT '{}' CHECK (envs <@ '{live,sandbox}');
UPDATE merchant SET envs = ARRAY[env];
DROP INDEX merchant_live;
ALTER TABLE merchant DROP COLUMN env;
CREATE INDEX merchant_live ON merchant (merchant_id) WHERE 'live' = ANY(envs);
