"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from mpesa_gateway.asgi_types import ASGIApp
from mpesa_gateway.plugin import Plugin, Provides
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.chance import Chance
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.diary import Diary, DueSignal, Pulse
from mpesa_gateway_simulator.front import Front
from mpesa_gateway_simulator.phones import Phones
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.results import Results
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
        chance=gateway.port(Chance),
        prompts=gateway.port(Prompts),
        caller=gateway.port(CallbackCaller),
        due=gateway.port(DueSignal),
    )


def _caller(gateway: Runtime) -> CallbackCaller:
    return CallbackCaller(
        db=gateway.db,
        clock=gateway.clock,
        names=gateway.names,
        settings=gateway.settings(SimulatorSettings),
        chance=gateway.port(Chance),
        prompts=gateway.port(Prompts),
        pulse=gateway.port(Pulse),
        diary=gateway.port(Diary),
        due=gateway.port(DueSignal),
    )


def _prompts(gateway: Runtime) -> Prompts:
    return Prompts(
        db=gateway.db,
        clock=gateway.clock,
        controls=gateway.port(Controls),
        results=gateway.port(Results),
        chance=gateway.port(Chance),
        pulse=gateway.port(Pulse),
        due=gateway.port(DueSignal),
    )


def _results(gateway: Runtime) -> Results:
    return Results(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.port(Controls),
        chance=gateway.port(Chance),
    )


def _statements(gateway: Runtime) -> Statements:
    return Statements(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.port(Controls),
        chance=gateway.port(Chance),
    )


def _controls(gateway: Runtime) -> Controls:
    return Controls(db=gateway.db, settings=gateway.settings(SimulatorSettings), pulse=gateway.port(Pulse))


def _chance(gateway: Runtime) -> Chance:
    return Chance(db=gateway.db, ids=gateway.ids, seed=gateway.settings(SimulatorSettings).seed)


def _phones(gateway: Runtime) -> Phones:
    return Phones(db=gateway.db, prompts=gateway.port(Prompts), pulse=gateway.port(Pulse))


def make_front(gateway: Runtime, app: ASGIApp) -> Front:
    """Return the layer in front of all routes."""
    return Front(app, gateway.port(SimulatedDaraja), is_alone=len(gateway.contributed(Plugin)) == 1)


PROVIDES: Provides = (
    # First: the fixture `simulator` of plugins' tests.
    (Prompts, _prompts),
    (SimulatedDaraja, _daraja),
    (CallbackCaller, _caller),
    (Controls, _controls),
    (Results, _results),
    (Statements, _statements),
    (Chance, _chance),
    (Diary, lambda gateway: Diary(gateway.clock, gateway.port(Pulse))),
    (Pulse, lambda _: Pulse()),
    (DueSignal, lambda _: DueSignal()),
    (Phones, _phones),
)
