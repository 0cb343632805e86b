"""How fast the gateway is, beside what limits it and what others do: measured in rounds that take turns."""
