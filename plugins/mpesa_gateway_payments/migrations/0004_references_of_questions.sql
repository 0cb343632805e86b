ALTER TABLE status_check ADD COLUMN reference text COLLATE "C";
