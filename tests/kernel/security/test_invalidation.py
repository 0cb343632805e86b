"""Protects cached keys and credentials: changes of other processes invalidate them, and without news none is used."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.db.codecs import read_ids
from mpesa_gateway.db.invalidation import InvalidatedCache
from mpesa_gateway.errors import InvalidKey, ProviderNotConfigured
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway.testing.serving import INITIATED, eventually
from mpesa_gateway_credentials.reader import CredentialReader
from mpesa_gateway_credentials.schemas import SetProvider
from mpesa_gateway_credentials.service import CredentialStore

pytestmark = pytest.mark.as_owner

ANOTHER = """
import asyncio, json, sys
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.security.scopes import Caller
from mpesa_gateway_credentials.service import CredentialStore

async def main():
    job = json.load(sys.stdin)
    async with Gateway(GatewayConfig.from_values(job["values"])).running() as gateway:
        merchant_id, key_id = job["merchant_id"], job["key_id"]
        await gateway.api_keys.revoke(merchant_id, key_id, actor="test")
        caller = Caller(merchant_id, key_id, frozenset(map(str, gateway.scopes.of_merchants)), "sandbox")
        await gateway.services.get(CredentialStore).retire(caller)

asyncio.run(main())
"""
"""A separate gateway process that revokes a key and retires its merchant's shortcode."""

REVOKE = "UPDATE api_key SET revoked_at = now() WHERE key_id = $1"
REMOVE = "UPDATE shortcode SET is_default = false, retired_at = now() WHERE merchant_id = $1"
LISTENERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"


@dataclass(frozen=True)
class Shop:
    """A merchant in a gateway with a cache of a day, so that only invalidation empties it."""

    gateway: Gateway
    merchant_id: str
    key_id: str
    key: str

    @property
    def credentials(self) -> CredentialStore:
        """The store of credentials."""
        return self.gateway.services.get(CredentialStore)

    async def is_authenticated(self) -> bool:
        """Return True if the key is accepted."""
        try:
            await self.gateway.api_keys.authenticate(self.key)
        except InvalidKey:
            return False
        return True

    async def is_configured(self) -> bool:
        """Return True if there are credentials to pay with."""
        try:
            await self.gateway.services.get(CredentialReader).get(self.merchant_id, "sandbox")
        except ProviderNotConfigured:
            return False
        return True

    async def both(self) -> tuple[bool, bool]:
        """Return both, one after the other."""
        return await self.is_authenticated(), await self.is_configured()


async def is_listening_for_changes(gateway: Gateway) -> bool:
    """Return True if the gateway listens for changes."""
    return gateway.changes.is_listening


@asynccontextmanager
async def opened(values: dict[str, Any]) -> AsyncGenerator[Shop]:
    """Yield a shop with a cached key and cached credentials."""
    values["worker"] = {"in_process": False}
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        merchant_id = (await gateway.merchants.create("Shop", actor="test")).merchant_id
        key, secret = await gateway.api_keys.create(
            merchant_id, name="k", scopes=gateway.scopes.of_merchants, env="sandbox", actor="test"
        )
        shop = Shop(gateway, merchant_id, key.key_id, secret.reveal())
        caller = Caller(merchant_id, key.key_id, frozenset(map(str, gateway.scopes.of_merchants)), "sandbox")
        await shop.credentials.store(caller, msgspec.convert(INITIATED, SetProvider))
        await eventually(lambda: is_listening_for_changes(gateway))
        for memory in (
            gateway.api_keys._known,  # pyright: ignore[reportPrivateUsage]
            shop.gateway.services.get(CredentialReader)._usable,  # pyright: ignore[reportPrivateUsage]
        ):
            memory._seconds = 86_400  # pyright: ignore[reportPrivateUsage]
        # Notifications of the changes so far arrive first.
        await asyncio.sleep(0.2)
        assert await shop.both() == (True, True)
        yield shop


async def quietly(shop: Shop, sql: str, value: str) -> None:
    """Change a row without a notification, to observe the cache."""
    config = shop.gateway.config.database
    assert config.url is not None
    connection = await asyncpg.connect(config.url.reveal(), server_settings={"search_path": config.schema})
    try:
        await read_ids(connection)
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(sql, value)
    finally:
        await connection.close()


async def test_cache_without_a_notification_keeps_its_values(values: dict[str, Any]) -> None:
    """The other tests rely on it: without a notification, the cache of a day is used."""
    async with opened(values) as shop:
        await quietly(shop, REVOKE, shop.key_id)
        await quietly(shop, REMOVE, shop.merchant_id)
        assert await shop.both() == (True, True)


