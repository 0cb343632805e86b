"""The scopes of transactions, and the callers that have them."""

from typing import Annotated

from mpesa_gateway.security.scopes import INJECTED, Caller, Scope

TRANSACTIONS_READ = Scope("transactions:read", "read the money that M-Pesa moved, with what it paid for")
TRANSACTIONS_WRITE = Scope("transactions:write", "allocate money that names no payment")

TransactionsRead = Annotated[Caller, INJECTED, TRANSACTIONS_READ]
TransactionsWrite = Annotated[Caller, INJECTED, TRANSACTIONS_WRITE]
