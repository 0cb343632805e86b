-- What operators look for: what was done in one way, and what was done to one thing.
CREATE INDEX audit_entry_action ON audit_entry (action, number DESC);
CREATE INDEX audit_entry_subject ON audit_entry (subject_id, number DESC) WHERE subject_id IS NOT NULL;
