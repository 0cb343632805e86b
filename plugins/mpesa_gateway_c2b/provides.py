"""Services of the c2b plugin."""

from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Provides
from mpesa_gateway_c2b.accounts import AccountNumbers
from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_c2b.confirmations import Confirmations
from mpesa_gateway_c2b.counting import AccountCounting
from mpesa_gateway_c2b.registration import C2bRegistrations
from mpesa_gateway_c2b.validation import Validation

PROVIDES: Provides = (
    provide(C2bAddresses),
    provide(C2bRegistrations, public_url=lambda gateway: gateway.url),
    provide(Confirmations),
    provide(AccountCounting),
    provide(AccountNumbers),
    provide(Validation),
)
