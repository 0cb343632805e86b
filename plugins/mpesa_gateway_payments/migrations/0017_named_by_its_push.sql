-- An acknowledgement without MerchantRequestID has been seen: the CheckoutRequestID alone names the push.
ALTER TABLE payment
    DROP CONSTRAINT payment_accepted_has_its_ids,
    ADD CONSTRAINT payment_accepted_has_its_ids CHECK (charge <> 'accepted' OR checkout_request_id IS NOT NULL);
