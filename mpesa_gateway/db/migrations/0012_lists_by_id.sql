-- Ids begin with their time, so every list is in the order of its ids.
DROP INDEX event_newest;
DROP INDEX event_newest_of_kind;
DROP INDEX event_subject;
DROP INDEX api_key_merchant;
CREATE INDEX event_newest ON event (merchant_id, env, event_id) WHERE is_public;
CREATE INDEX event_newest_of_kind ON event (merchant_id, env, kind, event_id) WHERE is_public;
CREATE INDEX event_subject ON event (subject_id);
CREATE INDEX api_key_merchant ON api_key (merchant_id, env);
