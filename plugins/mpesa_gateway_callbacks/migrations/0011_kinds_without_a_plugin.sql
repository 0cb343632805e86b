-- What came to an address of ours or from Safaricom's, and could not be read, or is of a kind that no enabled plugin takes.
DROP INDEX refused_callback_unread;
CREATE INDEX refused_callback_unread ON refused_callback (at DESC, refused_id DESC)
    WHERE is_trusted AND callback_id IS NULL AND reason IN ('size', 'shape', 'doubled', 'kind');
