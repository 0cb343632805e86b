-- Accepted callbacks. callback.body is the text as it came; body_bytes: the body's bytes, if its text cannot restore
-- them.
-- fingerprint: the first 16 bytes of a SHA-256.
CREATE TABLE callback (
    callback_id uuid PRIMARY KEY CHECK (has_prefix(callback_id, 'cbk')),
    received_at timestamptz NOT NULL,
    repeats integer NOT NULL DEFAULT 0,
    tries integer NOT NULL DEFAULT 0,
    applied_at timestamptz,
    due_at timestamptz,
    form_id integer,
    subject_id uuid CHECK (is_id(subject_id)),
    merchant_id uuid CHECK (is_id(merchant_id)),
    env text CHECK (env IN ('sandbox', 'live')),
    kind text NOT NULL,
    fingerprint bytea NOT NULL CHECK (length(fingerprint) = 16) UNIQUE,
    source text NOT NULL,
    handle text NOT NULL,
    result_code text NOT NULL,
    verdict text NOT NULL DEFAULT 'waiting' CHECK (verdict IN ('waiting', 'applied', 'unmatched')),
    signature text NOT NULL DEFAULT 'none' CHECK (signature IN ('none', 'verified')),
    stored_body text NOT NULL,
    body_bytes bytea,
    CONSTRAINT callback_check CHECK ((verdict = 'applied') = (applied_at IS NOT NULL)),
    CONSTRAINT callback_check1 CHECK ((verdict = 'waiting') = (due_at IS NOT NULL)),
    CONSTRAINT callback_counts_check CHECK (repeats >= 0 AND tries >= 0),
    CONSTRAINT callback_env_is_its_tokens CHECK ((subject_id IS NULL) = (env IS NULL)),
    CONSTRAINT callback_merchant_is_its_tokens CHECK (subject_id IS NOT NULL OR merchant_id IS NULL)
);
CREATE FUNCTION body(callback) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN body_text($1.form_id, $1.stored_body, ARRAY[$1.handle]);
CREATE INDEX callback_due ON callback (due_at) WHERE verdict = 'waiting';
CREATE INDEX callback_subject ON callback (subject_id, callback_id) WHERE subject_id IS NOT NULL;
-- Callbacks without a subject or at a standing address, and unapplied callbacks, are found by their handle.
CREATE INDEX callback_handle ON callback (handle, callback_id)
    WHERE (subject_id IS NULL OR merchant_id IS NULL) AND handle <> '';
CREATE INDEX callback_waiting_handle ON callback (handle, callback_id) WHERE verdict <> 'applied' AND handle <> '';
CREATE INDEX callback_newest ON callback (env, callback_id);
CREATE INDEX callback_unapplied ON callback (env, callback_id) WHERE verdict <> 'applied';

-- Refused callbacks. original: the whole body, for a replay. is_trusted: it had a valid token or a listed source, and is
-- not deleted in favour of untrusted ones. cut_*: the announced length of an oversized body, the number of bytes that
-- were read, and their SHA-256. was_forwarded: the source named another client in X-Forwarded-For.
CREATE TABLE refused_callback (
    refused_id uuid PRIMARY KEY CHECK (has_prefix(refused_id, 'ref')),
    kind text NOT NULL CHECK (kind <> ''),
    at timestamptz NOT NULL,
    source text NOT NULL,
    reason text NOT NULL,
    body text NOT NULL CHECK (length(body) <= 2048),
    merchant_id uuid CHECK (is_id(merchant_id)),
    subject_id uuid CHECK (is_id(subject_id)),
    env text CHECK (env IN ('sandbox', 'live')),
    original text,
    signature text,
    replayed_at timestamptz,
    callback_id uuid REFERENCES callback,
    body_bytes bytea,
    is_trusted boolean NOT NULL DEFAULT false,
    cut_length bigint,
    cut_read bigint,
    cut_sha256 bytea,
    was_forwarded boolean NOT NULL DEFAULT false,
    CONSTRAINT refused_callback_cut_counts CHECK (cut_read >= 0 AND cut_length >= cut_read AND length(cut_sha256) = 32),
    CONSTRAINT refused_callback_cut_is_whole CHECK (num_nulls(cut_length, cut_read, cut_sha256) IN (0, 3)),
    CONSTRAINT refused_callback_says_why CHECK (reason <> '')
);
CREATE INDEX refused_callback_became ON refused_callback (callback_id) WHERE callback_id IS NOT NULL;
CREATE INDEX refused_callback_subject ON refused_callback (subject_id) WHERE subject_id IS NOT NULL;
CREATE INDEX refused_callback_of_strangers ON refused_callback (refused_id) WHERE NOT is_trusted;
-- Trusted callbacks that could not be read, name another shortcode than their address, or are of a kind that no enabled plugin declares.
CREATE INDEX refused_callback_unread ON refused_callback (refused_id)
    WHERE is_trusted AND callback_id IS NULL AND reason IN ('size', 'shape', 'doubled', 'kind', 'receiver');
