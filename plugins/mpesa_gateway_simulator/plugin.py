"""The simulator plugin, declared."""

from typing import TYPE_CHECKING

from mpesa_gateway.http.vouching import Voucher
from mpesa_gateway.plugin import Plugin, Tables
from mpesa_gateway_simulator import phone_pages
from mpesa_gateway_simulator.caller import CallbackCaller
from mpesa_gateway_simulator.chance import Chance
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.daraja_routes import daraja_routes
from mpesa_gateway_simulator.diary import Diary, DueSignal, Pulse
from mpesa_gateway_simulator.doctor import CHECKS
from mpesa_gateway_simulator.front import Front
from mpesa_gateway_simulator.phones import Phones
from mpesa_gateway_simulator.prompts import Prompts
from mpesa_gateway_simulator.results import Results
from mpesa_gateway_simulator.routes import routes
from mpesa_gateway_simulator.service import SimulatedDaraja
from mpesa_gateway_simulator.settings import SimulatorSettings
from mpesa_gateway_simulator.statements import Statements
from mpesa_gateway_simulator.tables import CallbackRow, PushRow, ResultRow, ReversalRow, TransactionRow

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway


def _vouches(_gateway: object, _scope: object, _address: str) -> bool:
    """For the sandbox only: Daraja's part is called by us, as fast as we can."""
    return True


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


plugin = Plugin(
    name="simulator",
    summary="Our own Daraja for the sandbox: simulated phones that pay, cancel, or do what the real ones do at 2 a.m.",
    settings=SimulatorSettings,
    routes=(*daraja_routes, *routes, *phone_pages.routes),
    provides=(
        (SimulatedDaraja, _daraja),
        (CallbackCaller, _caller),
        (Prompts, _prompts),
        (Controls, _controls),
        (Results, _results),
        (Statements, _statements),
        (Chance, Chance),
        (Diary, lambda gateway: Diary(gateway.clock, gateway.services.get(Pulse))),
        (Pulse, lambda _: Pulse()),
        (DueSignal, lambda _: DueSignal()),
        (Phones, Phones),
    ),
    tables=Tables(
        models=(PushRow, CallbackRow, TransactionRow, ResultRow, ReversalRow),
        migrations="mpesa_gateway_simulator.migrations",
    ),
    checks=CHECKS,
    contributes=(Voucher(("/simulator",), _vouches),),
    front=Front,
)
