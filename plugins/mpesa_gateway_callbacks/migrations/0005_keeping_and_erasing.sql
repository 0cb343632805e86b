-- A callback is let go once no refused one names it as what came of it.
CREATE INDEX refused_callback_became ON refused_callback (callback_id) WHERE callback_id IS NOT NULL;
CREATE INDEX refused_callback_subject ON refused_callback (subject_id) WHERE subject_id IS NOT NULL;
