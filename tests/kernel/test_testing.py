"""Protects the shipped test fixtures: clear errors, separate databases and keyspaces, no files left."""

import asyncio
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.testing import pytest_plugin
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database
from mpesa_gateway.testing.serving import Api, gateway_values, listening, running_gateway, serving


async def refuses_to_start(scope: Any, receive: Any, send: Any) -> None:
    """An application whose startup fails."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


async def test_serving_an_application_that_does_not_start_raises() -> None:
    with listening() as at, pytest.raises(RuntimeError, match="did not start"):
        async with serving(refuses_to_start, at):
            pytest.fail("it was served")


async def test_listening_sockets_have_tcp_nodelay() -> None:
    """Without TCP_NODELAY each answer over a kept connection takes 40 ms."""
    accepted: asyncio.Queue[int] = asyncio.Queue()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        accepted.put_nowait(option)

    with listening() as at:
        async with await asyncio.start_server(accept, sock=at):
            _, writer = await asyncio.open_connection(*at.getsockname())
            assert await accepted.get() == 1
            writer.close()


async def test_running_gateways_in_sequence_share_only_the_application(values: dict[str, Any]) -> None:
    used: list[Any] = []
    for number in (1, 2):
        public_url = f"https://pay-{number}.example.co.ke"
        async with running_gateway(values | {"public_url": public_url}) as (gateway, base):
            used.append(gateway.asgi.litestar)
            assert used[-1].state.gateway is gateway
            api = Api(base, None)
            assert (await api.call("GET", "/schema/openapi.json")).body["servers"] == [{"url": public_url}]
            await api.close()
            other = Gateway(GatewayConfig.from_values(values))
            assert other.asgi.litestar is not used[-1]
        assert used[-1].state.gateway is None
    assert used[0] is used[1]
    async with running_gateway(values | {"http": {"max_body_bytes": 4096}}) as (gateway, _):
        assert gateway.asgi.litestar is not used[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_keyspaces_of_processes_with_one_valkey_are_separate(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    for number in range(count):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{number}")
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(count))
        servers = Servers("", "", databases=16)
        taken += {servers.next_keyspace() for _ in range(20)}
    assert sorted(taken) == list(range(1, 16))


def test_keyspaces_of_a_single_process_are_all_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    servers = Servers("", "", databases=16)
    assert [servers.next_keyspace() for _ in range(16)] == [*range(1, 16), 1]


_SCHEMA = """
SELECT format('%s.%s %s %s', c.table_name, c.column_name, c.data_type, c.column_default)
FROM information_schema.columns AS c
WHERE c.table_schema = current_schema()
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()
UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
UNION ALL SELECT format('%s/%s %s', owner, name, digest) FROM migration
ORDER BY 1
"""


async def schema_after_start(url: str, valkey_url: str, **changes: Any) -> tuple[list[str], str]:
    """Return the schema after a gateway's start, and the time of its first migration."""
    values = gateway_values(url, valkey_url, **changes)
    async with running_gateway(values) as (gateway, _):
        rows = await gateway.db.fetch(_SCHEMA)
        return [row[0] for row in rows], str(await gateway.db.fetchval("SELECT min(applied_at) FROM migration"))


async def test_databases_with_the_same_migrations_are_copies_of_one(servers: Servers, valkey_url: str) -> None:
    found: list[tuple[list[str], str]] = []
    for plugins in (["credentials"], ["credentials"], ["credentials"], ["credentials", "ops"]):
        with empty_database(servers) as url:
            found.append(await schema_after_start(url, valkey_url, plugins=plugins))
    (migrated, first), (copied, second), (again, third), (other, fourth) = found
    assert migrated == copied == again != other
    assert len(migrated) > 50
    assert second == third
    assert len({first, second, fourth}) == 3


@pytest.mark.parametrize(
    "sql", ["CREATE TABLE public.kept ()", "CREATE SCHEMA kept", "CREATE FUNCTION public.kept() RETURNS int RETURN 1"]
)
async def test_database_used_by_a_test_is_never_replaced(sql: str, servers: Servers, valkey_url: str) -> None:
    for _ in range(2):
        with empty_database(servers) as url:
            await schema_after_start(url, valkey_url, plugins=[])
    with empty_database(servers) as url:
        connection = await asyncpg.connect(url)
        await connection.execute(sql)
        await connection.close()
        await schema_after_start(url, valkey_url, plugins=[])
        connection = await asyncpg.connect(url)
        with pytest.raises((asyncpg.DuplicateTableError, asyncpg.DuplicateSchemaError, asyncpg.DuplicateFunctionError)):
            await connection.execute(sql)
        await connection.close()


async def test_database_with_an_open_connection_is_never_replaced(servers: Servers, valkey_url: str) -> None:
    for _ in range(2):
        with empty_database(servers) as url:
            await schema_after_start(url, valkey_url, plugins=[])
    with empty_database(servers) as url:
        connection = await asyncpg.connect(url)
        await schema_after_start(url, valkey_url, plugins=[])
        assert await connection.fetchval("SELECT count(*) FROM migration") > 0
        await connection.close()


async def test_database_is_empty_after_earlier_gateways(servers: Servers, valkey_url: str) -> None:
    for _ in range(3):
        with empty_database(servers) as url:
            connection = await asyncpg.connect(url)
            assert await connection.fetchval("SELECT count(*) FROM pg_class WHERE oid >= 16384") == 0
            await connection.close()
            await schema_after_start(url, valkey_url, plugins=[])


def test_servers_of_a_session_do_not_sync_to_disk(servers: Servers) -> None:
    async def settings() -> list[str]:
        connection = await asyncpg.connect(servers.database_url)
        rows = await connection.fetch(
            "SELECT current_setting(name) FROM unnest(ARRAY['fsync', 'synchronous_commit', 'full_page_writes']) AS name"
        )
        await connection.close()
        return [row[0] for row in rows]

    assert servers.aside.run(settings()) == ["off"] * 3


def test_files_of_a_killed_session_are_deleted_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_plugin, "_MEMORY", tmp_path)
    monkeypatch.setattr(pytest_plugin, "_ROOM", 0)
    long_ago = time.time() - 3600
    for name in ("killed", "running", "young"):
        folder = tmp_path / f"mpesa-gateway-tests-{name}"
        folder.mkdir()
        (folder / "lock").touch()
        os.utime(folder / "lock", (long_ago, long_ago) if name != "young" else None)
    other = tmp_path / "somebody-else"
    other.mkdir()
    with (tmp_path / "mpesa-gateway-tests-running" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = pytest_plugin._new_folder()  # pyright: ignore[reportPrivateUsage] - it has no other way in
    left = {folder.name.removeprefix("mpesa-gateway-tests-") for folder in tmp_path.iterdir()} - {
        made.name.removeprefix("mpesa-gateway-tests-")
    }
    assert left == {"running", "young", "somebody-else"}
    assert made.parent == tmp_path
