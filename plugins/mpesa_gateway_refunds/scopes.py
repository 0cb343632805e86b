"""Scopes of refunds, and callers with them."""

from typing import Annotated

from mpesa_gateway.security.scopes import INJECTED, Caller, Scope

REFUNDS_READ = Scope("refunds:read", "see refunds")
REFUNDS_WRITE = Scope("refunds:write", "refund payments to their payers")

RefundsRead = Annotated[Caller, INJECTED, REFUNDS_READ]
RefundsWrite = Annotated[Caller, INJECTED, REFUNDS_WRITE]
