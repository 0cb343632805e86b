"""How each event that developers trigger is made."""

from dataclasses import dataclass

from mpesa_gateway_webhooks.events import WebhookTest


@dataclass(frozen=True)
class EventRecipe:
    """The simulated phone of the payment, and the refund that follows."""

    phone: str
    refunded: bool = False
    refused: bool = False
    """M-Pesa rejects the refund."""


RECIPES: dict[str, EventRecipe] = {
    "payment.completed": EventRecipe("254700000000"),
    "payment.failed": EventRecipe("254700000001"),
    "payment.mismatched": EventRecipe("254700000011"),
    "payment.reversed": EventRecipe("254700000000", refunded=True),
    "refund.failed": EventRecipe("254700000000", refunded=True, refused=True),
}

KINDS = (*RECIPES, WebhookTest.kind)
