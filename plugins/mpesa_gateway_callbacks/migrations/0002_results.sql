ALTER TABLE callback DROP CONSTRAINT callback_kind_check;
ALTER TABLE callback ADD CONSTRAINT callback_kind_check
    CHECK (kind IN ('stk', 'status', 'status-timeout', 'reversal', 'reversal-timeout', 'pull'));
ALTER TABLE callback ADD COLUMN merchant_id text COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE callback ADD COLUMN signature text NOT NULL DEFAULT 'none' CHECK (signature IN ('none', 'verified'));
ALTER TABLE refused_callback ADD COLUMN merchant_id text COLLATE "C";
ALTER TABLE refused_callback ADD COLUMN subject_id text COLLATE "C";
CREATE INDEX refused_callback_merchant ON refused_callback (merchant_id, at DESC, refused_id DESC);
