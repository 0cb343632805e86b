"""Protects API keys, rate limits, client addresses and the audit log."""

import asyncio
import resource
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.app import Gateway
from mpesa_gateway.client_ip import client_address, read_address, read_networks
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.engine import Database
from mpesa_gateway.errors import InvalidKey
from mpesa_gateway.http.auth import scope_of
from mpesa_gateway.security.api_keys import TWO_KEYS
from mpesa_gateway.security.audit import Audit, BrokenChain, _digest  # pyright: ignore[reportPrivateUsage] - the test builds a long chain itself
from mpesa_gateway.security.scopes import ADMIN, AUDIT_READ
from mpesa_gateway.security.tables import AuditCheckpointRow, AuditPolicyRow, AuditRow
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from tests.conftest import Harness

pytestmark = pytest.mark.as_owner


async def test_api_key_is_stored_as_a_digest_with_its_last_use(harness: Harness) -> None:
    secret = harness.api.key or ""
    row = dict(await harness.gateway.db.fetchrow("SELECT * FROM api_key") or {})
    assert secret not in str(row)
    assert secret[-32:] not in str(row)
    assert row["last_used_at"] is not None
    (listed,) = await harness.gateway.api_keys.list(row["merchant_id"])
    assert listed.key_id == row["key_id"]


OTHER_KEYS = [None, "", "nonsense", "sk_test_" + "0" * 48, "sk_live_" + "x" * 48, "Bearer x"]
"""Texts that are no key, and keys that were never created."""


async def test_api_key_that_is_unknown_is_refused_with_the_same_words(harness: Harness) -> None:
    for key in OTHER_KEYS:
        api = Api(harness.base, key)
        answer = await api.call("GET", "/v1/merchant/me")
        await api.close()
        assert (answer.status, answer.error["code"]) == (401, "AUTH_INVALID_KEY"), key
        assert "X-API-Key" in answer.error["message"]


MISTAKEN = {
    "nonsense": "this is not a key of this gateway: a key is sk_test_ or sk_live_",
    "": "it is empty",
    "key_01jdk3v8rc4x9m2q7ztbn5wgae": "the ID of one",
    "whsec_" + "A" * 43 + "=": "the secret of a webhook",
    "Bearer sk_test_" + "0" * 48: "leave out the word before it",
    '"sk_test_' + "0" * 48 + '"': "quotes or an unset variable",
    "$KEY": "quotes or an unset variable",
    "sk_test_****abcd": "it is shortened",
    "sk_test_" + "0" * 24 + " " + "0" * 24: "a space or a line break",
    "SK_TEST_" + "0" * 48: "this is not a key of this gateway",
    "sk_test_" + "0" * 47: "this is not a key of this gateway",
    "sk_test_" + "0" * 49: "this is not a key of this gateway",
    "sk_prod_" + "0" * 48: "this is not a key of this gateway",
    TWO_KEYS: "two different keys",
}


async def test_api_key_of_another_form_is_explained_and_not_repeated(harness: Harness) -> None:
    for text, said in MISTAKEN.items():
        with pytest.raises(InvalidKey) as refused:
            await harness.gateway.api_keys.authenticate(text)
        message = str(refused.value)
        assert said in message, text
        assert len(text) < 9 or text not in message
    with pytest.raises(InvalidKey) as unknown:
        await harness.gateway.api_keys.authenticate("sk_test_" + "0" * 48)
    assert "unknown, revoked or expired" in str(unknown.value)


async def test_api_key_as_bearer_is_equal_to_the_header(values: dict[str, Any]) -> None:
    values["limits"] |= {"auth_failures": 1000}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as good:
        anyone, key = Api(base, None), good.key or ""
        other = "sk_test_" + "0" * 48

        async def status(**headers: str) -> tuple[int, str]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = await anyone.call("GET", "/v1/merchant/me", headers=named)
            return answer.status, "" if answer.status == 200 else answer.error["message"]

        for scheme in ("Bearer", "bearer", "BEARER"):
            assert await status(Authorization=f"{scheme} {key}") == (200, "")
        assert await status(Authorization=f"Bearer  {key}") == (200, "")
        assert await status(Authorization=f"Bearer {key}", X_API_Key=key) == (200, "")
        # Beside X-API-Key, a token of another party is a proxy's.
        for theirs in ("Bearer some.other.token", "Bearer eyJhbGciOiJub25lIn0.e30.", "bearer x"):
            assert await status(Authorization=theirs, X_API_Key=key) == (200, "")
        for ours in ("Basic dTpw", "Bearer", "Digest x", "Bearer some.other.token"):
            assert await status(Authorization=ours, X_API_Key=key) == (200, "")
            assert (await status(Authorization=ours))[0] == 401
        for headers in (
            {"Authorization": f"Bearer {other}", "X_API_Key": key},
            {"Authorization": f"Bearer {key}", "X_API_Key": other},
        ):
            refused, message = await status(**headers)
            assert (refused, "two different keys" in message) == (401, True), headers
            assert key not in message
        # A path or a query is no place for a key.
        assert (await anyone.call("GET", f"/v1/merchant/me?api_key={key}")).status == 401
        await anyone.close()


