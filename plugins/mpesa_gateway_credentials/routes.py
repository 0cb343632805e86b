"""Routes of credentials."""

from typing import Any

from litestar import delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import JSONBody

from mpesa_gateway.errors import Conflict, NotFound, ProviderNotConfigured, ProviderUnavailable
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.readiness import missing_of
from mpesa_gateway.security.scopes import MerchantRead, MerchantWrite
from mpesa_gateway.services import Services
from mpesa_gateway_credentials.reader import CredentialReader, provider_view
from mpesa_gateway_credentials.schemas import (
    MerchantView,
    ProviderMeta,
    Providers,
    RemovedProvider,
    SetProvider,
    StoredProvider,
    Verification,
)
from mpesa_gateway_credentials.service import CredentialStore


@get("/v1/merchant/me", tags=["Merchant"])
async def me(caller: MerchantRead, services: NamedDependency[Services]) -> Success[MerchantView]:
    """The merchant and the API key of the request."""
    return Success(data=await services.get(CredentialReader).me(caller))


@put("/v1/merchant/providers", status_code=200, tags=["Merchant"])
async def set_provider(
    data: JSONBody[SetProvider], caller: MerchantWrite, services: NamedDependency[Services]
) -> StoredProvider:
    """Store the default shortcode of the key's env. The whole configuration is replaced.

    Another number retires the former default one. `meta.missing` lists what does not work yet, and how to fix it.
    """
    stored = await services.get(CredentialStore).store(caller, data)
    return StoredProvider(
        data=provider_view(stored.credentials), meta=ProviderMeta(missing=stored.missing, retired=stored.retired)
    )


@get("/v1/merchant/providers", tags=["Merchant"])
async def list_providers(
    caller: MerchantRead, services: NamedDependency[Services], gateway: NamedDependency[Any]
) -> Providers:
    """The configuration of the key's env, with masked secrets; `meta.missing` as in the response to PUT."""
    found = await services.get(CredentialReader).providers(caller.merchant_id, caller.env)
    missing = [
        each
        for view in found
        for each in await missing_of(
            gateway,
            caller.merchant_id,
            caller.env,
            view.config_summary.till_number or view.config_summary.shortcode,
        )
    ]
    return Providers(data=found, meta=ProviderMeta(missing=missing))


@delete("/v1/merchant/providers/mpesa", status_code=200, tags=["Merchant"], refuses=(NotFound, Conflict))
async def remove_provider(caller: MerchantWrite, services: NamedDependency[Services]) -> Success[RemovedProvider]:
    """Retire the default shortcode of the key's env: no new payments. `open` counts its open work.

    It is refused while other shortcodes are active.
    """
    retired = await services.get(CredentialStore).retire(caller)
    return Success(data=RemovedProvider(shortcode=retired.shortcode, open=retired.open))


@post(
    "/v1/merchant/providers/mpesa/verify",
    status_code=200,
    tags=["Merchant"],
    refuses=(ProviderNotConfigured, ProviderUnavailable),
)
async def verify_provider(caller: MerchantWrite, services: NamedDependency[Services]) -> Success[Verification]:
    """Check the stored keys: fetch an access token with them."""
    return Success(data=await services.get(CredentialReader).verify(caller.merchant_id, caller.env))


routes = (me, set_provider, list_providers, remove_provider, verify_provider)
