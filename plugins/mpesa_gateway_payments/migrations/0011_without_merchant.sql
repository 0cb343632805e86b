-- payment_newest does what it did.
DROP INDEX CONCURRENTLY IF EXISTS payment_merchant;
