"""The objects of this plugin and their construction."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.api import OperatorLogin
from mpesa_gateway_ops.flash import FlashMessages
from mpesa_gateway_ops.layout import Layout
from mpesa_gateway_ops.login_limits import LoginLimits
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings


def _operators(runtime: Runtime) -> Operators:
    return Operators(
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
        settings=runtime.settings(OpsSettings),
    )


PROVIDES: Provides = (
    (Operators, _operators),
    (OperatorLogin, lambda runtime: runtime.port(Operators)),
    (Sessions, _sessions),
    (PageRegistry, PageRegistry),
    (Layout, lambda runtime: Layout(runtime, runtime.port(PageRegistry))),
    (
        FlashMessages,
        lambda runtime: FlashMessages(db=runtime.db, clock=runtime.clock, ids=runtime.ids, sealer=runtime.sealer),
    ),
)
