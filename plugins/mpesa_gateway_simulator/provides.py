"""The objects of this plugin, each made of what it needs."""

from mpesa_gateway.asgi_types import ASGIApp
from mpesa_gateway.plugin import Plugin, Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_simulator.chance import Chance
from mpesa_gateway_simulator.front import Front
from mpesa_gateway_simulator.phones import Phones
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.service import Simulator
from mpesa_gateway_simulator.settings import SimulatorSettings


def _simulator(runtime: Runtime) -> Simulator:
    db, clock, settings = runtime.db, runtime.clock, runtime.settings(SimulatorSettings)
    chance = Chance(db=db, ids=runtime.ids, seed=settings.seed)
    return Simulator(
        db=db,
        clock=clock,
        ids=runtime.ids,
        names=runtime.names,
        settings=settings,
        results=Results(db=db, clock=clock, settings=settings, chance=chance),
    )


def make_front(runtime: Runtime, app: ASGIApp) -> Front:
    """Return the layer in front of all routes."""
    return Front(app, runtime.port(Simulator), is_alone=len(runtime.contributed(Plugin)) == 1)


PROVIDES: Provides = (
    (Simulator, _simulator),
    (Phones, lambda runtime: Phones(db=runtime.db, simulator=runtime.port(Simulator))),
)
