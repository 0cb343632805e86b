DROP INDEX payment_without_receipt;
CREATE INDEX payment_without_receipt ON payment (env, shortcode, amount, created_at)
    WHERE receipt IS NULL AND status IN ('pending', 'failed', 'completed');
