-- The sandbox may give out a CheckoutRequestID that live has given out too. A lookup by handle alone uses the same index.
DROP INDEX payment_checkout_request_id;
CREATE UNIQUE INDEX payment_checkout_request_id ON payment (checkout_request_id, env)
    WHERE checkout_request_id IS NOT NULL;
