"""The scopes of payments, and the callers that have them."""

from typing import Annotated

from mpesa_gateway.security.scopes import INJECTED, Caller, Scope

PAYMENTS_READ = Scope(
    "payments:read", "see payments with their timelines, what M-Pesa was asked about them, and statements"
)
PAYMENTS_WRITE = Scope("payments:write", "ask payers for money, ask M-Pesa what became of it, and reconcile")

PaymentsRead = Annotated[Caller, INJECTED, PAYMENTS_READ]
PaymentsWrite = Annotated[Caller, INJECTED, PAYMENTS_WRITE]
