"""Protects callback signatures: a wrong one is refused in each mode, a missing one as the mode says."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.daraja.signatures import HEADER, sign_with_passkey
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.serving import SANDBOX, Answer, Api, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from tests.asgi import send_request
from tests.certificates import Issued, issue
from tests.daraja import stk_callback
from tests.stored import WIPE_SHORTCODES

ASKS = "254700000020"
PASSKEY = Secret(SANDBOX["mpesa"]["passkey"])
BODY = msgspec.json.encode(stk_callback(None, 1032))


@dataclass(frozen=True)
class CallbackClient:
    """Posts callbacks, signed or not, to a gateway."""

    gateway: Gateway
    base: str
    api: Api
    certificate: Issued

    async def post(self, env: str, signature: str | None, body: bytes = BODY, name: str = HEADER) -> Answer:
        """Post to the URL of an unknown payment of this env."""
        merchant_id = (await self.api.call("GET", "/v1/merchant/me")).data["id"]
        url = self.gateway.services.get(Callbacks).url_for(
            "stk",
            env=env,  # type: ignore[arg-type]
            merchant_id=merchant_id,
            subject_id=self.gateway.ids.new("pay"),
        )
        return await self.to(url.removeprefix(self.gateway.config.public_url), signature, body, name)

    async def to(self, path: str, signature: str | None, body: bytes, name: str = HEADER) -> Answer:
        headers = {} if signature is None else {name: signature}
        return await self.api.call("POST", path, raw=body, headers=headers)

    async def recorded(self) -> list[str]:
        """Returns the signature state of each accepted callback, oldest first."""
        rows = await self.gateway.db.fetch("SELECT signature FROM callback ORDER BY received_at, callback_id")
        return [row["signature"] for row in rows]


@asynccontextmanager
async def callback_client(
    values: dict[str, Any], certificate: Issued, **callbacks: Any
) -> AsyncGenerator[CallbackClient]:
    """A gateway with these callback settings whose allowlist contains this machine."""
    values["callbacks"] = {"allowlist": ["127.0.0.0/8"]} | callbacks
    clock = values.pop("clock", None)
    options = {} if clock is None else {"clock": clock}
    values["daraja"] = {"live_certificate": str(certificate.path), "sandbox_url": "http://127.0.0.1:9"}
    async with running_gateway(values, **options) as (gateway, base), shop(gateway, base) as api:
        yield CallbackClient(gateway, base, api, certificate)


@pytest.fixture
def certificate(tmp_path: Path) -> Issued:
    """Safaricom's live certificate."""
    return issue(tmp_path / "live.cer", since=-100, days=140)


MODES = {"required": (401, 401, 200), "if_present": (200, 401, 200), "off": (200, 200, 200)}
"""The HTTP status for no signature, a wrong one and a valid one, by mode."""


@pytest.mark.parametrize("mode", MODES)
async def test_signature_modes_answer_missing_wrong_and_valid_ones_in_each_env(
    values: dict[str, Any], certificate: Issued, mode: str
) -> None:
    async with callback_client(values, certificate, signature=mode) as client:
        none, wrong, right = MODES[mode]
        # Wrong: signed for the other env, over other bytes, with another key, or not base64.
        right_ones = {"sandbox": sign_with_passkey(PASSKEY, BODY), "live": certificate.sign(BODY)}
        for env, signature in right_ones.items():
            other = right_ones["live" if env == "sandbox" else "sandbox"]
            assert (await client.post(env, None)).status == none
            over_nothing = sign_with_passkey(PASSKEY, b"")
            for bad in (other, signature[:-4] + "AAA=", "not base64!", "", signature + " x", over_nothing):
                answer = await client.post(env, bad)
                assert answer.status == wrong, (env, bad)
                if wrong == 401:
                    assert answer.error["code"] == "CALLBACK_REFUSED"
            assert (await client.post(env, signature)).status == right
        taken = await client.recorded()
        assert taken.count("verified") == (0 if mode == "off" else 2)
        refused = await client.gateway.db.fetch("SELECT reason, merchant_id FROM refused_callback")
        assert {row["reason"] for row in refused} == (set() if wrong == 200 else {"signature"})
        assert all(row["merchant_id"] for row in refused)


@pytest.mark.parametrize("mode", ["required", "if_present"])
async def test_callback_with_two_signatures_is_refused_and_stored(
    values: dict[str, Any], certificate: Issued, mode: str
) -> None:
    async with callback_client(values, certificate, signature=mode) as client:
        right, wrong = sign_with_passkey(PASSKEY, BODY), sign_with_passkey(PASSKEY, b"")
        merchant_id = (await client.api.call("GET", "/v1/merchant/me")).data["id"]
        url = client.gateway.services.get(Callbacks).url_for(
            "stk", env="sandbox", merchant_id=merchant_id, subject_id=client.gateway.ids.new("pay")
        )
        path = url.removeprefix(client.gateway.config.public_url).encode()
        for signatures in ((right, right), (right, wrong), (wrong, right), ("", right), (right, "")):
            headers = tuple((HEADER.lower().encode(), each.encode()) for each in signatures)
            kind = (b"content-type", b"application/json")
            answer = await send_request(client.gateway.asgi, "POST", path, (kind, *headers), (BODY,))
            assert (answer.status, answer.codes) == (401, ["CALLBACK_REFUSED"]), signatures
        refused = await client.gateway.db.fetch("SELECT reason FROM refused_callback")
        assert [row["reason"] for row in refused] == ["signature"] * 5
        assert await client.recorded() == []
        one = ((b"content-type", b"application/json"), (HEADER.lower().encode(), right.encode()))
        assert (await send_request(client.gateway.asgi, "POST", path, one, (BODY,))).status == 200


