"""Protects the host example in each framework at two prefixes, with its own database and login."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import niquests
import pytest
import structlog

from examples.hosts import in_fastapi, in_litestar, in_starlette
from examples.hosts.theatre import Theatre, Ticket
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.litestar_host import GatewayPlugin
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database
from mpesa_gateway.testing.serving import eventually, listening, serving
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD
from tests.forking import Forked, forks
from tests.house.tree import ROOT

Application = Callable[[Theatre, str], Any]

HOSTS = pytest.mark.parametrize(
    "application", [in_starlette.application, in_fastapi.application, in_litestar.application]
)
PREFIXES = pytest.mark.parametrize("prefix", ["/payments", "/m/pesa"])


@dataclass(frozen=True)
class OpenTheatre:
    """A running host application, and a browser without cookies."""

    theatre: Theatre
    base: str
    prefix: str
    http: niquests.AsyncSession

    async def request(self, method: str, path: str, **more: Any) -> niquests.Response:
        answer: niquests.Response = await self.http.request(method, self.base + path, allow_redirects=False, **more)
        return answer

    async def paid(self, ticket_id: str) -> dict[str, Any]:
        """Return the ticket once it has a receipt."""

        async def seen() -> dict[str, Any] | None:
            found: dict[str, Any] = (await self.request("GET", f"/tickets/{ticket_id}")).json()
            return found if found["receipt"] else None

        found = await eventually(seen)
        assert found is not None
        return found


@pytest.fixture
def theatres_url(servers: Servers) -> Generator[str]:
    """Return the URL of the host's own database."""
    with empty_database(servers) as url:
        yield url


@asynccontextmanager
async def opened(
    application: Application, values: dict[str, Any], theatres_url: str, prefix: str
) -> AsyncGenerator[OpenTheatre]:
    with listening() as at:
        base = f"http://127.0.0.1:{at.getsockname()[1]}"
        values |= {"public_url": base + prefix, "daraja": {"sandbox_url": f"{base}{prefix}/simulator"}}
        theatre = Theatre(Gateway(GatewayConfig.from_values(values)), theatres_url)
        async with serving(application(theatre, prefix), at):
            http = niquests.AsyncSession()
            http.trust_env = False
            try:
                yield OpenTheatre(theatre, base, prefix, http)
            finally:
                await http.close()


async def tables_of(url: str) -> set[str]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT schemaname || '.' || tablename AS name FROM pg_tables")
    await connection.close()
    return {row["name"] for row in rows if not row["name"].startswith(("pg_catalog.", "information_schema."))}


@HOSTS
@PREFIXES
async def test_host_app_sells_a_seat_through_the_mounted_gateway(
    application: Application, values: dict[str, Any], theatres_url: str, prefix: str
) -> None:
    before = (logging.getLogger().handlers[:], logging.getLogger().level, structlog.is_configured())
    environ = dict(os.environ)
    async with opened(application, values, theatres_url, prefix) as it:
        sold = await it.request("POST", "/tickets", json={"seat": 12, "phone": "0711000001"})
        assert sold.status_code == 201, sold.text
        ticket = await it.paid(sold.json()["ticket"])
        gateway = it.theatre.gateway
        receipt = await gateway.db.fetchval("SELECT receipt FROM payment WHERE payment_id = $1", sold.json()["payment"])
        assert (ticket["seat"], ticket["receipt"]) == (12, receipt)

        document = (await it.request("GET", f"{prefix}/schema/openapi.json")).json()
        assert document["servers"] == [{"url": it.base + prefix}]
        assert "/v1/payments" in document["paths"]
        # The addresses of the OpenAPI document are the gateway's.
        listed = await niquests.aget(document["servers"][0]["url"] + "/v1/payments")
        assert (listed.status_code, listed.json()["errors"][0]["code"]) == (401, "AUTH_INVALID_KEY")

        # Each database contains its owner's tables only.
        assert await tables_of(theatres_url) == {"public.ticket"}
        assert {name.partition(".")[0] for name in await tables_of(values["database"]["url"])} == {"mpesa"}
        assert await Ticket.count() == 1
    # The gateway has stopped, and the host's Piccolo engine still works.
    assert await Ticket.count() == 1
    assert (logging.getLogger().handlers[:], logging.getLogger().level, structlog.is_configured()) == before
    assert dict(os.environ) == environ


