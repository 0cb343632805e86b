"""Protects the doctor's checks of Daraja and of Safaricom's certificates."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.doctor.safaricom import check_certificates, check_daraja
from mpesa_gateway.testing.serving import running_gateway
from tests.authority import certificate
from tests.looking import ShiftedClock, levels, merchant_in, results_of_check
from tests.reverse_proxy import http_answer, proxying


def gateway_with(values: dict[str, Any], folder: Path, **certificates: Any) -> Gateway:
    """Return a gateway with these certificates for sandbox and live; None for a missing file."""
    files: dict[str, str] = {}
    for env, made in certificates.items():
        files[f"{env}_certificate"] = str(folder / f"{env}.cer")
        if made is not None:
            (folder / f"{env}.cer").write_bytes(certificate(**made).public_bytes(Encoding.DER))
    return Gateway(GatewayConfig.from_values(values | {"daraja": files}))


LONG = timedelta(days=300, hours=1)
SANDBOX = {"name": "sandbox.example", "until": LONG, "number": 1}
LIVE = {"name": "live.example", "until": LONG, "number": 2}


async def test_look_at_certificates_in_order_reports_ok(values: dict[str, Any], tmp_path: Path) -> None:
    gateway = gateway_with(values, tmp_path, sandbox=SANDBOX, live=LIVE)
    merchants = (merchant_in("sandbox", gateway), merchant_in("live", gateway))
    found = await results_of_check(check_certificates, gateway, is_live=True, merchants=merchants)
    assert levels(found) == {"certificate.live": "ok", "certificate.sandbox": "ok"}
    assert f"{gateway.clock.now() + LONG:%Y-%m-%d}" in found["certificate.live"].text


@pytest.mark.parametrize(
    ("live", "level", "words"),
    [
        (None, "problem", "cannot be read"),
        # Safaricom's own are expired, and still in use.
        ({"until": timedelta(days=-2)}, "warning", "expired on"),
        ({"until": timedelta(days=10, hours=1)}, "warning", "in 10 days"),
        ({"until": LONG, "since": timedelta(days=2)}, "warning", "is valid from"),
    ],
)
async def test_look_at_certificates_missing_or_invalid_live_one_is_reported(
    values: dict[str, Any], tmp_path: Path, live: Any, level: str, words: str
) -> None:
    gateway = gateway_with(values, tmp_path, live=live)
    found = (await results_of_check(check_certificates, gateway, is_live=True))["certificate.live"]
    assert (found.level, words in found.text, bool(found.fix)) == (level, True, True)


async def test_look_at_certificates_skips_the_ones_not_needed_yet(values: dict[str, Any], tmp_path: Path) -> None:
    gateway = gateway_with(values, tmp_path, sandbox=None, live=None)
    assert levels(await results_of_check(check_certificates, gateway)) == {"certificate.sandbox": "note"}


async def test_look_at_certificates_same_one_for_both_envs_is_reported(values: dict[str, Any], tmp_path: Path) -> None:
    gateway = gateway_with(values, tmp_path, sandbox=LIVE, live=LIVE)
    assert (await results_of_check(check_certificates, gateway, is_live=True))["certificate.differ"].level == "problem"
    assert (await results_of_check(check_certificates, gateway))["certificate.differ"].level == "note"


@pytest.mark.parametrize("name", ["sandbox.example", "mpesa-gateway simulator"])
async def test_look_at_certificates_live_one_with_another_name_is_a_problem(
    values: dict[str, Any], tmp_path: Path, name: str
) -> None:
    gateway = gateway_with(values, tmp_path, live=LIVE | {"name": name})
    found = (await results_of_check(check_certificates, gateway, is_live=True))["certificate.differ"]
    assert (found.level, name in found.text) == ("problem", True)


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (20, "warning"), (-20, "warning"), (300, "problem")])
async def test_look_at_daraja_with_a_different_clock_reports_the_difference(
    values: dict[str, Any], ahead: int, level: str
) -> None:
    async with running_gateway(values, clock=ShiftedClock(ahead)) as (gateway, _):
        found = (await results_of_check(check_daraja, gateway))["daraja.sandbox"]
    assert found.level == level
    if ahead:
        assert ("ahead of" if ahead > 0 else "behind") in found.text


async def test_look_at_daraja_unreachable_is_a_problem(values: dict[str, Any]) -> None:
    daraja = {"sandbox_url": "http://127.0.0.1:9", "live_url": "http://127.0.0.1:19"}
    async with running_gateway(values | {"daraja": daraja}) as (gateway, _):
        merchants = (merchant_in("sandbox", gateway),)
        found = await results_of_check(check_daraja, gateway, is_live=True, merchants=merchants)
    assert levels(found) == {"daraja.live": "problem", "daraja.sandbox": "problem"}


async def test_look_at_daraja_without_a_date_header_is_a_note(values: dict[str, Any]) -> None:
    async with proxying() as proxy:
        proxy.answer = lambda _: http_answer("400 Bad Request", "{}")
        daraja = {"sandbox_url": f"http://127.0.0.1:{proxy.port}"}
        async with running_gateway(values | {"daraja": daraja}) as (gateway, _):
            assert levels(await results_of_check(check_daraja, gateway)) == {"daraja.sandbox": "note"}