async def test_cache_after_a_change_of_another_process_is_invalid_at_once(values: dict[str, Any]) -> None:
    async with opened(values) as shop:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", ANOTHER, stdin=asyncio.subprocess.PIPE)
        job = {"values": values, "merchant_id": shop.merchant_id, "key_id": shop.key_id}
        await child.communicate(json.dumps(job).encode())
        assert child.returncode == 0

        async def is_refused() -> bool:
            return await shop.both() == (False, False)

        await eventually(is_refused)


async def test_cache_without_a_listener_is_not_used_then_or_later(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(values) as shop, opened_beside(shop) as other:
        gateway = shop.gateway

        async def refuse() -> None:
            raise ConnectionRefusedError

        async def is_deaf() -> bool:
            return not gateway.changes.is_listening

        with monkeypatch.context() as away:
            away.setattr(gateway.db, "connect", refuse)
            assert await gateway.db.fetch(LISTENERS)
            await eventually(is_deaf)
            for one in (shop, other):
                await quietly(one, REVOKE, one.key_id)
                await quietly(one, REMOVE, one.merchant_id)
            assert await shop.both() == (False, False)
        await eventually(lambda: is_listening_for_changes(gateway))
        # This key was not requested in between: its cached value is older than the gap.
        assert await other.both() == (False, False)
        assert await shop.both() == (False, False)


@asynccontextmanager
async def opened_beside(shop: Shop) -> AsyncGenerator[Shop]:
    """Yield another merchant in the same gateway, cached too."""
    gateway = shop.gateway
    merchant_id = (await gateway.merchants.create("Other", actor="test")).merchant_id
    key, secret = await gateway.api_keys.create(
        merchant_id, name="k", scopes=gateway.scopes.of_merchants, env="sandbox", actor="test"
    )
    other = Shop(gateway, merchant_id, key.key_id, secret.reveal())
    caller = Caller(merchant_id, key.key_id, frozenset(map(str, gateway.scopes.of_merchants)), "sandbox")
    await other.credentials.store(caller, msgspec.convert(INITIATED, SetProvider))
    await asyncio.sleep(0.2)
    assert await other.both() == (True, True)
    assert await shop.both() == (True, True)
    yield other


async def test_cache_after_a_lost_notification_is_used_for_a_second(values: dict[str, Any]) -> None:
    async with opened(values) as shop:
        now = 100.0
        answers = iter("abc")

        async def find() -> str:
            return next(answers)

        memory = InvalidatedCache[str](shop.gateway.changes, clock=lambda: now)
        assert await memory.get("key", find) == "a"
        now = 100.7
        assert await memory.get("key", find) == "a"
        now = 101.0
        assert await memory.get("key", find) == "b"
        memory.evict("key")
        assert await memory.get("key", find) == "c"


async def test_cache_before_it_expires_is_refreshed_by_one_caller(values: dict[str, Any]) -> None:
    async with opened(values) as shop:
        now = 100.0
        asked: list[asyncio.Future[str]] = []

        async def find() -> str:
            asked.append(asyncio.get_running_loop().create_future())
            return await asked[-1]

        memory = InvalidatedCache[str](shop.gateway.changes, clock=lambda: now)
        first = asyncio.create_task(memory.get("key", find))
        await asyncio.sleep(0)
        asked[0].set_result("a")
        assert await first == "a"
        now = 100.8
        second = asyncio.create_task(memory.get("key", find))
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            assert [await memory.get("key", find) for _ in range(3)] == ["a"] * 3
        assert len(asked) == 2
        # A refresh that takes long, or fails, does not extend the cached value.
        now = 101.0
        third = asyncio.create_task(memory.get("key", find))
        await asyncio.sleep(0)
        assert len(asked) == 3
        asked[1].set_result("b")
        asked[2].set_result("c")
        assert (await second, await third) == ("b", "c")


async def test_cache_does_not_keep_values_read_before_listening(values: dict[str, Any]) -> None:
    async with opened(values) as shop:
        changes = shop.gateway.changes
        answers = iter("ab")

        async def find() -> str:
            changes.is_listening = True
            return next(answers)

        memory = InvalidatedCache[str](changes)
        changes.is_listening = False
        assert await memory.get("key", find) == "a"
        # A change between the query and the start of listening would be lost.
        assert await memory.get("key", find) == "b"
