"""Services of the simulator."""

from mpesa_gateway.asgi_types import ASGIApp
from mpesa_gateway.construction import provide
from mpesa_gateway.plugin import Plugin, Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_simulator.c2b import C2bPayments
from mpesa_gateway_simulator.c2b_confirmations import C2bConfirmations
from mpesa_gateway_simulator.c2b_registrations import C2bRegistrations
from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.exchange_log import ChangeSignal, DueSignal, ExchangeLog
from mpesa_gateway_simulator.phones import Phones
from mpesa_gateway_simulator.poster import CallbackPoster
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.qr_codes import QrCodes
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.root_routes import RootRoutes
from mpesa_gateway_simulator.seeded_random import SeededRandom
from mpesa_gateway_simulator.service import SimulatedDaraja
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.statements import Statements


def make_front(gateway: Runtime, app: ASGIApp) -> RootRoutes:
    return RootRoutes(app, gateway.port(SimulatedDaraja), is_alone=len(gateway.contributed(Plugin)) == 1)


PROVIDES: Provides = (
    # First: the fixture `simulator` of plugins' tests.
    provide(Prompts),
    provide(CallbackPoster),
    provide(C2bRegistrations),
    provide(C2bConfirmations),
    provide(C2bPayments),
    provide(QrCodes),
    provide(SimulatedDaraja),
    provide(CallbackCaller),
    provide(Controls),
    provide(Results),
    provide(Statements),
    provide(SeededRandom, seed=lambda gateway: gateway.settings(SimulatorSettings).seed),
    provide(ExchangeLog),
    provide(ChangeSignal),
    provide(DueSignal),
    provide(Phones),
)
