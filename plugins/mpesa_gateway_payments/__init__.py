"""The payments plugin: owns payments and their status.

Callbacks, queries and expiry change a payment through one transition, which only the first of them passes.
"""
