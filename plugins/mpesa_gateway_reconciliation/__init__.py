"""The reconciliation plugin: owns runs and statement lines.

Money that fits two payments waits for proof or a person's decision.
"""
