"""Checks whether a gateway is ready for live, and whether its ledger is consistent. Changes nothing."""
