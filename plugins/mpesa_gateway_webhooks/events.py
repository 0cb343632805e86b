"""What webhooks themselves publish: nothing but a test."""

from typing import Any, ClassVar

from mpesa_gateway.events import PublicEvent


class WebhookTest(PublicEvent, frozen=True, kw_only=True):
    """The merchant asked for a webhook to try their endpoint with."""

    kind: ClassVar[str] = "webhook.test"

    def data(self) -> dict[str, Any]:
        """What merchants get to see."""
        return {"message": "This is a test. Nothing has been paid."}
