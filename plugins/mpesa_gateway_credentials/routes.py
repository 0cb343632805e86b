"""Credentials over HTTP."""

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import JSONBody

from mpesa_gateway.errors import NotFound, ProviderNotConfigured, ProviderUnavailable
from mpesa_gateway.http.envelope import Deleted, Success
from mpesa_gateway.security.scopes import MerchantRead, MerchantWrite
from mpesa_gateway.services import Services
from mpesa_gateway_credentials.schemas import MerchantView, ProviderView, SetProvider, Verification
from mpesa_gateway_credentials.service import CredentialStore


@get("/v1/merchant/me", tags=["Merchant"])
async def me(caller: MerchantRead, services: NamedDependency[Services]) -> Success[MerchantView]:
    """The merchant and the key that are asking."""
    return Success(data=await services.get(CredentialStore).me(caller))


@put("/v1/merchant/providers", status_code=200, tags=["Merchant"])
async def set_provider(
    data: JSONBody[SetProvider], caller: MerchantWrite, services: NamedDependency[Services]
) -> Success[ProviderView]:
    """Store the merchant's keys to M-Pesa; the whole configuration is replaced."""
    return Success(data=await services.get(CredentialStore).store(caller, data))


@get("/v1/merchant/providers", tags=["Merchant"])
async def list_providers(caller: MerchantRead, services: NamedDependency[Services]) -> Success[list[ProviderView]]:
    """What is configured; secrets by their last four characters."""
    return Success(data=await services.get(CredentialStore).providers(caller.merchant_id))


@delete("/v1/merchant/providers/mpesa", status_code=200, tags=["Merchant"], refuses=(NotFound,))
async def remove_provider(caller: MerchantWrite, services: NamedDependency[Services]) -> Success[Deleted]:
    """Forget the merchant's keys to M-Pesa."""
    await services.get(CredentialStore).remove(caller)
    return Success(data=Deleted())


@post(
    "/v1/merchant/providers/mpesa/verify",
    status_code=200,
    tags=["Merchant"],
    refuses=(ProviderNotConfigured, ProviderUnavailable),
)
async def verify_provider(caller: MerchantWrite, services: NamedDependency[Services]) -> Success[Verification]:
    """Try the stored keys: fetches an access token."""
    return Success(data=await services.get(CredentialStore).verify(caller.merchant_id, caller.env))


routes = (me, set_provider, list_providers, remove_provider, verify_provider)
