"""The objects of this plugin and their construction."""

from mpesa_gateway.asgi_types import ASGIApp
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


def _daraja(gateway: Runtime) -> SimulatedDaraja:
    return SimulatedDaraja(
        db=gateway.db,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.port(Controls),
        results=gateway.port(Results),
        statements=gateway.port(Statements),
        registrations=gateway.port(C2bRegistrations),
        c2b=gateway.port(C2bPayments),
        qr_codes=gateway.port(QrCodes),
        chance=gateway.port(SeededRandom),
        prompts=gateway.port(Prompts),
        caller=gateway.port(CallbackCaller),
        due=gateway.port(DueSignal),
    )


def _caller(gateway: Runtime) -> CallbackCaller:
    return CallbackCaller(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        chance=gateway.port(SeededRandom),
        prompts=gateway.port(Prompts),
        pulse=gateway.port(ChangeSignal),
        poster=gateway.port(CallbackPoster),
        c2b=gateway.port(C2bPayments),
        due=gateway.port(DueSignal),
    )


def _prompts(gateway: Runtime) -> Prompts:
    return Prompts(
        db=gateway.db,
        clock=gateway.clock,
        controls=gateway.port(Controls),
        results=gateway.port(Results),
        confirmations=gateway.port(C2bConfirmations),
        chance=gateway.port(SeededRandom),
        pulse=gateway.port(ChangeSignal),
        due=gateway.port(DueSignal),
    )


def _results(gateway: Runtime) -> Results:
    return Results(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.port(Controls),
        chance=gateway.port(SeededRandom),
    )


def _statements(gateway: Runtime) -> Statements:
    return Statements(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.port(Controls),
        chance=gateway.port(SeededRandom),
    )


def _controls(gateway: Runtime) -> Controls:
    return Controls(db=gateway.db, settings=gateway.settings(SimulatorSettings), pulse=gateway.port(ChangeSignal))


def _chance(gateway: Runtime) -> SeededRandom:
    return SeededRandom(db=gateway.db, ids=gateway.ids, seed=gateway.settings(SimulatorSettings).seed)


def _poster(gateway: Runtime) -> CallbackPoster:
    return CallbackPoster(names=gateway.names, diary=gateway.port(ExchangeLog))


def _registrations(gateway: Runtime) -> C2bRegistrations:
    return C2bRegistrations(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.port(Controls),
        chance=gateway.port(SeededRandom),
    )


def _confirmations(gateway: Runtime) -> C2bConfirmations:
    return C2bConfirmations(
        db=gateway.db,
        clock=gateway.clock,
        controls=gateway.port(Controls),
        registrations=gateway.port(C2bRegistrations),
    )


def _c2b(gateway: Runtime) -> C2bPayments:
    return C2bPayments(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.port(Controls),
        results=gateway.port(Results),
        registrations=gateway.port(C2bRegistrations),
        confirmations=gateway.port(C2bConfirmations),
        chance=gateway.port(SeededRandom),
        poster=gateway.port(CallbackPoster),
        pulse=gateway.port(ChangeSignal),
        due=gateway.port(DueSignal),
    )


def _qr_codes(gateway: Runtime) -> QrCodes:
    return QrCodes(clock=gateway.clock, controls=gateway.port(Controls), chance=gateway.port(SeededRandom))


def _phones(gateway: Runtime) -> Phones:
    return Phones(
        db=gateway.db, prompts=gateway.port(Prompts), c2b=gateway.port(C2bPayments), pulse=gateway.port(ChangeSignal)
    )


def make_front(gateway: Runtime, app: ASGIApp) -> RootRoutes:
    return RootRoutes(app, gateway.port(SimulatedDaraja), is_alone=len(gateway.contributed(Plugin)) == 1)


PROVIDES: Provides = (
    # First: the fixture `simulator` of plugins' tests.
    (Prompts, _prompts),
    (CallbackPoster, _poster),
    (C2bRegistrations, _registrations),
    (C2bConfirmations, _confirmations),
    (C2bPayments, _c2b),
    (QrCodes, _qr_codes),
    (SimulatedDaraja, _daraja),
    (CallbackCaller, _caller),
    (Controls, _controls),
    (Results, _results),
    (Statements, _statements),
    (SeededRandom, _chance),
    (ExchangeLog, lambda gateway: ExchangeLog(gateway.clock, gateway.port(ChangeSignal))),
    (ChangeSignal, lambda _: ChangeSignal()),
    (DueSignal, lambda _: DueSignal()),
    (Phones, _phones),
)
