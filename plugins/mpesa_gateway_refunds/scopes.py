"""The scopes of refunds, and the callers that carry them."""

from typing import Annotated

from mpesa_gateway.security.scopes import INJECTED, Caller, Scope

REFUNDS_READ = Scope("refunds:read", "see refunds")
REFUNDS_WRITE = Scope("refunds:write", "send money back to those who paid it")

RefundsRead = Annotated[Caller, INJECTED, REFUNDS_READ]
RefundsWrite = Annotated[Caller, INJECTED, REFUNDS_WRITE]
