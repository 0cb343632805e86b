"""The objects of this plugin and their construction."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
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
from mpesa_gateway_ops.settings import OpsSettings


def _people(runtime: Runtime) -> People:
    return People(
        db=runtime.db,
        clock=runtime.clock,
        ids=runtime.ids,
        audit=runtime.audit,
        settings=runtime.settings(OpsSettings),
        guesses=LoginLimits(
            clock=runtime.clock, ids=runtime.ids, limits=runtime.limits, vault=runtime.vault, audit=runtime.audit
        ),
        sessions=runtime.port(Sessions),
    )


def _sessions(runtime: Runtime) -> Sessions:
    return Sessions(
        db=runtime.db,
        clock=runtime.clock,
        ids=runtime.ids,
        vault=runtime.vault,
        audit=runtime.audit,
        merchants=runtime.merchants,
        settings=runtime.settings(OpsSettings),
    )


def _memberships(runtime: Runtime) -> Memberships:
    return Memberships(db=runtime.db, clock=runtime.clock, audit=runtime.audit, sessions=runtime.port(Sessions))


def _invitations(runtime: Runtime) -> Invitations:
    return Invitations(
        db=runtime.db,
        clock=runtime.clock,
        ids=runtime.ids,
        audit=runtime.audit,
        people=runtime.port(People),
        memberships=runtime.port(Memberships),
        sessions=runtime.port(Sessions),
        settings=runtime.settings(OpsSettings),
    )


def _second_factors(runtime: Runtime) -> SecondFactors:
    return SecondFactors(
        db=runtime.db,
        clock=runtime.clock,
        ids=runtime.ids,
        audit=runtime.audit,
        sealer=runtime.sealer,
        vault=runtime.vault,
        limits=runtime.limits,
        sessions=runtime.port(Sessions),
    )


PROVIDES: Provides = (
    (People, _people),
    (OperatorLogin, lambda runtime: runtime.port(People)),
    (Sessions, _sessions),
    (Memberships, _memberships),
    (Invitations, _invitations),
    (SecondFactors, _second_factors),
    (PageRegistry, PageRegistry),
    (Layout, lambda runtime: Layout(runtime, runtime.port(PageRegistry))),
    (
        FlashMessages,
        lambda runtime: FlashMessages(db=runtime.db, clock=runtime.clock, ids=runtime.ids, sealer=runtime.sealer),
    ),
)
