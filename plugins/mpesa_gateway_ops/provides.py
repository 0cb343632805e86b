"""Ports and services of the operators' pages."""

from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Provides
from mpesa_gateway_ops.api import OperatorLogin
from mpesa_gateway_ops.flash import FlashMessages
from mpesa_gateway_ops.invitations import Invitations
from mpesa_gateway_ops.layout import Layout
from mpesa_gateway_ops.login_limits import LoginLimits
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_ops.people import People
from mpesa_gateway_ops.second_factors import SecondFactors
from mpesa_gateway_ops.sessions import Sessions

PROVIDES: Provides = (
    provide(LoginLimits),
    provide(People),
    (OperatorLogin, lambda gateway: gateway.port(People)),
    provide(Sessions),
    provide(Memberships),
    provide(Invitations),
    provide(SecondFactors),
    provide(PageRegistry),
    provide(Layout),
    provide(FlashMessages),
)
