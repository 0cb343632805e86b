"""The objects of this plugin, each made of what it needs."""

from mpesa_gateway.plugin import Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.api import OperatorLogin
from mpesa_gateway_ops.desk import Desk
from mpesa_gateway_ops.frame import Frame
from mpesa_gateway_ops.guesses import Guesses
from mpesa_gateway_ops.notes import Notes
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings


def _operators(runtime: Runtime) -> Operators:
    return Operators(
        db=runtime.db,
        clock=runtime.clock,
        ids=runtime.ids,
        audit=runtime.audit,
        settings=runtime.settings(OpsSettings),
        guesses=Guesses(
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
    (Desk, Desk),
    (Frame, lambda runtime: Frame(runtime, runtime.port(Desk))),
    (Notes, lambda runtime: Notes(db=runtime.db, clock=runtime.clock, ids=runtime.ids, sealer=runtime.sealer)),
)