async def test_sandbox_signature_with_another_merchants_passkey_is_refused(
    values: dict[str, Any], certificate: Issued
) -> None:
    async with callback_client(values, certificate) as client:
        await client.gateway.db.execute(WIPE_SHORTCODES)
        assert (await client.post("sandbox", sign_with_passkey(PASSKEY, BODY))).status == 401
        fields = SANDBOX["mpesa"] | {"passkey": "another-passkey-of-somebody-else"}
        stored = await client.api.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": fields})
        assert stored.status == 200
        assert (await client.post("sandbox", sign_with_passkey(PASSKEY, BODY))).status == 401
        other = sign_with_passkey(Secret("another-passkey-of-somebody-else"), BODY)
        assert (await client.post("sandbox", other)).status == 200


async def test_callback_without_token_needs_a_signature_of_safaricoms_key(
    values: dict[str, Any], certificate: Issued
) -> None:
    async with callback_client(values, certificate) as client:
        path = "/v1/webhooks/mpesa"
        assert (await client.to(path, sign_with_passkey(PASSKEY, BODY), BODY)).status == 401
        assert (await client.to(path, certificate.sign(BODY), BODY)).status == 200
        assert await client.recorded() == ["verified"]


async def test_signature_is_verified_over_the_received_bytes(values: dict[str, Any], certificate: Issued) -> None:
    async with callback_client(values, certificate) as client:
        spaced = msgspec.json.format(BODY, indent=2)
        assert (await client.post("live", certificate.sign(BODY), spaced)).status == 401
        assert (await client.post("live", certificate.sign(spaced), spaced)).status == 200
        # The signature is verified before the body is parsed.
        assert (await client.post("live", certificate.sign(BODY), b"not json")).status == 401
        assert (await client.post("live", certificate.sign(b"not json"), b"not json")).status == 422


async def test_signature_header_setting_names_the_header(values: dict[str, Any], certificate: Issued) -> None:
    async with callback_client(
        values, certificate, signature="required", signature_header="X-Safaricom-Signature"
    ) as client:
        assert (await client.post("live", certificate.sign(BODY))).status == 401
        assert (await client.post("live", certificate.sign(BODY), name="x-safaricom-signature")).status == 200


async def test_expired_certificate_is_refused_and_its_successor_read_without_restart(
    values: dict[str, Any], certificate: Issued
) -> None:
    clock = SetClock(datetime.now(UTC))
    values |= {"clock": clock, "worker": {"in_process": False}}
    async with callback_client(values, certificate) as client:
        assert (await client.post("live", certificate.sign(BODY))).status == 200
        clock.advance(timedelta(days=41))
        assert (await client.post("live", certificate.sign(BODY))).status == 401
        ready = (await client.api.call("GET", "/health/ready")).data
        assert (ready["ready"], ready["parts"]["certificates"]["ok"]) == (True, True)
        assert "expired on" in ready["parts"]["certificates"]["detail"]
        successor = issue(certificate.path, since=0, days=400)
        clock.advance(timedelta(minutes=2))
        assert (await client.post("live", successor.sign(BODY))).status == 200
        assert (await client.post("live", certificate.sign(BODY))).status == 401
        ready = (await client.api.call("GET", "/health/ready")).data
        assert ready["parts"]["certificates"]["ok"] is True


async def test_start_with_required_signatures_and_a_live_merchant_needs_a_certificate(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["plugins"] = [name for name in values["plugins"] if name != "simulator"]
    values.pop("simulator")
    values |= {
        "callbacks": {"signature": "required"},
        "daraja": {"live_certificate": str(tmp_path / "none.cer")},
        "worker": {"in_process": False},
    }
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        merchant = await gateway.merchants.create("Real money", actor="test")
        await gateway.merchants.set_envs(merchant.merchant_id, ["live"])
    with pytest.raises(ConfigError, match=r"callbacks.signature is `required`.*none.cer"):
        await Gateway(GatewayConfig.from_values(values)).start()
    issue(tmp_path / "none.cer", since=-10, days=5)
    with pytest.raises(ConfigError, match=r"callbacks.signature is `required`.*expired"):
        await Gateway(GatewayConfig.from_values(values)).start()
    issue(tmp_path / "none.cer")
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        assert gateway.is_running


async def test_readiness_of_certificates_counts_those_in_use(values: dict[str, Any], tmp_path: Path) -> None:
    """Without live merchants and initiators no certificate is needed; the files are reported all the same."""
    values["daraja"] = {
        "sandbox_url": "http://127.0.0.1:9",
        "live_certificate": str(tmp_path / "live.cer"),
        "sandbox_certificate": str(tmp_path / "sandbox.cer"),
    }
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:

        async def part() -> Any:
            return (await api.call("GET", "/health/ready")).data["parts"]["certificates"]

        assert await part() == {"ok": True, "detail": "none in use"}
        issue(tmp_path / "sandbox.cer", days=10)
        shown = await part()
        assert (shown["ok"], "sandbox until" in shown["detail"]) == (False, True)
        issue(tmp_path / "sandbox.cer", days=100)
        assert (await part())["ok"] is True
        merchant = await gateway.merchants.create("Real money", actor="test")
        await gateway.merchants.set_envs(merchant.merchant_id, ["live"])
        shown = await part()
        assert (shown["ok"], "daraja.live_certificate" in shown["detail"]) == (False, True)
        issue(tmp_path / "live.cer", days=100)
        shown = await part()
        assert (shown["ok"], "live until" in shown["detail"], "sandbox until" in shown["detail"]) == (True, True, True)
