-- The ledger holds everybody's money: customers who pay without a prompt, payouts, charges, reversals on the portal.
ALTER TABLE sim_transaction
    ADD COLUMN kind text NOT NULL DEFAULT 'push' CHECK (kind IN
        ('push', 'pay_bill', 'buy_goods', 'payout', 'shop_payment', 'portal_reversal', 'charge')),
    -- Who is the other side where that is no phone.
    ADD COLUMN party text NOT NULL DEFAULT '',
    -- How statements show the payer, and the time.
    ADD COLUMN payer_shown text NOT NULL DEFAULT 'national' CHECK (payer_shown IN
        ('national', 'whole', 'masked', 'partial', 'hashed', 'absent')),
    ADD COLUMN time_shown text NOT NULL DEFAULT 'offset' CHECK (time_shown IN ('offset', 'no_zone', 'z_meaning_eat')),
    -- By how many seconds the clock that stamped it was wrong.
    ADD COLUMN skew integer NOT NULL DEFAULT 0,
    -- A payer who pays by hand what this push asked for; NULL for everybody else.
    ADD COLUMN meant_for text,
    -- Whether it left the shortcode.
    ADD COLUMN is_out boolean NOT NULL DEFAULT false;
UPDATE sim_transaction SET kind = 'pay_bill' WHERE checkout_request_id IS NULL;

CREATE INDEX sim_reversal_at ON sim_reversal (at);

ALTER TABLE sim_habit DROP CONSTRAINT sim_habit_operation_check;
ALTER TABLE sim_habit ADD CONSTRAINT sim_habit_operation_check CHECK (operation IN
    ('oauth', 'stkpush', 'stkack', 'callback', 'stkquery', 'transactionstatus', 'reversal', 'pullquery'));

-- Not everything that Daraja sends is UTF-8.
ALTER TABLE sim_callback ADD COLUMN encoding text NOT NULL DEFAULT 'utf-8';
ALTER TABLE sim_result ADD COLUMN encoding text NOT NULL DEFAULT 'utf-8';
