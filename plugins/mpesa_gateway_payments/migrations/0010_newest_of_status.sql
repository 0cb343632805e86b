-- The same for each status.
CREATE INDEX CONCURRENTLY payment_newest_of_status
    ON payment (merchant_id, status, created_at DESC, payment_id DESC) INCLUDE (amount);
