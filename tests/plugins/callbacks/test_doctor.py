"""What the doctor sees of callbacks: each thing as it should be, and as it should not."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.check_result import CheckResult
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.testing.serving import Api, running_gateway
from mpesa_gateway_callbacks.doctor import check_callbacks
from mpesa_gateway_callbacks.settings import SAFARICOM
from tests.identifiers import identifier, identifiers, literal
from tests.looking import levels, seen_by

KEPT = f"""
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, handle, result_code, body, due_at,
    subject_id, env, merchant_id)
VALUES ($1, 'stk', substr(sha256(uuid_send($1)), 1, 16), now() - interval '2 hours', $2, '', '0', '{{}}', now(),
    {literal("pay")}, $3, {literal("mer")})
"""  # noqa: S608 - ids that the test chose
REFUSED = """
INSERT INTO refused_callback (refused_id, kind, at, source, reason, body)
SELECT id, 'stk', now(), $1, $2, '' FROM unnest($3::uuid[]) AS id
"""


async def look(values: dict[str, Any], *, is_live: bool = True, **settings: Any) -> dict[str, CheckResult]:
    """What is seen with these settings of callbacks."""
    own = {"callbacks": settings, "worker": {"in_process": False}}
    async with running_gateway(values | own) as (gateway, _):
        return await seen_by(check_callbacks, gateway, is_live=is_live)


async def test_as_they_should_be(values: dict[str, Any]) -> None:
    assert levels(await look(values)) == {
        "callbacks.allowlist": "ok",
        "callbacks.signature": "ok",
        "callbacks.sources": "note",
    }


@pytest.mark.parametrize(
    ("settings", "live", "sandbox"),
    [
        ({"enforce_allowlist": "never"}, "problem", "note"),
        ({"allowlist": list(SAFARICOM[1:])}, "warning", "warning"),
        ({"allowlist": []}, "warning", "warning"),
        ({"allowlist": ["0.0.0.0/0"]}, "warning", "warning"),
        ({"allowlist": ["196.201.212.0/22"]}, "ok", "ok"),
        ({"enforce_allowlist": "always"}, "ok", "ok"),
    ],
)
async def test_an_allowlist_that_lets_the_wrong_ones_in(
    values: dict[str, Any], settings: dict[str, Any], live: str, sandbox: str
) -> None:
    assert (await look(values, **settings))["callbacks.allowlist"].level == live
    assert (await look(values, is_live=False, **settings))["callbacks.allowlist"].level == sandbox


@pytest.mark.parametrize("mode", ["required", "off"])
async def test_signatures_that_keep_all_out_or_nobody(values: dict[str, Any], mode: str) -> None:
    assert (await look(values, signature=mode))["callbacks.signature"].level == "warning"


async def keep(gateway: Gateway, number: int, source: str, env: str) -> None:
    """Store a callback of two hours ago."""
    made = gateway.clock.now() - timedelta(hours=2)
    await gateway.db.execute(KEPT, identifier("cbk", number, at=made), source, env)


async def refuse(gateway: Gateway, source: str, reason: str, numbers: Iterable[int]) -> None:
    """Store callbacks that were refused now."""
    await gateway.db.execute(REFUSED, source, reason, identifiers("ref", numbers, at=gateway.clock.now()))


async def sources(gateway: Gateway) -> CheckResult:
    """What is said of those who sent callbacks."""
    return (await seen_by(check_callbacks, gateway, is_live=True))["callbacks.sources"]


async def test_a_proxy_that_stands_for_everybody(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await refuse(gateway, "196.201.214.200", "token", range(3))
        await keep(gateway, 1, "127.0.0.1", "sandbox")
        # The simulator is no proxy.
        assert (await sources(gateway)).level == "note"
        await keep(gateway, 2, "196.201.214.200", "live")
        found = await sources(gateway)
        assert (found.level, "196.201.214.200" in found.text) == ("ok", True)
        await refuse(gateway, "10.0.0.7", "source", range(3, 5))
        found = await sources(gateway)
        # It has named nobody: to trust it helps in nothing, and lets whoever is there pose as Safaricom.
        assert (found.level, "10.0.0.7" in found.text, "add" in (found.fix or "")) == ("warning", True, False)
        await gateway.db.execute("UPDATE refused_callback SET was_forwarded = true WHERE source = '10.0.0.7'")
        found = await sources(gateway)
        assert (found.level, 'add "10.0.0.7"' in (found.fix or "")) == ("warning", True)


OUTSIDE = (
    "41.90.0.1",
    "203.0.113.9",
    "198.51.100.1",
    "192.0.2.1",
    "240.0.0.1",
    "224.0.0.1",
    "2001:db8::1",
    "2002:a00:1::1",
    "64:ff9b::a00:1",
)


@pytest.mark.parametrize("source", OUTSIDE)
async def test_nobody_outside_is_ever_to_be_trusted(values: dict[str, Any], source: str) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await refuse(gateway, source, "source", range(2))
        await gateway.db.execute("UPDATE refused_callback SET was_forwarded = true")
        found = await sources(gateway)
        assert "trusted_proxies" not in f"{found.fix}"


@pytest.mark.parametrize(
    ("trusted", "forwarded", "source", "was_forwarded"),
    [
        ([], None, "127.0.0.1", False),
        ([], "41.90.0.1", "127.0.0.1", True),
        (["127.0.0.1"], "41.90.0.1, 10.0.0.9", "10.0.0.9", True),
        (["127.0.0.1"], "10.0.0.9", "10.0.0.9", False),
        (["127.0.0.1"], "41.90.0.1", "41.90.0.1", False),
    ],
)
async def test_who_says_for_whom_it_asks_is_known_for_a_proxy(
    values: dict[str, Any], trusted: list[str], forwarded: str | None, source: str, was_forwarded: bool
) -> None:
    values["security"]["trusted_proxies"] = trusted
    values |= {"worker": {"in_process": False}, "callbacks": {"enforce_allowlist": "always", "allowlist": ["10.9.9.9"]}}
    async with running_gateway(values) as (gateway, base):
        api = Api(base, None)
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        assert (await api.call("POST", "/v1/webhooks/mpesa", {"Body": {}}, headers=headers)).status == 403
        await api.close()
        row = await gateway.db.fetchrow("SELECT source, was_forwarded FROM refused_callback")
        assert row is not None
        assert (row["source"], row["was_forwarded"]) == (source, was_forwarded)


async def test_sandbox_callbacks_through_such_a_proxy_show_it_before_going_live(values: dict[str, Any]) -> None:
    daraja = {"sandbox_url": DarajaConfig().sandbox_url}
    async with running_gateway(values | {"worker": {"in_process": False}, "daraja": daraja}) as (gateway, _):
        await keep(gateway, 1, "10.0.0.7", "sandbox")
        assert (await sources(gateway)).level == "warning"


async def test_what_was_refused_and_what_waits(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await refuse(gateway, "41.90.0.1", "token", range(3))
        await refuse(gateway, "41.90.0.1", "source", range(3, 4))
        await keep(gateway, 1, "196.201.214.200", "live")
        found = await seen_by(check_callbacks, gateway)
        assert found["callbacks.refused"].level == "note"
        assert "3 for their token, 1 for their source" in found["callbacks.refused"].text
        assert (found["callbacks.waiting"].level, found["callbacks.waiting"].text[:1]) == ("warning", "1")
        later = gateway.clock.now() + timedelta(days=8)
        assert "callbacks.refused" not in await seen_by(check_callbacks, gateway, now=later)
