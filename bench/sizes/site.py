"""The product at work: an API, a worker and the simulator as processes, and a shop whose payments are all paid."""

import asyncio
import json
import os
import random
import subprocess
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from bench.speed.load import call, request
from bench.speed.site import SETTINGS, Contestant, Site
from bench.speed.wire import Client, Served, response
from mpesa_gateway import toml
from mpesa_gateway.commands.session import CONFIG_VARIABLE
from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.standalone.process import free_port, write_private
from mpesa_gateway.standalone.sample_credentials import SANDBOX_PASSKEY, SANDBOX_SHORTCODE

SCHEMA = "mpesa"
"""The schema that the gateway keeps its tables in."""

CLIENTS = 4
"""Payments that are requested at a time."""

_PATIENCE = 300.0
"""Seconds without a webhook after which payments count as stuck."""

_LONG = 300.0
"""Seconds that processes wait for each other."""

_QUIET = 2.0
"""Seconds in which the worker writes what follows a webhook's answer."""

_POSTGRES = {
    "max_wal_size": "2GB",
    # The copies are written in the transaction that empties their tables, and need no log.
    "wal_level": "minimal",
    "max_wal_senders": 0,
}

_CREDENTIALS: dict[str, Any] = {
    "provider": "mpesa",
    "mpesa": {
        "env": "sandbox",
        "consumer_key": "consumer-key-of-sizes",
        "consumer_secret": "consumer-secret-of-sizes",
        "passkey": SANDBOX_PASSKEY,
        "shortcode": SANDBOX_SHORTCODE,
    },
}


