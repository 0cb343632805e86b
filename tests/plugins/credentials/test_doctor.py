"""What the doctor sees of a merchant's credentials: each thing as it should be, and as it should not."""

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
from tests.conftest import Town
from tests.looking import levels, only_merchant, seen_by
from tests.stored import change_credentials, go_live

ALL = {f"credentials.{name}": "ok" for name in ("whole", "initiator", "token")}


@pytest.fixture
async def town(values: dict[str, Any], tmp_path: Path) -> AsyncGenerator[Town]:
    """A town that has Safaricom's sandbox certificate, and where only the gateway may say what it is called."""
    file = tmp_path / "sandbox.cer"
    file.write_bytes(certificate(number=1, until=timedelta(days=99)).public_bytes(Encoding.PEM))
    # The simulator answers where the gateway does, which is known only once it listens.
    async with receiving() as receiver, running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        daraja = msgspec.structs.replace(gateway.config.daraja, sandbox_certificate=str(file))
        gateway.config = msgspec.structs.replace(gateway.config, daraja=daraja)
        yield Town(gateway, base, api, receiver)


async def look(town: Town, **examined: Any) -> dict[str, CheckResult]:
    """What is seen of the one merchant's credentials."""
    merchant = await only_merchant(town.gateway)
    return await seen_by(check_credentials, town.gateway, **({"merchant": merchant} | examined))


async def store(town: Town, **changes: Any) -> None:
    """Store whole sandbox credentials, encrypted by the gateway itself, with changes; None takes a field out."""
    password = {"security_credential": None, "initiator_password": "secret"}
    fields: dict[str, Any] = INITIATED["mpesa"] | password | changes
    body = {"provider": "mpesa", "mpesa": {name: value for name, value in fields.items() if value is not None}}
    answer = await town.api.call("PUT", "/v1/merchant/providers", body)
    assert answer.status == 200, answer.body


async def test_as_they_should_be(town: Town) -> None:
    await store(town)
    found = await look(town)
    assert levels(found) == ALL
    assert "secret" not in str(found)
    assert levels(await look(town, is_live=True)) == ALL | {"credentials.live": "note"}


async def test_none_stored(town: Town) -> None:
    await town.api.call("DELETE", "/v1/merchant/providers/mpesa")
    assert levels(await look(town)) == {"credentials.stored": "note"}
    assert levels(await look(town, is_live=True)) == {"credentials.stored": "warning"}


async def test_fields_that_are_missing_are_named(town: Town) -> None:
    await town.api.call("PUT", "/v1/merchant/providers", SANDBOX)
    found = (await look(town))["credentials.whole"]
    assert found.level == "note"
    for name in ("mpesa.initiator", "mpesa.initiator_password", "mpesa.nominated_number"):
        assert name in found.text + (found.fix or "")
    await store(town, nominated_number=None)
    found = (await look(town))["credentials.whole"]
    assert "mpesa.nominated_number" in found.text
    assert "mpesa.initiator" not in found.text


async def test_keys_that_mpesa_does_not_take(town: Town) -> None:
    await store(town)
    fault = {"operation": "oauth", "fault": "400.008.01", "times": 1}
    assert (await town.api.call("POST", "/simulator/control/faults", fault)).status == 200
    found = (await look(town))["credentials.token"]
    assert (found.level, bool(found.fix)) == ("problem", True)


async def test_live_credentials_with_the_sandboxs_shortcode(town: Town) -> None:
    await store(town)
    await go_live(town.gateway)
    found = (await look(town, is_live=True))["credentials.live"]
    assert (found.level, "174379" in found.text) == ("problem", True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://pay.example.co.ke/results", "not https"),
        ("https://pay.example.co.ke/query", "query"),
        ("https://x.ngrok.io/results", "tunnel"),
    ],
)
async def test_addresses_for_results_that_mpesa_does_not_call(town: Town, url: str, words: str) -> None:
    await store(town)
    await change_credentials(town.gateway, result_url=url)
    found = await look(town, is_live=True)
    assert (found["credentials.result_url"].level, words in found["credentials.result_url"].text) == ("problem", True)
    assert (await look(town))["credentials.result_url"].level == "note"


@pytest.mark.parametrize(
    ("credential", "words"),
    [
        ("this_is_not_base64", "not base64"),
        (b64encode(b"x" * 128).decode(), "not encrypted with the present"),
        (b64encode(b"\xff" * 256).decode(), "not encrypted with the present"),
    ],
)
async def test_an_initiators_password_that_was_not_encrypted_for_this(town: Town, credential: str, words: str) -> None:
    await store(town, security_credential=credential, initiator_password=None)
    found = (await look(town))["credentials.initiator"]
    assert (found.level, words in found.text) == ("problem", True)


async def test_an_initiators_password_from_before_the_present_certificate(town: Town) -> None:
    await store(town)
    await change_credentials(town.gateway, updated_at=town.gateway.clock.now() - timedelta(days=30))
    assert (await look(town))["credentials.initiator"].level == "warning"


async def test_without_a_certificate_nothing_can_be_said_of_it(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        await api.call("PUT", "/v1/merchant/providers", INITIATED)
        merchant = await only_merchant(gateway)
        found = await seen_by(check_credentials, gateway, merchant=merchant)
        assert found["credentials.initiator"].level == "note"


async def test_a_daraja_that_is_away_says_nothing_of_the_keys(values: dict[str, Any]) -> None:
    daraja = {"sandbox_url": "http://127.0.0.1:9"}
    async with running_gateway(values | {"daraja": daraja}) as (gateway, base), shop(gateway, base):
        merchant = await only_merchant(gateway)
        found = await seen_by(check_credentials, gateway, merchant=merchant)
        assert found["credentials.token"].level == "warning"


async def test_credentials_that_no_listed_key_opens(town: Town) -> None:
    await store(town)
    await change_credentials(town.gateway, passkey="v1.0123456789ab.AAAA")
    found = await look(town)
    assert levels(found) == {"credentials.stored": "problem"}
    assert "0123456789ab" in found["credentials.stored"].text
