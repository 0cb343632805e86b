"""Protects the doctor's checks of a merchant's credentials."""

from base64 import b64encode
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mpesa_gateway.check_result import CheckResult
from mpesa_gateway.testing.receiver import receiving
from mpesa_gateway.testing.serving import INITIATED, SANDBOX, running_gateway, shop
from mpesa_gateway_credentials.doctor import check_credentials
from tests.authority import certificate
from tests.conftest import Harness
from tests.looking import levels, only_merchant, results_of_check
from tests.stored import change_credentials, go_live

ALL = {f"credentials.{name}": "ok" for name in ("whole", "initiator", "token")}


@pytest.fixture
async def harness(values: dict[str, Any], tmp_path: Path) -> AsyncGenerator[Harness]:
    """A gateway with the sandbox certificate, at its own address only."""
    file = tmp_path / "sandbox.cer"
    file.write_bytes(certificate(number=1, until=timedelta(days=99)).public_bytes(Encoding.PEM))
    # The simulator's address is the gateway's, known only after the start.
    async with receiving() as receiver, running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        daraja = msgspec.structs.replace(gateway.config.daraja, sandbox_certificate=str(file))
        gateway.config = msgspec.structs.replace(gateway.config, daraja=daraja)
        yield Harness(gateway, base, api, receiver)


async def run_checks(harness: Harness, **options: Any) -> dict[str, CheckResult]:
    merchant = await only_merchant(harness.gateway)
    return await results_of_check(check_credentials, harness.gateway, **({"merchant": merchant} | options))


async def store_credentials(harness: Harness, **changes: Any) -> None:
    """Store complete sandbox credentials with changes; the gateway encrypts the password. None omits a field."""
    password = {"security_credential": None, "initiator_password": "secret"}
    fields: dict[str, Any] = INITIATED["mpesa"] | password | changes
    body = {"provider": "mpesa", "mpesa": {name: value for name, value in fields.items() if value is not None}}
    answer = await harness.api.call("PUT", "/v1/merchant/providers", body)
    assert answer.status == 200, answer.body


async def test_doctor_with_complete_credentials_is_ok(harness: Harness) -> None:
    await store_credentials(harness)
    found = await run_checks(harness)
    assert levels(found) == ALL
    assert "secret" not in str(found)
    assert levels(await run_checks(harness, is_live=True)) == ALL | {"credentials.live": "note"}


async def test_doctor_without_credentials_notes_or_warns_if_live(harness: Harness) -> None:
    await harness.api.call("DELETE", "/v1/merchant/providers/mpesa")
    assert levels(await run_checks(harness)) == {"credentials.stored": "note"}
    assert levels(await run_checks(harness, is_live=True)) == {"credentials.stored": "warning"}


async def test_doctor_with_missing_fields_names_them(harness: Harness) -> None:
    await harness.api.call("PUT", "/v1/merchant/providers", SANDBOX)
    found = (await run_checks(harness))["credentials.whole"]
    assert found.level == "note"
    for name in ("mpesa.initiator", "mpesa.initiator_password", "mpesa.nominated_number"):
        assert name in found.text + (found.fix or "")
    await store_credentials(harness, nominated_number=None)
    found = (await run_checks(harness))["credentials.whole"]
    assert "mpesa.nominated_number" in found.text
    assert "mpesa.initiator" not in found.text


async def test_doctor_with_keys_rejected_by_mpesa_is_a_problem(harness: Harness) -> None:
    await store_credentials(harness)
    fault = {"operation": "oauth", "fault": "400.008.01", "times": 1}
    assert (await harness.api.call("POST", "/simulator/control/faults", fault)).status == 200
    found = (await run_checks(harness))["credentials.token"]
    assert (found.level, bool(found.fix)) == ("problem", True)


async def test_doctor_live_with_the_sandbox_shortcode_is_a_problem(harness: Harness) -> None:
    await store_credentials(harness)
    await go_live(harness.gateway)
    found = (await run_checks(harness, is_live=True))["credentials.live"]
    assert (found.level, "174379" in found.text) == ("problem", True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://pay.example.co.ke/results", "not https"),
        ("https://pay.example.co.ke/query", "query"),
        ("https://x.ngrok.io/results", "tunnel"),
    ],
)
async def test_doctor_result_url_that_mpesa_rejects_is_a_problem_if_live(
    harness: Harness, url: str, words: str
) -> None:
    await store_credentials(harness)
    await change_credentials(harness.gateway, result_url=url)
    found = await run_checks(harness, is_live=True)
    assert (found["credentials.result_url"].level, words in found["credentials.result_url"].text) == ("problem", True)
    assert (await run_checks(harness))["credentials.result_url"].level == "note"


@pytest.mark.parametrize(
    ("credential", "words"),
    [
        ("this_is_not_base64", "not base64"),
        (b64encode(b"x" * 128).decode(), "not encrypted with the current"),
        (b64encode(b"\xff" * 256).decode(), "not encrypted with the current"),
    ],
)
async def test_doctor_security_credential_of_another_certificate_is_a_problem(
    harness: Harness, credential: str, words: str
) -> None:
    await store_credentials(harness, security_credential=credential, initiator_password=None)
    found = (await run_checks(harness))["credentials.initiator"]
    assert (found.level, words in found.text) == ("problem", True)


async def test_doctor_security_credential_older_than_the_certificate_warns(harness: Harness) -> None:
    await store_credentials(harness)
    await change_credentials(harness.gateway, updated_at=harness.gateway.clock.now() - timedelta(days=30))
    assert (await run_checks(harness))["credentials.initiator"].level == "warning"


async def test_doctor_security_credential_without_a_certificate_is_a_note(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        await api.call("PUT", "/v1/merchant/providers", INITIATED)
        merchant = await only_merchant(gateway)
        found = await results_of_check(check_credentials, gateway, merchant=merchant)
        assert found["credentials.initiator"].level == "note"


async def test_doctor_token_with_daraja_unreachable_warns(values: dict[str, Any]) -> None:
    daraja = {"sandbox_url": "http://127.0.0.1:9"}
    async with running_gateway(values | {"daraja": daraja}) as (gateway, base), shop(gateway, base):
        merchant = await only_merchant(gateway)
        found = await results_of_check(check_credentials, gateway, merchant=merchant)
        assert found["credentials.token"].level == "warning"


async def test_doctor_credentials_sealed_with_an_unlisted_key_are_a_problem(harness: Harness) -> None:
    await store_credentials(harness)
    await change_credentials(harness.gateway, passkey="v1.0123456789ab.AAAA")
    found = await run_checks(harness)
    assert levels(found) == {"credentials.stored": "problem"}
    assert "0123456789ab" in found["credentials.stored"].text