class SizesSite(Site):
    """The gateway on one database and the simulator on another, so that the simulator's tables do not count."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.postgres = EmbeddedPostgres(folder, settings={**SETTINGS, **_POSTGRES}, is_durable=False)
        self.api_port = free_port()
        self._simulator_config = folder / "simulator.toml"

    def start(self) -> None:
        """Start Postgres and Valkey."""
        self.postgres.start()
        self.valkey.start()

    @property
    def values(self) -> dict[str, Any]:
        """The defaults, with callbacks sent straight to the API.

        On a busy machine answers and callbacks are late. Nothing times out and no payment is asked about within the
        hour, as what counts is a payment that goes as it should.
        """
        changed = {
            "public_url": f"http://127.0.0.1:{self.api_port}",
            "daraja": {
                "sandbox_url": f"http://127.0.0.1:{self.double}/simulator",
                "connect_timeout": _LONG,
                "timeout": _LONG,
            },
            "valkey": {"url": self.valkey.url, "timeout": _LONG},
            "payments": {"query_after": [3600], "expire_after": 7200},
        }
        return super().values | changed

    async def create_databases(self) -> None:
        """Make the two databases. Raises asyncpg.DuplicateDatabaseError where they are."""
        connection = await asyncpg.connect(self.postgres.url)
        try:
            for name in ("gateway", "simulator"):
                await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()

    def begin(self) -> list[Contestant]:
        """Start the simulator, the API and a worker."""
        values = self.values
        simulator = {name: values[name] for name in ("security", "limits")} | {
            "public_url": f"http://127.0.0.1:{self.double}",
            "plugins": ["simulator"],
            "database": {"url": self.database("simulator")},
            "valkey": values["valkey"] | {"prefix": "simulator"},
        }
        write_private(self._simulator_config, toml.dumps(simulator))
        environ = {CONFIG_VARIABLE: str(self._simulator_config)}
        command = self._command("serve", "--port")
        return [
            self._begin("simulator", command, (self.double,), environ),
            self._begin("api", command, (self.api_port,)),
            self.worker(),
        ]

    def _wait(self, contestant: Contestant, port: int, patience: float = _LONG) -> None:
        super()._wait(contestant, port, patience)

    def say(self, *arguments: str) -> str:
        """What a command of the gateway prints as JSON. Raises subprocess.CalledProcessError."""
        environ = {CONFIG_VARIABLE: str(self.config_path), "PATH": os.defpath}
        done = subprocess.run(
            self._command(*arguments, "--json"),
            env=environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


class Shop:
    """A merchant with one webhook endpoint, and the server behind it."""

    def __init__(self, site: SizesSite, webhook_port: int, *, is_plain: bool) -> None:
        self._site = site
        self._is_plain = is_plain
        self._webhook_port = webhook_port
        self._key = ""
        self._random = random.Random(1)  # noqa: S311 - amounts and phones, the same in each run
        self._others: dict[str, int] = {}
        self.paid: set[str] = set()
        """The payments that a ``payment.completed`` webhook named."""

    def hear(self, line: bytes, body: bytes) -> bytes:
        """Take a webhook."""
        event: dict[str, Any] = json.loads(body) if line.startswith(b"POST") else {}
        kind = str(event.get("type"))
        if kind == "payment.completed":
            self.paid.add(event["data"]["payment_id"])
        else:
            self._others[kind] = self._others.get(kind, 0) + 1
        return response(b"{}")

    async def open(self) -> None:
        """Make the merchant, its key, its credentials and its endpoint."""
        made = json.loads(await asyncio.to_thread(self._site.say, "merchants", "create", "Sizes"))
        made = json.loads(await asyncio.to_thread(self._site.say, "apikeys", "create", made["merchant_id"]))
        self._key = made["key"]
        headers = {"X-API-Key": self._key}
        webhook = {"webhook_url": f"http://127.0.0.1:{self._webhook_port}/webhooks"}
        for path, content in (("providers", _CREDENTIALS), ("webhook", webhook)):
            await call(self._site.api_port, "PUT", f"/v1/merchant/{path}", headers, json.dumps(content).encode())

    async def sell(self, count: int) -> None:
        """Have ``count`` payments requested, paid and delivered. Raises RuntimeError when one is not."""
        numbers = iter(range(count))
        await asyncio.gather(*(self._client(numbers) for _ in range(CLIENTS)))
        seen, since = -1, time.monotonic()
        while len(self.paid) < count:
            if len(self.paid) > seen:
                seen, since = len(self.paid), time.monotonic()
            if time.monotonic() - since > _PATIENCE:
                break
            await asyncio.sleep(0.1)
        if len(self.paid) != count:
            raise RuntimeError(f"{len(self.paid)} of {count} payments were completed; other webhooks: {self._others}")
        await asyncio.sleep(_QUIET)

    async def _client(self, numbers: Any) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", self._site.api_port)
        try:
            for number in numbers:
                own: dict[str, Any] = {"metadata": {"order": str(100_000 + number)}}
                key = str(uuid.uuid4())
                if self._is_plain:
                    key = f"order-{100_000 + number}"
                    own = {"reference": key}
                body = {
                    "amount": self._random.randint(10, 5000),
                    # Above the numbers that the simulator gives a behaviour of their own.
                    "phone": f"2547{self._random.randrange(10**7, 10**8)}",
                } | own
                headers = {"X-API-Key": self._key, "Idempotency-Key": key}
                status = await connection.send(request("POST", "/v1/payments", headers, json.dumps(body).encode()))
                if status != 201:
                    raise RuntimeError(f"POST /v1/payments: {status} {connection.body[:300]!r}")
        finally:
            connection.close()


@asynccontextmanager
async def shop_of(site: SizesSite, *, is_plain: bool) -> AsyncGenerator[Shop]:
    """A merchant that is ready to sell, and its server, for the length of the block.

    Its payments have a key of 36 characters, metadata and a reference of ours. Those of a plain one have a key of 12
    characters, which is their reference too, and no metadata.
    """
    port = free_port()
    shop = Shop(site, port, is_plain=is_plain)
    server = await asyncio.get_running_loop().create_server(lambda: Served(shop.hear), "127.0.0.1", port)
    async with server:
        await shop.open()
        yield shop
