"""The events that webhooks publish."""

from typing import Any, ClassVar

from mpesa_gateway.events import PublicEvent


class WebhookTest(PublicEvent, frozen=True, kw_only=True):
    """A merchant requested a test webhook."""

    kind: ClassVar[str] = "webhook.test"

    def data(self) -> dict[str, Any]:
        return {"message": "This is a test. Nothing has been paid."}
