"""Measures the capacity of this machine, runs at 70 % of it with faults, and then overloads it."""