@HOSTS
@PREFIXES
async def test_host_login_protects_the_operator_pages_only(
    application: Application, values: dict[str, Any], theatres_url: str, prefix: str
) -> None:
    values["ops"] = {"login_url": "/stage-door"}
    async with opened(application, values, theatres_url, prefix) as it:
        page = {"Accept": "text/html"}
        for path in ("/ops", "/ops/", "/ops/payments", "/%6fps/payments"):
            turned = await it.request("GET", prefix + path, headers=page)
            assert (turned.status_code, turned.headers["location"]) == (303, "/stage-door"), path
        # The gateway's passwords are not accepted here.
        await it.theatre.gateway.port(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
        login = {"email": "amina@shop.example", "password": PASSWORD.reveal()}
        await it.request("POST", f"{prefix}/ops/login", data=login, headers=page)
        assert (await it.request("GET", f"{prefix}/ops", headers=page)).status_code == 303
        assert (await it.request("GET", f"{prefix}/health/live")).status_code == 200

        badge = page | {"Cookie": f"theme=dark; badge={it.theatre.staff_password}"}
        shown = await it.request("GET", f"{prefix}/ops", headers=badge)
        assert shown.status_code == 200
        assert "manager" in (shown.text or "")


@pytest.mark.parametrize("application", [in_starlette.application, in_fastapi.application, in_litestar.application])
async def test_workers_outside_the_host_run_its_handlers(
    application: Application, values: dict[str, Any], theatres_url: str
) -> None:
    values |= {"worker": {"in_process": False}}
    async with opened(application, values, theatres_url, "/payments") as it:
        sold = (await it.request("POST", "/tickets", json={"seat": 7, "phone": "0711000001"})).json()
        await eventually(lambda: is_completed(it, sold["payment"]))
        assert (await it.request("GET", f"/tickets/{sold['ticket']}")).json()["receipt"] is None
        config = it.theatre.gateway.config
        assert config.database.url is not None
        assert config.valkey.url is not None
        assert config.security.master_key is not None
        process = worker_with(
            {
                "THEATRE_DATABASE_URL": theatres_url,
                "MPESA_GATEWAY_CONFIG": "",
                "MPESA_GATEWAY_PLUGINS": ",".join(config.plugins),
                "MPESA_GATEWAY_PUBLIC_URL": config.public_url,
                "MPESA_GATEWAY_DARAJA__SANDBOX_URL": config.daraja.sandbox_url,
                "MPESA_GATEWAY_DATABASE__URL": config.database.url.reveal(),
                "MPESA_GATEWAY_VALKEY__URL": config.valkey.url.reveal(),
                "MPESA_GATEWAY_SECURITY__MASTER_KEY": config.security.master_key.reveal(),
            }
        )
        try:
            assert (await it.paid(sold["ticket"]))["receipt"]
        finally:
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0


def worker_with(environ: dict[str, str]) -> Forked:
    """Start a worker as the host does, with these variables and no other gateway variables."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}
    words = ("worker", "--gateway", "examples.hosts.from_environment:gateway")
    with Path(os.devnull).open("wb") as nothing:
        return forks.start(words, folder=ROOT, environ=others | environ, log=nothing.fileno())


async def is_completed(it: OpenTheatre, payment_id: str) -> bool:
    query = "SELECT status FROM payment WHERE payment_id = $1"
    return bool(await it.theatre.gateway.db.fetchval(query, payment_id) == "completed")


@pytest.mark.parametrize("path", ["payments", "/", "/payments/", ""])
def test_mount_path_that_litestar_cannot_serve_is_rejected(values: dict[str, Any], path: str) -> None:
    with pytest.raises(ValueError, match="begins with a slash and does not end with one"):
        GatewayPlugin(Gateway(GatewayConfig.from_values(values)), path)
