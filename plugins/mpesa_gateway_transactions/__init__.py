"""Money that M-Pesa moved: one row for each receipt, and which reports have shown it."""
