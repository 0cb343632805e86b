"""Protects the doctor's checks of callbacks: allowlist, signatures, sources, refused and waiting callbacks."""

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
from tests.looking import levels, results_of_check

KEPT = f"""
INSERT INTO callback (callback_id, kind, fingerprint, received_at, source, handle, result_code, stored_body, due_at,
    subject_id, env, merchant_id)
VALUES ($1, 'stk', substr(sha256(uuid_send($1)), 1, 16), now() - interval '2 hours', $2, '', '0', '{{}}', now(),
    {literal("pay")}, $3, {literal("mer")})
"""  # noqa: S608 - ids that the test chose
REFUSED = """
INSERT INTO refused_callback (refused_id, kind, at, source, reason, body)
SELECT id, 'stk', now(), $1, $2, '' FROM unnest($3::uuid[]) AS id
"""


async def run_checks(values: dict[str, Any], *, is_live: bool = True, **settings: Any) -> dict[str, CheckResult]:
    """Returns the observations with these settings of callbacks."""
    own = {"callbacks": settings, "worker": {"in_process": False}}
    async with running_gateway(values | own) as (gateway, _):
        return await results_of_check(check_callbacks, gateway, is_live=is_live)


async def test_doctor_with_default_settings_is_ok(values: dict[str, Any]) -> None:
    assert levels(await run_checks(values)) == {
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
async def test_doctor_allowlist_with_wrong_addresses_warns(
    values: dict[str, Any], settings: dict[str, Any], live: str, sandbox: str
) -> None:
    assert (await run_checks(values, **settings))["callbacks.allowlist"].level == live
    assert (await run_checks(values, is_live=False, **settings))["callbacks.allowlist"].level == sandbox


@pytest.mark.parametrize("mode", ["required", "off"])
async def test_doctor_signatures_required_or_off_warns(values: dict[str, Any], mode: str) -> None:
    assert (await run_checks(values, signature=mode))["callbacks.signature"].level == "warning"


async def store_callback(gateway: Gateway, number: int, source: str, env: str) -> None:
    """Store a callback that was received two hours ago."""
    made = gateway.clock.now() - timedelta(hours=2)
    await gateway.db.execute(KEPT, identifier("cbk", number, at=made), source, env)


async def store_refused(gateway: Gateway, source: str, reason: str, numbers: Iterable[int]) -> None:
    """Store callbacks that were refused now."""
    await gateway.db.execute(REFUSED, source, reason, identifiers("ref", numbers, at=gateway.clock.now()))


async def check_sources(gateway: Gateway) -> CheckResult:
    return (await results_of_check(check_callbacks, gateway, is_live=True))["callbacks.sources"]


async def test_doctor_sources_behind_an_untrusted_proxy_warns(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await store_refused(gateway, "196.201.214.200", "token", range(3))
        await store_callback(gateway, 1, "127.0.0.1", "sandbox")
        # The simulator is not a proxy.
        assert (await check_sources(gateway)).level == "note"
        await store_callback(gateway, 2, "196.201.214.200", "live")
        found = await check_sources(gateway)
        assert (found.level, "196.201.214.200" in found.text) == ("ok", True)
        await store_refused(gateway, "10.0.0.7", "source", range(3, 5))
        found = await check_sources(gateway)
        # It sent no X-Forwarded-For: trusting it would let any sender there pose as Safaricom.
        assert (found.level, "10.0.0.7" in found.text, "add" in (found.fix or "")) == ("warning", True, False)
        await gateway.db.execute("UPDATE refused_callback SET was_forwarded = true WHERE source = '10.0.0.7'")
        found = await check_sources(gateway)
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
async def test_doctor_sources_never_suggests_trusting_a_public_address(values: dict[str, Any], source: str) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await store_refused(gateway, source, "source", range(2))
        await gateway.db.execute("UPDATE refused_callback SET was_forwarded = true")
        found = await check_sources(gateway)
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
async def test_refused_callback_records_the_hop_that_sent_forwarded_for(
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


async def test_doctor_sources_of_sandbox_callbacks_behind_a_proxy_warns(values: dict[str, Any]) -> None:
    daraja = {"sandbox_url": DarajaConfig().sandbox_url}
    async with running_gateway(values | {"worker": {"in_process": False}, "daraja": daraja}) as (gateway, _):
        await store_callback(gateway, 1, "10.0.0.7", "sandbox")
        assert (await check_sources(gateway)).level == "warning"


async def test_doctor_counts_refused_and_waiting_callbacks(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}) as (gateway, _):
        await store_refused(gateway, "41.90.0.1", "token", range(3))
        await store_refused(gateway, "41.90.0.1", "source", range(3, 4))
        await store_callback(gateway, 1, "196.201.214.200", "live")
        found = await results_of_check(check_callbacks, gateway)
        assert found["callbacks.refused"].level == "note"
        assert "3 for their token, 1 for their source" in found["callbacks.refused"].text
        assert (found["callbacks.waiting"].level, found["callbacks.waiting"].text[:1]) == ("warning", "1")
        later = gateway.clock.now() + timedelta(days=8)
        assert "callbacks.refused" not in await results_of_check(check_callbacks, gateway, now=later)
