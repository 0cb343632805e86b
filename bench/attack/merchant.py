"""The attacked gateway, and an honest merchant that creates payments on it."""

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.schema.site import Site
from bench.soak.client import Client
from mpesa_gateway.testing.serving import SANDBOX

CLIENTS = 4
"""Connections of the honest merchant. Each sends its next create after the previous answer."""

_PAUSE = 0.1
"""Seconds that the merchant waits after a create without an answer."""


class Attacked(Site):
    """A gateway with its worker and the simulator in one process, served by one candidate with the default limits."""

    def __init__(self, folder: Path, candidate: str, name_server: int) -> None:
        """``name_server`` is the port of its DNS server."""
        super().__init__(folder)
        self._candidate = candidate
        self._name_server = name_server

    def read(self, *words: str) -> str:
        """Return the output of one of our commands. Raises CalledProcessError."""
        done = subprocess.run(self._command(*words), env=self._environ(), check=True, capture_output=True, text=True)
        return done.stdout

    @property
    def port(self) -> int:
        """Return the port of the gateway."""
        return int(self.base.rpartition(":")[2])

    @property
    def pid(self) -> int | None:
        """Return the gateway's process id."""
        return None if self._process is None else self._process.pid

    @property
    def database(self) -> int | None:
        """Return the process id of Postgres."""
        return self._standalone.postgres.pid

    def open_shop(self, name: str) -> str:
        """Create a merchant with credentials; returns its API key."""
        merchant = self.read("merchants", "create", name).split()[-1]
        secret = self.read("apikeys", "create", merchant, "--name", "attack").split()[-1]
        answer = asyncio.run(Client([self.port], secret).call("PUT", "/v1/merchant/providers", SANDBOX))
        if answer.status != 200:
            raise RuntimeError(f"the shop cannot be opened: {answer.status} {answer.body.decode()}")
        return str(secret)

    def _command(self, *words: str) -> list[str]:
        if words[0] == "serve" and self._candidate != "gateway":
            return [sys.executable, "-m", "bench.attack.recorder", self._candidate, words[-1], "-"]
        return super()._command(*words)

    def _settings(self) -> dict[str, str]:
        """Every limit at its default, except the merchants' calls and webhook tests.

        These limits apply to one merchant: the few attackers represent many.
        """
        settings = super()._settings()
        del settings["LIMITS__AUTH_FAILURES"]
        return settings | {
            "WORKER__IN_PROCESS": "true",
            # The honest merchant and the proxies: addresses of attackers must be visible through a proxy too.
            "SECURITY__TRUSTED_PROXIES": "127.0.0.1/32",
            "DNS__SERVERS": f"127.0.0.1:{self._name_server}",
            "WEBHOOKS__TESTS_PER_MINUTE": "100000",
        }


@dataclass(frozen=True)
class Creates:
    """The honest merchant's results in one window. ``slowest`` is the 99th percentile in seconds."""

    per_second: float
    refused: int
    slowest: float


class Merchant:
    """An honest merchant that creates payments continuously on ``CLIENTS`` kept connections."""

    def __init__(self, port: int, key: str) -> None:
        """Bound to one event loop by its connections."""
        self._client = Client([port], key)
        self._name = f"{os.getpid()}-{time.monotonic_ns()}"
        self._count = 0

    async def is_answered(self) -> None:
        """Wait for one answer: the initial burst of the attack has then been processed."""
        await self._client.call("GET", "/v1/merchant/me")

    async def create(self, seconds: float) -> Creates:
        """Create payments for some seconds. Later answers do not count; after a refusal it waits for Retry-After."""
        until = time.monotonic() + seconds
        times: list[float] = []
        refused = 0

        async def one() -> None:
            nonlocal refused
            while time.monotonic() < until:
                self._count += 1
                body = {"amount": 10, "phone": f"25471{self._count % 10_000_000:07}", "provider": "mpesa"}
                answer = await self._client.call("POST", "/v1/payments", body, key=f"{self._name}-{self._count}")
                if answer.status == 201:
                    times.append(answer.seconds)
                else:
                    refused += 1
                    await asyncio.sleep(float(answer.headers.get("retry-after", _PAUSE)))

        tasks = [asyncio.create_task(one()) for _ in range(CLIENTS)]
        await asyncio.sleep(seconds)
        created = len(times)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        slowest = sorted(times)[created * 99 // 100] if created else seconds
        return Creates(created / seconds, refused, slowest)
