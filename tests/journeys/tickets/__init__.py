"""A product of a host's own: Safaricom asks it whether a ticket exists, before the money for it is taken."""
