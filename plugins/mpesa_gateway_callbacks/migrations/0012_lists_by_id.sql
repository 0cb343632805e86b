-- Ids begin with their time, so every list is in the order of its ids. The list of refused callbacks has the primary key.
DROP INDEX callback_subject;
DROP INDEX callback_handle;
DROP INDEX callback_newest;
DROP INDEX callback_unapplied;
DROP INDEX refused_callback_at;
DROP INDEX refused_callback_merchant;
DROP INDEX refused_callback_of_strangers;
DROP INDEX refused_callback_unread;
CREATE INDEX callback_subject ON callback (subject_id, callback_id) WHERE subject_id <> '';
CREATE INDEX callback_handle ON callback (handle, callback_id) WHERE handle <> '';
CREATE INDEX callback_newest ON callback (env, callback_id);
CREATE INDEX callback_unapplied ON callback (env, callback_id) WHERE verdict <> 'applied';
CREATE INDEX refused_callback_of_strangers ON refused_callback (refused_id) WHERE NOT is_trusted;
CREATE INDEX refused_callback_unread ON refused_callback (refused_id)
    WHERE is_trusted AND callback_id IS NULL AND reason IN ('size', 'shape', 'doubled', 'kind');
