ALTER TABLE sim_habit DROP CONSTRAINT sim_habit_operation_check;
ALTER TABLE sim_habit ADD CONSTRAINT sim_habit_operation_check
    CHECK (operation IN ('stkpush', 'transactionstatus', 'reversal', 'pullquery'));
