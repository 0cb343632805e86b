"""Examples of the gateway in other systems."""
