"""The declaration of the simulator plugin."""

from mpesa_gateway.http.known_callers import KnownCallerCheck
from mpesa_gateway.plugin import Plugin, Tables
from mpesa_gateway_simulator import COMMANDS, c2b_routes, phone_pages
from mpesa_gateway_simulator.daraja_routes import daraja_routes
from mpesa_gateway_simulator.doctor import CHECKS
from mpesa_gateway_simulator.provides import PROVIDES, make_front
from mpesa_gateway_simulator.routes import routes
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.tables import (
    C2bPaymentRow,
    C2bRegistrationRow,
    CallbackRow,
    FaultRow,
    HabitRow,
    HandRow,
    KnobRow,
    PushRow,
    RegistrationRow,
    ResultRow,
    ReversalRow,
    TransactionRow,
)


def _vouches(_gateway: object, _scope: object, _address: str) -> bool:
    """The gateway itself calls the simulated Daraja, without a rate limit."""
    return True


plugin = Plugin(
    name="simulator",
    summary="Our own Daraja for the sandbox: simulated phones that pay, cancel, or do what the real ones do at 2 a.m.",
    settings=SimulatorSettings,
    routes=(*daraja_routes, *routes, *c2b_routes.routes, *phone_pages.routes),
    provides=PROVIDES,
    tables=Tables(
        models=(
            PushRow,
            CallbackRow,
            TransactionRow,
            ResultRow,
            ReversalRow,
            C2bRegistrationRow,
            C2bPaymentRow,
            FaultRow,
            KnobRow,
            HabitRow,
            HandRow,
            RegistrationRow,
        ),
        migrations="mpesa_gateway_simulator.migrations",
    ),
    commands=COMMANDS,
    checks=CHECKS,
    contributes=(KnownCallerCheck(("/simulator",), _vouches),),
    front=make_front,
)
