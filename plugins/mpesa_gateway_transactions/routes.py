"""HTTP routes of transactions."""

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from litestar.response import Stream

from mpesa_gateway.http.csv import stream_csv
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.fields import path_id
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.services import Services
from mpesa_gateway_transactions.api import NotAllocatable
from mpesa_gateway_transactions.manual import AlreadyAllocated
from mpesa_gateway_transactions.schemas import (
    Allocate,
    TransactionDetails,
    TransactionFilters,
    TransactionQuery,
    TransactionView,
)
from mpesa_gateway_transactions.scopes import TransactionsRead, TransactionsWrite
from mpesa_gateway_transactions.service import TransactionService
from mpesa_gateway_transactions.views import EXPORTED

_TRANSACTION = path_id("transaction_id", "txn")


@get("/v1/transactions", dependencies={"filters": query_dependency(TransactionQuery)}, tags=["Transactions"])
async def list_transactions(
    filters: NamedDependency[TransactionQuery], caller: TransactionsRead, services: NamedDependency[Services]
) -> Page[TransactionView]:
    """List the money that M-Pesa moved, newest first."""
    return await services.get(TransactionService).page(caller.merchant_id, caller.env, filters)


@get("/v1/transactions/export", dependencies={"filters": query_dependency(TransactionFilters)}, tags=["Transactions"])
async def export_transactions(
    filters: NamedDependency[TransactionFilters], caller: TransactionsRead, services: NamedDependency[Services]
) -> Stream:
    """Export transactions as a CSV file, newest first."""
    pages = services.get(TransactionService).export(caller.merchant_id, caller.env, filters)
    return await stream_csv("transactions.csv", EXPORTED, pages)


@get("/v1/transactions/{transaction_id:str}", tags=["Transactions"], described=_TRANSACTION)
async def get_transaction(
    transaction_id: FromPath[str], caller: TransactionsRead, services: NamedDependency[Services]
) -> Success[TransactionDetails]:
    """Return a transaction with its witnesses and allocations."""
    return Success(data=await services.get(TransactionService).get(caller.merchant_id, caller.env, transaction_id))


@post(
    "/v1/transactions/{transaction_id:str}/allocate",
    status_code=200,
    tags=["Transactions"],
    described=_TRANSACTION,
    refuses=(AlreadyAllocated, NotAllocatable),
)
async def allocate_transaction(
    transaction_id: FromPath[str],
    data: JSONBody[Allocate],
    caller: TransactionsWrite,
    services: NamedDependency[Services],
) -> Success[TransactionDetails]:
    """Allocate money to a payment, or with a note alone mark it as dealt with. The first person wins."""
    service = services.get(TransactionService)
    await service.allocate(caller.merchant_id, caller.env, transaction_id, data, actor=caller.actor)
    return Success(data=await service.get(caller.merchant_id, caller.env, transaction_id))


routes = (list_transactions, export_transactions, get_transaction, allocate_transaction)
