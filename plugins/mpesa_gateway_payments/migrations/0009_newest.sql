-- Lists run along this, with the amount in it: a row that is not wanted is passed over in the index, without being read.
CREATE INDEX CONCURRENTLY payment_newest ON payment (merchant_id, created_at DESC, payment_id DESC) INCLUDE (amount);
