"""The transactions plugin: one row for each receipt, with the reports that have shown it."""
