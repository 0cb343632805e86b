-- Operators could do everything until now, so those that there are stay able to.
ALTER TABLE ops_operator ADD COLUMN role text NOT NULL DEFAULT 'admin' CHECK (role IN ('viewer', 'operator', 'admin'));
ALTER TABLE ops_operator ALTER COLUMN role DROP DEFAULT;

-- What an act came to, told on the page that follows, once.
CREATE TABLE ops_note (
    note_id text COLLATE "C" PRIMARY KEY,
    owner text COLLATE "C" NOT NULL,
    sealed text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX ops_note_created ON ops_note (created_at);
