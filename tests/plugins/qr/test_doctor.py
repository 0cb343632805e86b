"""Protects the doctor's check of QR codes: a refusal is named, and is no problem for a merchant without QR codes."""

import pytest

from mpesa_gateway_qr.doctor import check_qr
from tests.conftest import Harness
from tests.looking import levels, only_merchant, results_of_check


async def _levels(harness: Harness) -> dict[str, str]:
    return levels(await results_of_check(check_qr, harness.gateway, merchant=await only_merchant(harness.gateway)))


async def test_doctor_code_is_ok(harness: Harness) -> None:
    assert await _levels(harness) == {"qr.code": "ok"}


@pytest.mark.parametrize("habit", ["internal_error", "not_base64"])
async def test_doctor_without_a_code_is_a_note(harness: Harness, habit: str) -> None:
    assert (await harness.api.call("PATCH", "/simulator/control/habits", {"qrcode": habit})).status == 200
    assert await _levels(harness) == {"qr.code": "note"}


async def test_doctor_without_credentials_asks_for_no_code(harness: Harness) -> None:
    assert (await harness.api.call("DELETE", "/v1/merchant/providers/mpesa")).status == 200
    assert await _levels(harness) == {}
