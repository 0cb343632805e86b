"""The scopes of payments, and the callers that have them."""

from typing import Annotated

from mpesa_gateway.security.scopes import INJECTED, Caller, Scope

PAYMENTS_READ = Scope("payments:read", "read payments with their timelines, status queries and statements")
PAYMENTS_WRITE = Scope("payments:write", "create payments, send status queries, and reconcile")

PaymentsRead = Annotated[Caller, INJECTED, PAYMENTS_READ]
PaymentsWrite = Annotated[Caller, INJECTED, PAYMENTS_WRITE]
