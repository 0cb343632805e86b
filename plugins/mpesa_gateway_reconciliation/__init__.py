"""Reconciliation: reads M-Pesa's own statement and completes the payments whose callbacks never came.

This plugin owns runs and statement lines. It never guesses: money that fits two payments waits for proof or a person.
"""