async def test_auth_failures_of_both_headers_are_counted_together(values: dict[str, Any]) -> None:
    values["limits"] |= {"auth_failures": 4}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as good:
        anyone, wrong = Api(base, None), "sk_test_" + "0" * 48
        guesses = (
            {"X-API-Key": wrong},
            {"Authorization": f"Bearer {wrong}"},
            {"Authorization": "Bearer nonsense"},
            {"Authorization": f"Bearer {wrong}", "X-API-Key": "nonsense"},
            {"Authorization": f"Bearer {wrong}"},
            {"X-API-Key": wrong},
        )
        statuses = [(await anyone.call("GET", "/v1/merchant/me", headers=headers)).status for headers in guesses]
        assert statuses == [401, 401, 401, 401, 429, 429]
        right = {"Authorization": f"Bearer {good.key}"}
        assert (await anyone.call("GET", "/v1/merchant/me", headers=right)).status == 200
        await anyone.close()


async def test_api_key_that_is_revoked_expired_or_deactivated_is_refused(harness: Harness) -> None:
    keys, merchants, scopes = harness.gateway.api_keys, harness.gateway.merchants, harness.gateway.scopes.of_merchants
    merchant = await merchants.create("Another", actor="test")

    async def make(**options: Any) -> tuple[str, str]:
        key, secret = await keys.create(
            merchant.merchant_id, name="k", scopes=scopes, env="sandbox", actor="test", **options
        )
        return key.key_id, secret.reveal()

    revoked_id, revoked = await make()
    _, expired = await make(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    _, good = await make()
    await keys.revoke(merchant.merchant_id, revoked_id, actor="test")
    for secret in (revoked, expired):
        with pytest.raises(InvalidKey):
            await keys.authenticate(secret)
    assert (await keys.authenticate(good)).merchant_id == merchant.merchant_id
    await merchants.deactivate(merchant.merchant_id, actor="test")
    with pytest.raises(InvalidKey):
        await keys.authenticate(good)


async def test_every_route_requires_the_scope_of_its_signature(harness: Harness) -> None:
    """Walks the route table, so that no new route is forgotten."""
    async with shop(harness.gateway, harness.base, scopes=(), is_configured=False) as powerless:
        walked = 0
        for route in harness.gateway.asgi.litestar.routes:
            for handler in getattr(route, "route_handlers", ()):
                scope = scope_of(handler)
                if scope is None:
                    continue
                method = next(iter(handler.http_methods - {"OPTIONS", "HEAD"}))
                path = route.path_format.replace("{", "").replace("}", "")
                answer = await powerless.call(method, path, {} if method != "GET" else None)
                assert (answer.status, answer.error["code"]) == (403, "AUTH_INSUFFICIENT_SCOPE"), (method, path)
                assert scope.name in answer.error["message"]
                walked += 1
        assert walked >= 28


async def test_auth_failures_eleventh_from_an_address_is_limited(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as good:
        api = Api(base, "sk_test_wrong")
        statuses = [(await api.call("GET", "/v1/merchant/me")).status for _ in range(10)]
        last = await api.call("GET", "/v1/merchant/me")
        await api.close()
        assert statuses == [401] * 10
        assert (last.status, last.error["code"]) == (429, "AUTH_RATE_LIMITED")
        assert 0 < int(last.headers["Retry-After"]) <= 300
        assert (await good.call("GET", "/v1/merchant/me")).status == 200


async def test_auth_failures_are_counted_by_address_and_in_ipv6_by_network(values: dict[str, Any]) -> None:
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8"]}
    values["limits"] |= {"auth_failures": 2}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as good:
        api = Api(base, "sk_test_wrong")

        async def status(address: str) -> int:
            return (await api.call("GET", "/v1/merchant/me", headers={"X-Forwarded-For": address})).status

        assert [await status(f"203.0.113.{host}") for host in (1, 2, 3, 1, 1)] == [401, 401, 401, 401, 429]
        assert [await status(f"2001:db8:0:7::{host}") for host in (1, 2, 3)] == [401, 401, 429]
        assert await status("2001:db8:0:8::1") == 401
        # Addresses that the client itself writes before the proxy's change nothing.
        assert await status("198.51.100.1, 203.0.113.1") == 429
        await api.close()
        # A right key passes from any address.
        answer = await good.call("GET", "/v1/merchant/me", headers={"X-Forwarded-For": "203.0.113.1"})
        assert answer.status == 200


async def test_rate_limit_of_a_key_refuses_further_calls(values: dict[str, Any]) -> None:
    values["limits"] = {"requests_per_second": 5, "burst": 10}
    async with running_gateway(values) as (gateway, base), shop(gateway, base, is_configured=False) as api:
        answers = await asyncio.gather(*(api.call("GET", "/v1/merchant/me") for _ in range(15)))
        refused = [answer for answer in answers if answer.status == 429]
        assert len(refused) == 5
        assert {answer.error["code"] for answer in refused} == {"RATE_LIMITED"}
        assert 1 <= int(refused[0].headers["Retry-After"]) <= 2


async def test_gateway_without_valkey_accepts_payments(values: dict[str, Any]) -> None:
    values["valkey"] = {"url": "valkey://127.0.0.1:9/0"}
    values["worker"] = {"in_process": False}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = await api.pay("254711000090", key="a")
        paid = await api.settled(made.data["id"])
        assert paid["status"] == "completed"
        ready = await api.call("GET", "/health/ready")
        assert ready.status == 200
        parts = ready.data["parts"]
        assert (parts["postgres"]["ok"], parts["valkey"]["ok"], parts["queue"]["ok"]) == (True, False, False)


async def test_audit_log_shows_a_change_of_its_entries(harness: Harness) -> None:
    audit, db = harness.gateway.audit, harness.gateway.db
    count = await audit.verify()
    assert count >= 4
    await asyncio.gather(*(audit.record("test.acted", merchant_id=None, actor="test") for _ in range(20)))
    assert await audit.verify() == count + 20
    text = str([dict(row) for row in await db.fetch("SELECT * FROM audit_entry")])
    assert "consumer-secret" not in text
    for change in ("UPDATE audit_entry SET actor = 'x'", "DELETE FROM audit_entry", "TRUNCATE audit_entry"):
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            await db.execute(change)
    # The owner of the database can disable the triggers: the chain still shows it.
    await db.execute("ALTER TABLE audit_entry DISABLE TRIGGER USER")
    await db.execute("UPDATE audit_entry SET actor = 'nobody' WHERE number = 3")
    with pytest.raises(BrokenChain, match="entry 3 "):
        await audit.verify()
    await db.execute("DELETE FROM audit_entry WHERE number = 2")
    with pytest.raises(BrokenChain, match="entry 2 "):
        await audit.verify()


SWAP = """
UPDATE audit_entry SET number = -number WHERE number IN (2, 3);
UPDATE audit_entry SET number = 5 + number WHERE number < 0
"""
TAMPERED: dict[str, tuple[str, str]] = {
    "another actor": ("UPDATE audit_entry SET actor = 'nobody' WHERE number = 3", "entry 3 "),
    "another time": ("UPDATE audit_entry SET at = at + interval '1 second' WHERE number = 2", "entry 2 "),
    "another detail": ("UPDATE audit_entry SET detail = '{}' WHERE number = 2", "entry 2 "),
    "another merchant": ("UPDATE audit_entry SET merchant_id = 'mer_x' WHERE number = 4", "entry 4 "),
    "nobody's": ("UPDATE audit_entry SET merchant_id = NULL WHERE number = 4", "entry 4 "),
    "another digest": ("UPDATE audit_entry SET digest = previous_digest WHERE number = 4", "entry 4 "),
    "removed": ("DELETE FROM audit_entry WHERE number = 2", "entry 2 "),
    "the first removed": ("DELETE FROM audit_entry WHERE number = 1", "entry 1 "),
    "removed and closed up": (
        "DELETE FROM audit_entry WHERE number = 2; UPDATE audit_entry SET number = number - 1 WHERE number > 2",
        "entry 2 ",
    ),
    "put in another order": (SWAP, "entry 2 "),
}


async def test_audit_verify_finds_every_kind_of_tampering(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        audit, db = gateway.audit, gateway.db
        for number in range(6):
            await audit.record(f"test.{number}", merchant_id="mer_test", actor="test", detail={"number": number})
        assert await audit.verify() == 6
        head = await audit.head()
        await db.execute("ALTER TABLE audit_entry DISABLE TRIGGER USER")
        await db.execute("ALTER TABLE audit_entry DROP CONSTRAINT audit_entry_number_check")
        for name, (statement, where) in TAMPERED.items():
            with pytest.raises(BrokenChain) as broken:
                await _try(gateway, statement)
            assert where in str(broken.value), name
        assert await audit.verify(head) == 6
        # A chain cannot prove its own end: a head noted elsewhere can.
        await db.execute("DELETE FROM audit_entry WHERE number > 4")
        assert await audit.verify() == 4
        with pytest.raises(BrokenChain, match="entry 6, which was noted, is missing"):
            await audit.verify(head)
        for number in range(3):
            await audit.record(f"forged.{number}", merchant_id="mer_test", actor="test")
        assert await audit.verify() == 7
        with pytest.raises(BrokenChain, match="entry 6 is not the one that was noted"):
            await audit.verify(head)


async def _try(gateway: Gateway, statement: str) -> None:
    """Tamper, verify, and roll back."""
    async with gateway.db.transaction():
        try:
            for part in statement.split(";"):
                await gateway.db.execute(part)
            await gateway.audit.verify()
        finally:
            await gateway.db.execute("ROLLBACK")
            await gateway.db.execute("BEGIN")


INSERT = """
INSERT INTO audit_entry (number, entry_id, at, merchant_id, actor, action, subject_id, detail, previous_digest, digest)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""


async def test_audit_log_of_two_processes_is_one_chain_read_in_pieces(values: dict[str, Any]) -> None:
    values["worker"] = {"in_process": False}
    config = GatewayConfig.from_values(
        {name: value for name, value in values.items() if name != "simulator"} | {"plugins": []}
    )
    async with Gateway(config).running() as gateway:
        database = Database(config.database)
        other = Audit(database, gateway.clock, gateway.ids)
        await database.start()
        database.bind([AuditRow, AuditCheckpointRow, AuditPolicyRow])
        both = (gateway.audit, other)
        await asyncio.gather(*(both[n % 2].record("test.acted", merchant_id=None, actor=f"{n}") for n in range(60)))
        assert await gateway.audit.verify() == await other.verify() == 60
        await database.stop()
        # A long log is read in pieces.
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        previous = bytes.fromhex((await gateway.audit.head()).split(":")[1])
        rows: list[tuple[Any, ...]] = []
        at = gateway.clock.now()
        detail = "x" * 500
        for number in range(61, 20_061):
            entry_id = f"aud_{number}"
            digest = _digest(previous, number, entry_id, at, None, "test", "test.acted", None, detail)
            rows.append((number, entry_id, at, None, "test", "test.acted", None, detail, previous, digest))
            previous = digest
        await gateway.db.executemany(INSERT, rows)
        del rows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await gateway.audit.verify() == 20_060
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 20_000, f"{grown} KiB more for a log of 20,000 entries"


async def test_audit_observe_of_many_events_of_one_kind_counts_them_and_hides_no_other(values: dict[str, Any]) -> None:
    clock = SetClock(datetime(2026, 11, 23, 10, tzinfo=UTC))
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values), clock=clock).running() as gateway:
        audit = gateway.audit

        async def seen(action: str) -> list[Any]:
            return [entry.detail.get("left_out") for entry in (await audit.page(100, None, action, None)).rows]

        for _ in range(20):
            await audit.observe("auth.failed", merchant_id=None, actor="unknown")
        await audit.observe("scope.denied", merchant_id=None, actor="unknown")
        assert (await seen("auth.failed"), await seen("scope.denied")) == ([None] * 5, [None])
        clock.advance(timedelta(seconds=1))
        await audit.observe("auth.failed", merchant_id=None, actor="unknown")
        assert await seen("auth.failed") == [15, *[None] * 5]
        assert await audit.verify() > 0


async def test_api_key_that_could_never_be_used_is_not_created(harness: Harness) -> None:
    async with shop(harness.gateway, harness.base, scopes=(ADMIN,), is_configured=False) as admin:
        merchant = (await admin.call("POST", "/v1/admin/merchants", {"name": "New shop"})).data
        path = f"/v1/admin/merchants/{merchant['merchant_id']}"
        past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
        cases: tuple[tuple[dict[str, Any], str], ...] = (
            ({"name": "k", "expires_at": past}, "expires_at"),
            ({"name": "k", "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
            ({"name": "k", "scopes": []}, "scopes"),
            ({"name": "  "}, "name"),
            ({"name": "k", "env": "test"}, "env"),
        )
        for body, field in cases:
            refused = await admin.call("POST", f"{path}/keys", body)
            assert (refused.status, refused.error["field"]) == (422, field), body
        soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        made = (await admin.call("POST", f"{path}/keys", {"name": "k", "expires_at": soon})).data
        assert made["key"]["expires_at"] is not None
        assert made["key"]["last_used_at"] is None
        api = Api(harness.base, made["api_key"])
        assert (await api.call("GET", "/v1/merchant/me")).status == 200
        (listed,) = (await admin.call("GET", f"{path}/keys")).data
        assert listed["last_used_at"] is not None
        await harness.gateway.db.execute("UPDATE api_key SET expires_at = now() WHERE key_id = $1", listed["key_id"])

        async def is_refused() -> bool:
            # Changed without a notification: the gateway caches the key for a second.
            return (await api.call("GET", "/v1/merchant/me")).status == 401

        await eventually(is_refused)
        await api.close()
        await admin.call("POST", f"{path}/deactivate", {"confirm": merchant["merchant_id"]})
        refused = await admin.call("POST", f"{path}/keys", {"name": "k"})
        assert (refused.status, refused.error["code"]) == (409, "CONFLICT")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/payments?since=2026-11-23T10:00:00",
        "/v1/payments/export?until=2026-11-23T10:00:00",
        "/v1/refunds?since=2026-11-23T10:00:00",
        "/v1/refunds/export?until=2026-11-23T10:00:00",
        "/v1/events?since=2026-11-23T10:00:00",
    ],
)
async def test_query_time_without_a_zone_is_refused(harness: Harness, path: str) -> None:
    answer = await harness.api.call("GET", path)
    assert (answer.status, answer.error["code"]) == (422, "VALIDATION_ERROR")


async def test_admin_routes_create_merchants_and_keys_and_read_the_log(harness: Harness) -> None:
    async with shop(harness.gateway, harness.base, scopes=(ADMIN, AUDIT_READ), is_configured=False) as admin:
        created = await admin.call("POST", "/v1/admin/merchants", {"name": "New shop"})
        merchant = created.data
        assert created.headers["Location"] == f"{harness.base}/v1/admin/merchants/{merchant['merchant_id']}"
        path = f"/v1/admin/merchants/{merchant['merchant_id']}"
        made = (await admin.call("POST", f"{path}/keys", {"name": "till", "scopes": ["payments:read"]})).data
        assert made["api_key"].startswith("sk_test_")
        api = Api(harness.base, made["api_key"])
        assert (await api.call("GET", "/v1/payments")).data == []
        assert (await api.call("GET", "/v1/merchant/me")).status == 403
        (listed,) = (await admin.call("GET", f"{path}/keys")).data
        assert "api_key" not in listed
        revoke, confirmed = f"{path}/keys/{listed['key_id']}/revoke", {"confirm": listed["key_id"]}
        for unconfirmed in (None, {}, {"confirm": merchant["merchant_id"]}):
            refused = await admin.call("POST", revoke, unconfirmed)
            assert (refused.status, refused.error["code"]) == (422, "VALIDATION_ERROR")
        refused = await admin.call("POST", revoke, {"confirm": "all"})
        assert (refused.error["field"], listed["key_id"] in refused.error["message"]) == ("confirm", True)
        assert (await admin.call("POST", revoke, confirmed)).data["revoked_at"]
        assert (await admin.call("POST", revoke, confirmed)).status == 409
        assert (await api.call("GET", "/v1/payments")).status == 401
        await api.close()
        assert (await admin.call("POST", f"{path}/deactivate", {"confirm": "mer_other"})).error["field"] == "confirm"
        deactivated = await admin.call("POST", f"{path}/deactivate", {"confirm": merchant["merchant_id"]})
        assert deactivated.data["is_active"] is False
        assert (await admin.call("GET", "/v1/admin/merchants/mer_none")).status == 404
        bad = await admin.call("POST", f"{path}/keys", {"name": "", "scopes": ["everything"]})
        said = {problem["field"]: problem["message"] for problem in bad.body["errors"]}
        assert set(said) == {"name", "scopes"}
        assert said["scopes"].startswith("each scope must be one of admin, audit:read, merchant:read, ")
        first = await admin.call("GET", "/v1/audit/logs?limit=3&count=true")
        assert [entry["action"] for entry in first.data] == ["merchant.deactivated", "auth.failed", "api_key.revoked"]
        assert first.data[0]["detail"]["from"] == "127.0.0.1"
        second = await admin.call("GET", f"/v1/audit/logs?limit=2&cursor={first.body['meta']['next_cursor']}")
        assert second.data[0]["number"] == first.data[-1]["number"] - 1
        pages = await admin.call("GET", "/v1/admin/merchants?limit=1&count=true")
        assert (pages.body["meta"]["total"], pages.body["meta"]["has_more"]) == (3, True)
    own = (await harness.api.call("GET", "/v1/audit/logs")).data
    assert {entry["merchant_id"] for entry in own} == {(await harness.api.call("GET", "/v1/merchant/me")).data["id"]}


NETWORKS = read_networks(("10.0.0.0/8", "::1/128", "127.0.0.1"), "security.trusted_proxies")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.9, 10.1.1.1"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::1", ["2001:db8::5"], "2001:db8::5"),
        (None, ["198.51.100.1"], "unknown"),
        ("unix", ["198.51.100.1"], "unknown"),
        ("10.0.0.1", ["196.201.214.200:51008"], "196.201.214.200"),
        ("10.0.0.1", ["[::ffff:196.201.214.200]:443"], "196.201.214.200"),
        ("10.0.0.1", ["::ffff:196.201.214.200"], "196.201.214.200"),
        ("10.0.0.1", ["[2001:db8::5]:443"], "2001:db8::5"),
        ("10.0.0.1", ["[2001:db8::5]"], "2001:db8::5"),
        ("10.0.0.1", ["203.0.113.9:1, [::1]:443", " 10.1.1.1:65535 "], "203.0.113.9"),
        ("10.0.0.1:5000", ["203.0.113.9"], "203.0.113.9"),
        # Not an address: the search ends at the proxy, as for any other text.
        *(
            ("10.0.0.1", [f"198.51.100.1, {text}"], "10.0.0.1")
            for text in (
                "196.201.214.200:",
                "196.201.214.200:65536",
                "196.201.214.200:x",
                "196.201.214.200:1:2",
                "[196.201.214.200]:443",
                "[::1",
                "::1]",
                "[[::1]]",
                "[::1]443",
                "[]:443",
                ":443",
                "fe80::1%eth0",
                "[fe80::1%eth0]:1",
                "1.2.3",
                "01.2.3.4",
                "1.2.3.4\u0661",
                "for=1.2.3.4",
                "",
            )
        ),
    ],
)
def test_client_address_trusts_only_headers_of_our_own_proxies(
    peer: str | None, forwarded: list[str], expected: str
) -> None:
    assert client_address(peer, forwarded, NETWORKS) == expected


@given(address=st.ip_addresses(), port=st.none() | st.integers(0, 65_535), is_mapped=st.booleans())
def test_client_address_is_read_with_any_port_and_brackets(
    address: IPv4Address | IPv6Address, port: int | None, *, is_mapped: bool
) -> None:
    expected = address
    if isinstance(address, IPv6Address):
        expected = address.ipv4_mapped or address
    elif is_mapped:
        address = IPv6Address(f"::ffff:{address}")
    text = f"[{address}]" if address.version == 6 and port is not None else str(address)
    found = client_address("10.0.0.1", [text if port is None else f"{text}:{port}"], NETWORKS)
    # There is no proxy before the written address, so it is the client even if it is a trusted one.
    assert found == str(expected)


@given(text=st.text(alphabet="0123456789abcdef.:[]%, \t", max_size=30))
def test_client_address_of_any_header_is_an_address(text: str) -> None:
    found = client_address("10.0.0.1", [text], NETWORKS)
    assert read_address(found) is not None
    assert str(read_address(found)) == found
    assert "%" not in found


def test_trusted_proxies_with_an_invalid_network_is_refused(values: dict[str, Any]) -> None:
    values["security"] |= {"trusted_proxies": ["everywhere"]}
    with pytest.raises(Exception, match=r"security\.trusted_proxies.*everywhere"):
        Gateway(GatewayConfig.from_values(values))
