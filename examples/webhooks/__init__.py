"""How a shop makes sure that a webhook came from the gateway, in five languages."""
