"""The events that webhooks publish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mpesa_gateway.events import PublicEvent

if TYPE_CHECKING:
    from mpesa_gateway.runtime import Runtime


class WebhookTest(PublicEvent, frozen=True, kw_only=True):
    """A merchant requested a test webhook."""

    kind: ClassVar[str] = "webhook.test"

    def data(self) -> dict[str, Any]:
        return {"message": "This is a test. Nothing has been paid."}


def chosen_types(gateway: Runtime) -> list[str]:
    """Return the types of all public events, without tests, which every endpoint takes."""
    kinds = [kind for kind in gateway.event_kinds if issubclass(gateway.event_type(kind), PublicEvent)]
    return [kind for kind in kinds if kind != WebhookTest.kind]


def money_types(gateway: Runtime) -> list[str]:
    """Return the types of events that report moved money."""
    kinds = [(kind, gateway.event_type(kind)) for kind in gateway.event_kinds]
    return [kind for kind, event in kinds if issubclass(event, PublicEvent) and event.reports_money]
