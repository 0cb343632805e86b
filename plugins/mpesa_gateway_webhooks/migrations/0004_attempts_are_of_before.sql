-- Reads all of them once, and keeps nobody from writing meanwhile.
ALTER TABLE attempt VALIDATE CONSTRAINT attempt_before_months;
