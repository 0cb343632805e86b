"""Processes of one gateway, started by command line, for journeys that kill and replace them.

They are forked from a process that has imported the command: tests.forking.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import niquests

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ENVIRONMENT, GatewayConfig
from mpesa_gateway.standalone.process import free_port, stop
from mpesa_gateway.testing.serving import gateway_values
from tests.forking import Forked, forks


def _environ(values: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return the environment of a process with these settings and no other gateway variables."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)}
    for section, value in values.items():
        if isinstance(value, dict):
            for name, setting in cast("dict[str, Any]", value).items():
                text = ",".join(cast("list[str]", setting)) if isinstance(setting, list) else str(setting)
                environ[f"{ENVIRONMENT}{section}__{name}".upper()] = text
        elif isinstance(value, list):
            environ[f"{ENVIRONMENT}{section}".upper()] = ",".join(cast("list[str]", value))
        else:
            environ[f"{ENVIRONMENT}{section}".upper()] = str(value)
    return environ | {"PWD": str(folder)}


class Site:
    """Processes with the same settings."""

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        self.simulator_port, self.ports = free_port(), [free_port(), free_port()]
        public = f"http://127.0.0.1:{self.ports[0]}"
        self.values: dict[str, Any] = values | {
            "plugins": [
                "credentials",
                "callbacks",
                "transactions",
                "payments",
                "refunds",
                "reconciliation",
                "webhooks",
            ],
            "public_url": public,
            "daraja": {"sandbox_url": f"http://127.0.0.1:{self.simulator_port}/simulator"},
            "worker": {"grace": 5},
        }
        self.values.pop("simulator", None)
        self.bases = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.running: list[Forked] = []

    def start(self, *arguments: str, **changes: Any) -> Forked:
        with (self.folder / "log").open("ab") as output:
            environ = _environ(self.values | changes, self.folder)
            process = forks.start(arguments, folder=self.folder, environ=environ, log=output.fileno())
        self.running.append(process)
        return process

    def start_simulator(self) -> Forked:
        """Start the simulator."""
        return self.start("serve", "--port", str(self.simulator_port), plugins=["simulator"])

    def start_api(self, number: int) -> Forked:
        return self.start("serve", "--port", str(self.ports[number]))

    def start_worker(self) -> Forked:
        return self.start("worker")

    def stop(self) -> None:
        for process in self.running:
            stop(cast("subprocess.Popen[bytes]", process), (signal.SIGTERM,), 15)

    @property
    def simulator(self) -> str:
        """Return the simulator's base URL."""
        return f"http://127.0.0.1:{self.simulator_port}"


async def until_up(url: str, patience: float = 30.0) -> None:
    """Wait until this URL returns 200. Raises TimeoutError after ``patience`` seconds."""
    async with asyncio.timeout(patience), niquests.AsyncSession() as session:
        while True:
            try:
                if (await session.get(url, timeout=2)).status_code == 200:
                    return
            except niquests.exceptions.RequestException:
                pass
            await asyncio.sleep(0.1)


@contextmanager
def running_site(database_url: str, valkey_url: str, folder: Path) -> Generator[Site]:
    """Yield a site and stop it at the end of the block."""
    site = Site(gateway_values(database_url, valkey_url), folder)
    try:
        yield site
    finally:
        site.stop()


@asynccontextmanager
async def books(site: Site) -> AsyncGenerator[Gateway]:
    """Read access to the database, and an admin key."""
    async with Gateway(GatewayConfig.from_values(site.values)).running() as gateway:
        yield gateway
