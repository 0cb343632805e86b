"""Scopes of webhooks, and callers with them."""

from typing import Annotated

from mpesa_gateway.security.scopes import INJECTED, Caller, Scope

WEBHOOKS_READ = Scope("webhooks:read", "see events, and each delivery with its attempts")
WEBHOOKS_WRITE = Scope("webhooks:write", "send webhooks again, and send a test")

WebhooksRead = Annotated[Caller, INJECTED, WEBHOOKS_READ]
WebhooksWrite = Annotated[Caller, INJECTED, WEBHOOKS_WRITE]
