"""Puts the parts of this plugin together: ports for other plugins, and classes for our own use."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.chance import Chance
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.diary import Diary, DueSignal, Pulse
from mpesa_gateway_simulator.phones import Phones
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.service import SimulatedDaraja
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.statements import Statements

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


def _daraja(gateway: "Gateway") -> SimulatedDaraja:
    return SimulatedDaraja(
        db=gateway.db,
        clock=gateway.clock,
        ids=gateway.ids,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.services.get(Controls),
        results=gateway.services.get(Results),
        statements=gateway.services.get(Statements),
        chance=gateway.services.get(Chance),
        prompts=gateway.services.get(Prompts),
        caller=gateway.services.get(CallbackCaller),
        due=gateway.services.get(DueSignal),
    )


def _caller(gateway: "Gateway") -> CallbackCaller:
    return CallbackCaller(
        db=gateway.db,
        clock=gateway.clock,
        names=gateway.names,
        settings=gateway.settings(SimulatorSettings),
        chance=gateway.services.get(Chance),
        prompts=gateway.services.get(Prompts),
        pulse=gateway.services.get(Pulse),
        diary=gateway.services.get(Diary),
        due=gateway.services.get(DueSignal),
    )


def _prompts(gateway: "Gateway") -> Prompts:
    return Prompts(
        db=gateway.db,
        clock=gateway.clock,
        controls=gateway.services.get(Controls),
        results=gateway.services.get(Results),
        chance=gateway.services.get(Chance),
        pulse=gateway.services.get(Pulse),
        due=gateway.services.get(DueSignal),
    )


def _results(gateway: "Gateway") -> Results:
    return Results(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.services.get(Controls),
        chance=gateway.services.get(Chance),
    )


def _statements(gateway: "Gateway") -> Statements:
    return Statements(
        db=gateway.db,
        clock=gateway.clock,
        settings=gateway.settings(SimulatorSettings),
        controls=gateway.services.get(Controls),
        chance=gateway.services.get(Chance),
    )


def _controls(gateway: "Gateway") -> Controls:
    return Controls(db=gateway.db, settings=gateway.settings(SimulatorSettings), pulse=gateway.services.get(Pulse))


PROVIDES: "tuple[tuple[type[Any], Callable[[Gateway], Any]], ...]" = (
    # First: `gateway.simulator`, and the fixture `simulator` of plugins' tests.
    (Prompts, _prompts),
    (SimulatedDaraja, _daraja),
    (CallbackCaller, _caller),
    (Controls, _controls),
    (Results, _results),
    (Statements, _statements),
    (Chance, Chance),
    (Diary, lambda gateway: Diary(gateway.clock, gateway.services.get(Pulse))),
    (Pulse, lambda _: Pulse()),
    (DueSignal, lambda _: DueSignal()),
    (Phones, Phones),
)
