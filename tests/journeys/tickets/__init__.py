"""A host's own product: Safaricom validates a ticket number before it accepts the money."""
