"""The site that is broken: two APIs, two workers, Daraja, Postgres and Valkey, each a process of its own."""

import asyncio
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from bench.chaos.proxy import Wire
from mpesa_gateway import toml
from mpesa_gateway.clock import SystemClock
from mpesa_gateway.commands.session import CONFIG_VARIABLE
from mpesa_gateway.config import ENVIRONMENT
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.data_folder import DataFolder
from mpesa_gateway.standalone.process import free_port, launch, stop, write_private
from mpesa_gateway.standalone.sample_credentials import make_certificate

ROOT = Path(__file__).parents[2]

PLUGINS = ["credentials", "callbacks", "transactions", "payments", "refunds", "reconciliation", "webhooks"]

_DISK, _ROOMY_DISK = 32, 512
"""Megabytes of the disk that Valkey gets to itself, where we may mount one; at full speed, its log needs the second."""


@dataclass
class Process:
    """One of our processes: how it is started, and what runs."""

    name: str
    start: Callable[[dict[str, str]], "subprocess.Popen[bytes]"]
    log: Path
    port: int = 0
    running: "subprocess.Popen[bytes] | None" = None
    _read_from: int = 0
    wanted: dict[str, str] | None = None
    """The environment, besides the usual, of a process that is to run; None for one that was told to end."""

    def begin(self, **environ: str) -> None:
        """Start it."""
        self.wanted = environ
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        self.running = self.start(environ)

    def is_up(self) -> bool:
        """Whether it answers, or, where it serves nobody, has said that it works."""
        if self.port:
            return _answers(f"http://127.0.0.1:{self.port}/health/live")
        with self.log.open("rb") as log:
            log.seek(self._read_from)
            return b"Working\n" in log.read()

    def has_gone(self) -> bool:
        """Whether it ended and nobody told it to."""
        return self.wanted is not None and self.running is not None and self.running.poll() is not None

    def kill(self) -> None:
        """End it without a word."""
        self.wanted = None
        if self.running is not None:
            self.running.kill()
            self.running.wait()

    def pause(self) -> None:
        """Stop its time."""
        if self.running is not None:
            self.running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let its time go on."""
        if self.running is not None:
            self.running.send_signal(signal.SIGCONT)

    def end(self, patience: float = 40) -> int:
        """Ask it to stop, and wait; gives its exit code."""
        self.wanted = None
        if self.running is None:
            return 0
        stop(self.running, (signal.SIGTERM,), patience)
        code, self.running = self.running.returncode, None
        return code


class Site:
    """Everything that runs, in one folder. ``pace`` is how long everybody waits, in proportion to the usual.

    ``is_measured`` leaves out the wire to Postgres, through which nothing goes at full speed: it cannot be cut then.
    """

    def __init__(self, folder: Path, rng: random.Random, pace: float = 1.0, *, is_measured: bool = False) -> None:
        self.folder = folder
        self._pace = pace
        self._is_measured = is_measured
        self.standalone = DataFolder(folder / "data")
        self._config = folder / "gateway.toml"
        self._simulator_config = folder / "simulator.toml"
        self.apis = [self._process(f"api-{number}", "serve", free_port()) for number in (1, 2)]
        self.workers = [self._process(f"worker-{number}", "worker") for number in (1, 2)]
        self.simulator = self._process("simulator", "serve", free_port())
        self.front = Wire(lambda: [api.port for api in self.apis], rng)
        self.to_daraja = Wire(lambda: [self.simulator.port], rng)
        self.to_postgres = Wire(lambda: [self.standalone.postgres.port], rng)
        self.has_own_disk = False
        self.revived = 0
        """How often a process had ended by itself and was started again."""
        self.ended_badly: list[str] = []
        """Processes that did not end by themselves, and well, when they were told to."""
        self._tending: asyncio.Task[None] | None = None

    @property
    def processes(self) -> list[Process]:
        """Ours, Postgres and Valkey left out."""
        return [self.simulator, *self.apis, *self.workers]

    @property
    def base(self) -> str:
        """Where merchants and Daraja reach the gateway."""
        return f"http://127.0.0.1:{self.front.port}"

    @property
    def daraja(self) -> str:
        """The simulator itself, past the wire that is broken."""
        return f"http://127.0.0.1:{self.simulator.port}"

    async def start(self) -> None:
        """Start everything and wait until it is ready."""
        await asyncio.to_thread(self._mount)
        await asyncio.to_thread(self.standalone.start)
        for wire in (self.front, self.to_daraja, self.to_postgres):
            await wire.start()
        self._write_config()
        # The first one migrates.
        self.apis[0].begin()
        await self.is_up(self.apis[0])
        for process in (self.simulator, self.apis[1], *self.workers):
            process.begin()
        for process in self.processes:
            await self.is_up(process)
        self._tending = asyncio.create_task(self._tend())

    async def stop(self) -> None:
        """Stop everything, whatever state it is in."""
        if self._tending is not None:
            self._tending.cancel()
        for process in reversed(self.processes):
            process.resume()
            with suppress(OSError):
                await asyncio.to_thread(process.end)
        for wire in (self.front, self.to_daraja, self.to_postgres):
            await wire.stop()
        await asyncio.to_thread(self.standalone.stop)
        if self.has_own_disk:
            await asyncio.to_thread(subprocess.run, ["umount", str(self.valkey_folder)], check=False)

    async def end(self, process: Process) -> None:
        """Ask a process to stop, wait until it has, and note how it ended."""
        code = await asyncio.to_thread(process.end)
        if code != 0:
            self.ended_badly.append(f"{process.name} ended with {code}")

    async def is_up(self, process: Process, patience: float = 60) -> None:
        """Wait until a process does its work. Raises TimeoutError."""
        until = time.monotonic() + patience
        while not await asyncio.to_thread(process.is_up):
            if time.monotonic() > until:
                raise TimeoutError(f"{process.name} did not start: see {self.folder}")
            await asyncio.sleep(0.1)

    async def _tend(self) -> None:
        """Start again what ended by itself, as systemd or an orchestrator does: without Postgres, none starts."""
        while True:
            for process in self.processes:
                if process.has_gone():
                    self.revived += 1
                    process.begin(**(process.wanted or {}))
            await asyncio.sleep(0.5)

    @property
    def valkey_folder(self) -> Path:
        """Where Valkey keeps its log."""
        return self.folder / "data" / "valkey"

    def fill_disk(self) -> None:
        """Leave no room on Valkey's disk."""
        with suppress(OSError), (self.valkey_folder / "ballast").open("wb") as file:
            while True:
                file.write(b"\0" * 65536)
                file.flush()

    def empty_disk(self) -> None:
        """Make room again."""
        (self.valkey_folder / "ballast").unlink(missing_ok=True)

    def forget_valkey(self) -> None:
        """Delete what a stopped Valkey has stored."""
        shutil.rmtree(self.valkey_folder / "appendonlydir", ignore_errors=True)

    def _mount(self) -> None:
        self.valkey_folder.mkdir(parents=True)
        size = _ROOMY_DISK if self._is_measured else _DISK
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(self.valkey_folder)],  # noqa: S607
            capture_output=True,
            check=False,
        )
        self.has_own_disk = mounted.returncode == 0

    def _process(self, name: str, command: str, port: int = 0) -> Process:
        arguments = [command, *(["--port", str(port)] if port else [])]
        log = self.folder / f"{name}.log"

        def start(environ: dict[str, str]) -> "subprocess.Popen[bytes]":
            module = "bench.chaos.skewed" if "CHAOS_SKEW" in environ else "mpesa_gateway.cli"
            config = self._simulator_config if name == "simulator" else self._config
            ours = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT)}
            with log.open("ab") as output:
                return launch(
                    [sys.executable, "-m", module, *arguments],
                    output=output,
                    death_signal=signal.SIGKILL,
                    env=ours | environ | {CONFIG_VARIABLE: str(config), "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"},
                )

        return Process(name, start, log, port)

    def _seconds(self, usual: float) -> int:
        """A time that the gateway waits, whole seconds."""
        return max(1, math.ceil(usual * self._pace))

    def _database_url(self) -> str:
        url = self.standalone.postgres.url
        return url if self._is_measured else _at_port(url, self.to_postgres.port)

    def _write_config(self) -> None:
        certificate = self.folder / "simulator-certificate.pem"
        certificate.write_bytes(make_certificate(SystemClock().now()))
        values: dict[str, Any] = {
            "public_url": self.base,
            "plugins": PLUGINS,
            "database": {"url": self._database_url()},
            "valkey": {"url": self.standalone.valkey.url},
            "security": {"master_key": generate()},
            "daraja": {
                "sandbox_url": f"http://127.0.0.1:{self.to_daraja.port}/simulator",
                "sandbox_certificate": str(certificate),
                "connect_timeout": 2.0,
                "timeout": float(self._seconds(8)),
            },
            "worker": {"grace": 5},
            "limits": {"requests_per_second": 100_000, "burst": 100_000},
            "payments": {
                "query_after": [1, 2, 4, 8],
                "expire_after": self._seconds(40),
                "unsent_after": self._seconds(30),
                "create_lease": self._seconds(12),
            },
            "refunds": {
                "query_after": [self._seconds(usual) for usual in (1, 2, 4, 6, 6, 6)],
                "create_lease": self._seconds(12),
            },
            "reconciliation": {"pause": 0.2, "tries": 3},
            "webhooks": {
                "timeout": 3.0,
                "breaker_pause": 2.0,
                "retry_after": [1.0, 2.0, *[4.0] * 60],
            },
        }
        write_private(self._config, toml.dumps(values))
        simulator = values | {
            "public_url": self.daraja,
            "plugins": ["simulator"],
            "database": {"url": self.standalone.postgres.url},
            "valkey": values["valkey"] | {"prefix": "simulator"},
            "simulator": {
                "callback_delay": 0.2,
                "late_delay": 6.0 * self._pace,
                "slow_answer": 2.0 * self._pace,
                "prompt_timeout": 2.0 * self._pace,
                "callback_pause": 1.0,
            },
        }
        for name in ("payments", "refunds", "reconciliation", "webhooks"):
            del simulator[name]
        write_private(self._simulator_config, toml.dumps(simulator))


def _at_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{port}"))


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
