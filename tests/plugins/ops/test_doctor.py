"""Protects the doctor's check of operators."""

from mpesa_gateway.ops_contract import Role
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.doctor import check_operators
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People
from tests.conftest import Harness
from tests.looking import levels, results_of_check


async def test_doctor_without_active_operators_is_a_note(harness: Harness) -> None:
    found = await results_of_check(check_operators, harness.gateway)
    assert levels(found) == {"ops.operators": "note"}
    assert "people create" in (found["ops.operators"].fix or "")
    operators = harness.gateway.services.get(People)
    await operators.create("amina@shop.example", Secret("correct horse battery"), role=Role.VIEWER, actor="test")
    assert levels(await results_of_check(check_operators, harness.gateway)) == {"ops.operators": "ok"}
    person = await operators.find("amina@shop.example")
    await harness.gateway.port(Memberships).deactivate(person.person_id, actor="test")
    assert levels(await results_of_check(check_operators, harness.gateway)) == {"ops.operators": "note"}
