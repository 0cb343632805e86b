"""The tables of the tickets."""
