"""Signatures of callbacks: a right one is noted, a wrong one always refused, and what a missing one means is set."""

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
from tests.asgi import ask
from tests.certificates import Issued, issue
from tests.daraja import stk_callback
from tests.stored import WIPE

ASKS = "254700000020"
PASSKEY = Secret(SANDBOX["mpesa"]["passkey"])
BODY = msgspec.json.encode(stk_callback(None, 1032))


@dataclass(frozen=True)
class Door:
    """Where callbacks come in, and how they are signed."""

    gateway: Gateway
    base: str
    api: Api
    issued: Issued

    async def post(self, env: str, signature: str | None, body: bytes = BODY, name: str = HEADER) -> Answer:
        """Post to the address of a payment of this environment; nobody knows such a payment."""
        merchant_id = (await self.api.call("GET", "/v1/merchant/me")).data["id"]
        url = self.gateway.services.get(Callbacks).url_for(
            "stk",
            env=env,  # type: ignore[arg-type]
            merchant_id=merchant_id,
            subject_id=self.gateway.ids.new("pay"),
        )
        return await self.to(url.removeprefix(self.gateway.config.public_url), signature, body, name)

    async def to(self, path: str, signature: str | None, body: bytes, name: str = HEADER) -> Answer:
        """Post to this address."""
        headers = {} if signature is None else {name: signature}
        return await self.api.call("POST", path, raw=body, headers=headers)

    async def noted(self) -> list[str]:
        """What was noted about each callback that was taken, in order."""
        rows = await self.gateway.db.fetch("SELECT signature FROM callback ORDER BY received_at, callback_id")
        return [row["signature"] for row in rows]


@asynccontextmanager
async def door(values: dict[str, Any], issued: Issued, **callbacks: Any) -> AsyncGenerator[Door]:
    """A gateway whose allowlist has this machine on it, with these settings about callbacks."""
    values["callbacks"] = {"allowlist": ["127.0.0.0/8"]} | callbacks
    at = values.pop("clock", None)
    options = {} if at is None else {"clock": at}
    values["daraja"] = {"live_certificate": str(issued.path), "sandbox_url": "http://127.0.0.1:9"}
    async with running_gateway(values, **options) as (gateway, base), shop(gateway, base) as api:
        yield Door(gateway, base, api, issued)


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    """Safaricom's live certificate."""
    return issue(tmp_path / "live.cer", since=-100, days=140)


MODES = {"required": (401, 401, 200), "if_present": (200, 401, 200), "off": (200, 200, 200)}
"""How a callback without a signature, with a wrong one and with a right one is answered."""


@pytest.mark.parametrize("mode", MODES)
async def test_each_mode_takes_what_it_says_in_the_sandbox_and_live(
    values: dict[str, Any], issued: Issued, mode: str
) -> None:
    async with door(values, issued, signature=mode) as at:
        none, wrong, right = MODES[mode]
        # Signed for the other environment, over other bytes, with another key, or not base64 at all: all wrong.
        right_ones = {"sandbox": sign_with_passkey(PASSKEY, BODY), "live": issued.sign(BODY)}
        for env, signature in right_ones.items():
            other = right_ones["live" if env == "sandbox" else "sandbox"]
            assert (await at.post(env, None)).status == none
            over_nothing = sign_with_passkey(PASSKEY, b"")
            for bad in (other, signature[:-4] + "AAA=", "not base64!", "", signature + " x", over_nothing):
                answer = await at.post(env, bad)
                assert answer.status == wrong, (env, bad)
                if wrong == 401:
                    assert answer.error["code"] == "CALLBACK_REFUSED"
            assert (await at.post(env, signature)).status == right
        taken = await at.noted()
        assert taken.count("verified") == (0 if mode == "off" else 2)
        refused = await at.gateway.db.fetch("SELECT reason, merchant_id FROM refused_callback")
        assert {row["reason"] for row in refused} == (set() if wrong == 200 else {"signature"})
        assert all(row["merchant_id"] for row in refused)


