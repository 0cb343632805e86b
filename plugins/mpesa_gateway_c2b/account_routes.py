"""Routes of account numbers."""

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.errors import Conflict, NotFound, ProviderNotConfigured
from mpesa_gateway.http.envelope import Page, Success
from mpesa_gateway.http.query import query_dependency
from mpesa_gateway.services import Services
from mpesa_gateway_c2b.account_schemas import (
    AccountNumberInput,
    AccountQuery,
    AccountView,
    AccountWithEntries,
    BulkInput,
    BulkStored,
    DeletedAccount,
    OfShortcode,
)
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_credentials.api import ReceiverOwned
from mpesa_gateway_payments.scopes import PaymentsRead, PaymentsWrite

_PATH = "/v1/account-numbers/{number:str}"
_NUMBER = {"number": {"maxLength": 20, "examples": ["HOUSE 7"]}}
_REFUSES = (NotFound, ReceiverOwned, ProviderNotConfigured)
_OF = {"of": query_dependency(OfShortcode)}


@put(_PATH, status_code=200, tags=["Account numbers"], described=_NUMBER, dependencies=_OF, refuses=_REFUSES)
async def put_account_number(
    number: FromPath[str],
    of: NamedDependency[OfShortcode],
    data: JSONBody[AccountNumberInput],
    caller: PaymentsWrite,
    services: NamedDependency[Services],
) -> Success[AccountView]:
    """Create or replace an account number that payers type. The received sum stays."""
    return Success(data=await services.get(AccountNumbers).put(caller, number, data, of.shortcode))


@post("/v1/account-numbers", status_code=200, tags=["Account numbers"], refuses=_REFUSES)
async def put_account_numbers(
    data: JSONBody[BulkInput], caller: PaymentsWrite, services: NamedDependency[Services]
) -> Success[BulkStored]:
    """Create or replace up to 500 account numbers: all are stored, or none."""
    return Success(data=BulkStored(stored=await services.get(AccountNumbers).put_all(caller, data)))


@get("/v1/account-numbers", dependencies={"filters": query_dependency(AccountQuery)}, tags=["Account numbers"])
async def list_account_numbers(
    filters: NamedDependency[AccountQuery], caller: PaymentsRead, services: NamedDependency[Services]
) -> Page[AccountView]:
    """List account numbers, newest first."""
    return await services.get(AccountNumbers).page(caller, filters)


@get(_PATH, tags=["Account numbers"], described=_NUMBER, dependencies=_OF, refuses=_REFUSES)
async def get_account_number(
    number: FromPath[str],
    of: NamedDependency[OfShortcode],
    caller: PaymentsRead,
    services: NamedDependency[Services],
) -> Success[AccountWithEntries]:
    """Return an account number with the money that it received."""
    return Success(data=await services.get(AccountNumbers).get(caller, number, of.shortcode))


@delete(
    _PATH,
    status_code=200,
    tags=["Account numbers"],
    described=_NUMBER,
    dependencies=_OF,
    refuses=(*_REFUSES, Conflict),
)
async def delete_account_number(
    number: FromPath[str],
    of: NamedDependency[OfShortcode],
    caller: PaymentsWrite,
    services: NamedDependency[Services],
) -> Success[DeletedAccount]:
    """Delete an account number that has received nothing."""
    return Success(data=DeletedAccount(number=await services.get(AccountNumbers).delete(caller, number, of.shortcode)))


routes = (put_account_number, put_account_numbers, list_account_numbers, get_account_number, delete_account_number)
