-- A paybill's line without an account number names no payment, whatever kind of payment M-Pesa calls it. Lines of before
-- count as a paybill's: they need a reference, or a person.
ALTER TABLE statement_line ADD COLUMN is_of_till boolean NOT NULL DEFAULT false;
