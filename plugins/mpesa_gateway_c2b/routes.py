"""Routes of registration."""

from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from mpesa_gateway.errors import NotFound, ProviderUnavailable
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.security.scopes import MerchantRead, MerchantWrite
from mpesa_gateway.services import Services
from mpesa_gateway_c2b.errors import AddressRefused, RegistrationInProgress
from mpesa_gateway_c2b.registration import C2bRegistrations
from mpesa_gateway_c2b.schemas import C2bRegistered, C2bRemoved, C2bRequest, C2bView
from mpesa_gateway_credentials.api import ReceiverOwned

_PATH = "/v1/merchant/shortcodes/{shortcode:str}/c2b"
_SHORTCODE = {"shortcode": {"pattern": "^[0-9]{5,7}$", "examples": ["174379"]}}


@post(
    _PATH,
    status_code=200,
    tags=["C2B"],
    described=_SHORTCODE,
    refuses=(NotFound, ReceiverOwned, AddressRefused, RegistrationInProgress, ProviderUnavailable),
)
async def register_c2b(
    shortcode: FromPath[str],
    caller: MerchantWrite,
    services: NamedDependency[Services],
    data: JSONBody[C2bRequest] = C2bRequest(),  # noqa: B008 - frozen; the body may be absent
) -> Success[C2bRegistered]:
    """Register this gateway's addresses for payer-initiated payments. `state` is Safaricom's answer."""
    return Success(data=await services.get(C2bRegistrations).register(caller, shortcode, data))


@get(_PATH, tags=["C2B"], described=_SHORTCODE, refuses=(NotFound, ReceiverOwned))
async def get_c2b(
    shortcode: FromPath[str], caller: MerchantRead, services: NamedDependency[Services]
) -> Success[C2bView]:
    """The registration, and the time of the last confirmation."""
    return Success(data=await services.get(C2bRegistrations).get(caller, shortcode))


@delete(_PATH, status_code=200, tags=["C2B"], described=_SHORTCODE, refuses=(NotFound, ReceiverOwned))
async def remove_c2b(
    shortcode: FromPath[str], caller: MerchantWrite, services: NamedDependency[Services]
) -> Success[C2bRemoved]:
    """Return what people have to do on Safaricom's portal. Money that arrives until then is still recorded."""
    return Success(data=await services.get(C2bRegistrations).remove(caller, shortcode))


routes = (register_c2b, get_c2b, remove_c2b)
