"""Protects the doctor's check of the simulator."""

from typing import Any

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway_simulator.doctor import check_simulator
from tests.looking import levels, results_of_check


async def test_doctor_simulator_in_a_live_gateway_warns(values: dict[str, Any]) -> None:
    gateway = Gateway(GatewayConfig.from_values(values))
    assert levels(await results_of_check(check_simulator, gateway)) == {"simulator.enabled": "note"}
    assert levels(await results_of_check(check_simulator, gateway, is_live=True)) == {"simulator.enabled": "warning"}