@pytest.mark.parametrize("mode", ["required", "if_present"])
async def test_callback_with_two_signatures_is_refused_and_kept(
    values: dict[str, Any], issued: Issued, mode: str
) -> None:
    async with door(values, issued, signature=mode) as at:
        right, wrong = sign_with_passkey(PASSKEY, BODY), sign_with_passkey(PASSKEY, b"")
        merchant_id = (await at.api.call("GET", "/v1/merchant/me")).data["id"]
        url = at.gateway.services.get(Callbacks).url_for(
            "stk", env="sandbox", merchant_id=merchant_id, subject_id=at.gateway.ids.new("pay")
        )
        path = url.removeprefix(at.gateway.config.public_url).encode()
        for signatures in ((right, right), (right, wrong), (wrong, right), ("", right), (right, "")):
            headers = tuple((HEADER.lower().encode(), each.encode()) for each in signatures)
            kind = (b"content-type", b"application/json")
            said = await ask(at.gateway.asgi, "POST", path, (kind, *headers), (BODY,))
            assert (said.status, said.codes) == (401, ["CALLBACK_REFUSED"]), signatures
        refused = await at.gateway.db.fetch("SELECT reason FROM refused_callback")
        assert [row["reason"] for row in refused] == ["signature"] * 5
        assert await at.noted() == []
        one = ((b"content-type", b"application/json"), (HEADER.lower().encode(), right.encode()))
        assert (await ask(at.gateway.asgi, "POST", path, one, (BODY,))).status == 200


async def test_a_sandbox_signature_is_that_of_the_merchant_whose_address_it_is(
    values: dict[str, Any], issued: Issued
) -> None:
    async with door(values, issued) as at:
        await at.gateway.db.execute(WIPE)
        assert (await at.post("sandbox", sign_with_passkey(PASSKEY, BODY))).status == 401
        fields = SANDBOX["mpesa"] | {"passkey": "another-passkey-of-somebody-else"}
        stored = await at.api.call("PUT", "/v1/merchant/providers", {"provider": "mpesa", "mpesa": fields})
        assert stored.status == 200
        assert (await at.post("sandbox", sign_with_passkey(PASSKEY, BODY))).status == 401
        other = sign_with_passkey(Secret("another-passkey-of-somebody-else"), BODY)
        assert (await at.post("sandbox", other)).status == 200


async def test_without_a_token_only_safaricoms_own_key_proves_anything(values: dict[str, Any], issued: Issued) -> None:
    async with door(values, issued) as at:
        path = "/v1/webhooks/mpesa"
        assert (await at.to(path, sign_with_passkey(PASSKEY, BODY), BODY)).status == 401
        assert (await at.to(path, issued.sign(BODY), BODY)).status == 200
        assert await at.noted() == ["verified"]


async def test_the_signature_is_over_the_bytes_as_they_came(values: dict[str, Any], issued: Issued) -> None:
    async with door(values, issued) as at:
        spaced = msgspec.json.format(BODY, indent=2)
        assert (await at.post("live", issued.sign(BODY), spaced)).status == 401
        assert (await at.post("live", issued.sign(spaced), spaced)).status == 200
        # It is looked at before anything is parsed: what is no JSON is refused for its signature first.
        assert (await at.post("live", issued.sign(BODY), b"not json")).status == 401
        assert (await at.post("live", issued.sign(b"not json"), b"not json")).status == 422


async def test_the_header_can_be_named(values: dict[str, Any], issued: Issued) -> None:
    async with door(values, issued, signature="required", signature_header="X-Safaricom-Signature") as at:
        assert (await at.post("live", issued.sign(BODY))).status == 401
        assert (await at.post("live", issued.sign(BODY), name="x-safaricom-signature")).status == 200


async def test_an_expired_certificate_proves_nothing_and_its_successor_is_read_without_a_restart(
    values: dict[str, Any], issued: Issued
) -> None:
    clock = SetClock(datetime.now(UTC))
    values |= {"clock": clock, "worker": {"in_process": False}}
    async with door(values, issued) as at:
        assert (await at.post("live", issued.sign(BODY))).status == 200
        clock.advance(timedelta(days=41))
        assert (await at.post("live", issued.sign(BODY))).status == 401
        ready = (await at.api.call("GET", "/health/ready")).data
        assert (ready["ready"], ready["parts"]["certificates"]["ok"]) == (True, True)
        assert "expired on" in ready["parts"]["certificates"]["detail"]
        successor = issue(issued.path, since=0, days=400)
        clock.advance(timedelta(minutes=2))
        assert (await at.post("live", successor.sign(BODY))).status == 200
        assert (await at.post("live", issued.sign(BODY))).status == 401
        ready = (await at.api.call("GET", "/health/ready")).data
        assert ready["parts"]["certificates"]["ok"] is True


async def test_where_signatures_are_required_a_live_merchant_needs_a_certificate_at_the_start(
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


async def test_the_health_of_certificates_is_that_of_those_in_use(values: dict[str, Any], tmp_path: Path) -> None:
    """Without live merchants and initiators nobody needs one; what is there is shown all the same."""
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
