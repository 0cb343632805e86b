-- payment_newest_of_status does what it did.
DROP INDEX CONCURRENTLY IF EXISTS payment_merchant_status;
