"""What an honest merchant still gets done during a flood, as a share of what it gets done without it."""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.attack.attackers import Attack
from bench.attack.routes import through
from bench.schema.site import Site
from bench.soak.client import Client
from bench.speed.site import computed
from mpesa_gateway.standalone.process import launch, stop
from mpesa_gateway.testing.serving import SANDBOX

BAR = 0.7
"""Share of its creates that an honest merchant keeps where one address attacks."""

OFFERED = 8
"""Creates per second that the honest merchant offers, over ``CLIENTS`` kept connections: what a small machine does."""

CLIENTS = 4


class Attacked(Site):
    """A gateway with its simulator, served by one candidate with the default bounds."""

    def __init__(self, folder: Path, candidate: str) -> None:
        super().__init__(folder)
        self._candidate = candidate

    def read(self, *words: str) -> str:
        """What one of our commands prints. Raises CalledProcessError."""
        done = subprocess.run(self._command(*words), env=self._environ(), check=True, capture_output=True, text=True)
        return done.stdout

    @property
    def computed(self) -> float:
        """Seconds that the gateway's process has computed so far."""
        return 0.0 if self._process is None else computed(self._process.pid)

    def _command(self, *words: str) -> list[str]:
        if words[0] == "serve" and self._candidate != "gateway":
            return [sys.executable, "-m", "bench.attack.recorder", self._candidate, words[-1], "-"]
        return super()._command(*words)

    def _settings(self) -> dict[str, str]:
        """Everything enabled with its own bounds. Only the merchant's own rate is not limited."""
        settings = super()._settings()
        del settings["LIMITS__AUTH_FAILURES"]
        return settings | {"WORKER__IN_PROCESS": "true", "SECURITY__TRUSTED_PROXIES": "127.0.0.9/32"}


@dataclass(frozen=True)
class Flood:
    """What one attack came to, by one route. ``refused`` counts what the honest merchant got instead of a payment.

    ``cores`` are those that the gateway's process computed on, without and with it: on a loaded machine they say more
    than the share.
    """

    attack: Attack
    route: str
    without: float
    during: float
    refused: int
    answers: dict[str, int]
    is_alive: bool
    cores: tuple[float, float]

    def __str__(self) -> str:
        rates = f"{self.during:.1f} of {self.without:.1f} a second = {self.share:.2f}"
        cores = f"cores {self.cores[0]:.2f} to {self.cores[1]:.2f}"
        return f"{self.route} {self.attack.name}: {rates}, {cores}, refused {self.refused}, attacker {self.answers}"

    @property
    def share(self) -> float:
        """Creates during the attack as a share of those without it."""
        return self.during / self.without if self.without else 0.0

    @property
    def is_withstood(self) -> bool:
        """Whether it met the bar, where there is one."""
        return self.is_alive and (not self.attack.has_bar or self.share >= BAR)


class Merchant:
    """An honest merchant that creates payments at a steady rate."""

    def __init__(self, port: int, key: str) -> None:
        """For one event loop: it keeps its connections."""
        self._client = Client([port], key)
        self._name = f"{os.getpid()}-{time.monotonic_ns()}"
        self._count = 0

    async def is_answered(self) -> None:
        """Wait for one answer: the burst of requests with which an attack begins has been worked off."""
        await self._client.call("GET", "/v1/merchant/me")

    async def per_second(self, seconds: float) -> tuple[float, int]:
        """Payments created per second in this time, and the calls that were refused or failed."""
        until = time.monotonic() + seconds
        created = refused = 0

        async def one() -> None:
            nonlocal created, refused
            while time.monotonic() < until:
                due = time.monotonic() + CLIENTS / OFFERED
                self._count += 1
                body = {"amount": 10, "phone": "254708374149", "provider": "mpesa"}
                answer = await self._client.call("POST", "/v1/payments", body, key=f"{self._name}-{self._count}")
                if time.monotonic() < until:
                    created, refused = created + (answer.status == 201), refused + (answer.status != 201)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        tasks = [asyncio.create_task(one()) for _ in range(CLIENTS)]
        # An answer that comes later does not count.
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return created / seconds, refused


def run(
    candidate: str,
    attacks: Sequence[Attack],
    routes: Sequence[str],
    folder: Path,
    *,
    seconds: float,
    rounds: int,
    say: Callable[[str], None],
) -> list[Flood]:
    """Every attack by every route against one candidate: windows without and with it take turns."""
    folder.mkdir(parents=True)
    site = Attacked(folder, candidate)
    try:
        site.start()
        port = int(site.base.rpartition(":")[2])
        key = _open_shop(site)
        found: list[Flood] = []
        for route in routes:
            with through(route, port, folder / route) as at:
                asyncio.run(_warm_up(Merchant(at, key)))
                for attack in attacks:
                    flood = asyncio.run(_measure(site, Merchant(at, key), attack, route, at, seconds, rounds))
                    say(f"  {candidate} {flood}")
                    found.append(flood)
        return found
    finally:
        site.close()


def _open_shop(site: Attacked) -> str:
    merchant = site.read("merchants", "create", "Honest shop").split()[-1]
    secret = site.read("apikeys", "create", merchant, "--name", "attack").split()[-1]
    client = Client([int(site.base.rpartition(":")[2])], secret)
    answer = asyncio.run(client.call("PUT", "/v1/merchant/providers", SANDBOX))
    if answer.status != 200:
        raise RuntimeError(f"the shop cannot be opened: {answer.status} {answer.body.decode()}")
    return str(secret)


async def _warm_up(merchant: Merchant) -> None:
    rate, refused = await merchant.per_second(2)
    if not rate:
        raise RuntimeError(f"the honest merchant creates nothing without any attack ({refused} refused)")


async def _measure(
    site: Attacked, merchant: Merchant, attack: Attack, route: str, port: int, seconds: float, rounds: int
) -> Flood:
    without: list[float] = []
    during: list[float] = []
    cores: tuple[list[float], list[float]] = ([], [])

    async def window(into: list[float], busy: list[float]) -> int:
        began, before = time.monotonic(), site.computed
        rate, failed = await merchant.per_second(seconds)
        into.append(rate)
        busy.append((site.computed - before) / (time.monotonic() - began))
        return failed

    await window(without, cores[0])
    refused = 0
    answers: dict[str, int] = {}
    for _ in range(rounds):
        command = [sys.executable, "-m", "bench.attack.attackers", attack.name, str(port), str(seconds)]
        process = launch(command, output=subprocess.PIPE, death_signal=signal.SIGKILL, cwd=Path(__file__).parents[2])
        try:
            await asyncio.to_thread(_wait_until_ready, process)
            await merchant.is_answered()
            refused += await window(during, cores[1])
            output = await asyncio.to_thread(_output, process, seconds)
        finally:
            stop(process, (signal.SIGTERM,), 5)
        for name, count in _last_line(output).items():
            answers[name] = answers.get(name, 0) + count
        await asyncio.sleep(0.5)
        await window(without, cores[0])
    return Flood(
        attack,
        route,
        statistics.mean(without),
        statistics.mean(during),
        refused,
        answers,
        site.is_alive,
        (statistics.mean(cores[0]), statistics.mean(cores[1])),
    )


def _wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    if process.stdout is None or process.stdout.readline() != b"ready\n":
        raise RuntimeError("the attacker did not start")


def _output(process: "subprocess.Popen[bytes]", seconds: float) -> bytes:
    with suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=seconds + 20)[0] or b""
    return b""


def _last_line(output: bytes) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return found
