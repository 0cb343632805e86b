"""The measured site: Postgres and Valkey, a fast Daraja, and every contestant in two processes."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpesa_gateway import toml
from mpesa_gateway.commands.session import CONFIG_VARIABLE
from mpesa_gateway.config import ENVIRONMENT
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.postgres import EmbeddedPostgres
from mpesa_gateway.standalone.process import free_port, launch, stop, write_private
from mpesa_gateway.standalone.valkey import EmbeddedValkey

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".bench"
"""The folder of the peers' virtual environments."""

PLUGINS = (
    "credentials",
    "callbacks",
    "transactions",
    "payments",
    "refunds",
    "reconciliation",
    "webhooks",
    "c2b",
    "ops",
)
PROCESSES = 2

SETTINGS: Mapping[str, object] = {
    # Memory for a million payments; one server for all contestants. fsync and synchronous_commit stay on.
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
}


@dataclass
class Contestant:
    """A contestant: its processes and their ports."""

    name: str
    ports: tuple[int, ...]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list["subprocess.Popen[bytes]"])

    def cpu(self) -> float:
        """Return the processor seconds of its processes so far."""
        return sum(computed(process.pid) for process in self.processes)

    def memory(self) -> float:
        """Return the megabytes of its largest process (proportional set size)."""
        return max(_proportional(process.pid) for process in self.processes)

    def stop(self) -> None:
        """Stop its processes."""
        for process in self.processes:
            stop(process, (signal.SIGTERM,), 40)


class Site:
    """All processes, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)
        self.postgres = EmbeddedPostgres(folder, settings=SETTINGS)
        self.valkey = EmbeddedValkey(folder)
        self.config_path = folder / "gateway.toml"
        self.double = free_port()
        self._running: list[Contestant] = []

    def start(self) -> None:
        """Start the servers and the double."""
        self.postgres.start()
        self.valkey.start()
        self._begin("double", [sys.executable, "-m", "bench.speed.double"], (self.double,))

    def stop(self) -> None:
        """Stop everything."""
        for contestant in reversed(self._running):
            contestant.stop()
        self._running.clear()
        self.valkey.stop()
        self.postgres.stop()

    def cpu(self) -> dict[str, float]:
        """Return the processor seconds of the shared servers so far."""
        servers = {
            "postgres": self.postgres.pid,
            "valkey": self.valkey.pid,
            "double": self._running[0].processes[0].pid,
        }
        return {name: computed(pid) for name, pid in servers.items() if pid is not None}

    def database(self, name: str) -> str:
        """Return the URL of one contestant's database."""
        return self.postgres.url.rpartition("/")[0] + f"/{name}"

    @property
    def values(self) -> dict[str, Any]:
        """Return the gateway's settings: the defaults, except for addresses and higher limits."""
        key = self.folder / "master.key"
        if not key.exists():
            write_private(key, generate())
        return {
            "plugins": list(PLUGINS),
            "database": {"url": self.database("gateway"), "pool_max": 20},
            "valkey": {"url": self.valkey.url},
            "security": {"master_key_file": str(key)},
            "daraja": {"sandbox_url": f"http://127.0.0.1:{self.double}"},
            "callbacks": {"sandbox_per_minute": 1_000_000},
            # Every call is still counted in Valkey.
            "limits": {"requests_per_second": 1_000_000, "burst": 2_000_000},
        }

    def gateway(self, processes: int = PROCESSES) -> Contestant:
        """Return the gateway's API processes."""
        return self._begin("gateway", self._command("serve", "--port"), tuple(free_port() for _ in range(processes)))

    def worker(self) -> Contestant:
        """Return one worker of the gateway."""
        return self._begin("worker", self._command("worker"), (0,))

    def thin(self) -> Contestant:
        """Return the thin app."""
        environ = {"THIN_DATABASE": self.database("thin"), "THIN_DARAJA": f"http://127.0.0.1:{self.double}"}
        return self._begin(
            "thin", [sys.executable, "-m", "bench.speed.thin"], tuple(free_port() for _ in range(PROCESSES)), environ
        )

    def fastapi(self, database: str) -> Contestant:
        """Return the peer with FastAPI, SQLAlchemy and httpx."""
        python = _environment("fastapi")
        environ = self._peer(database)
        _run([python, "-m", "bench.peers.fastapi_app.app"], environ)
        command = [python, "-m", "uvicorn", "--loop=uvloop", "--http=httptools", "--no-access-log"]
        command += ["--log-level=warning", "bench.peers.fastapi_app.app:app", "--port"]
        return self._begin("fastapi", command, tuple(free_port() for _ in range(PROCESSES)), environ)

    def django(self, database: str) -> Contestant:
        """Return the peer with Django and django-daraja."""
        python = _environment("django")
        environ = self._peer(database)
        _run([python, "-m", "bench.peers.django_daraja_app.app"], environ)
        command = [python, "-m", "gunicorn", "--workers=1", "--threads=16", "--keep-alive=75", "--log-level=warning"]
        command += ["bench.peers.django_daraja_app.app:application", "--bind=127.0.0.1:{port}"]
        return self._begin("django", command, tuple(free_port() for _ in range(PROCESSES)), environ)

    def _peer(self, database: str) -> dict[str, str]:
        return {"PEER_DATABASE": self.database(database), "PEER_DARAJA": f"http://127.0.0.1:{self.double}"}

    def _command(self, *arguments: str) -> list[str]:
        write_private(self.config_path, toml.dumps(self.values))
        return [sys.executable, "-m", "mpesa_gateway.cli", *arguments]

    def _begin(
        self, name: str, command: Sequence[str], ports: tuple[int, ...], environ: Mapping[str, str] | None = None
    ) -> Contestant:
        """Start a contestant's processes, with the port last on each command line or in place of ``{port}``."""
        contestant = Contestant(name, ports)
        ours = {key: value for key, value in os.environ.items() if not key.startswith(ENVIRONMENT)}
        ours |= {CONFIG_VARIABLE: str(self.config_path), "PYTHONPATH": str(ROOT)} | dict(environ or {})
        self._running.append(contestant)
        for port in ports:
            line = [word.replace("{port}", str(port)) for word in command]
            if line == list(command) and port:
                line.append(str(port))
            with (self.folder / f"{name}.log").open("ab") as output:
                contestant.processes.append(
                    launch(line, output=output, death_signal=signal.SIGKILL, env=ours, cwd=self.folder)
                )
            # The first one may migrate before the next one starts.
            if port:
                self._wait(contestant, port)
        return contestant

    def _wait(self, contestant: Contestant, port: int, patience: float = 60) -> None:
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if contestant.processes[-1].poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{contestant.name} did not start: see {self.folder / contestant.name}.log")


async def load(
    requests: Path,
    ports: Sequence[int],
    *,
    clients: int,
    seconds: float,
    expect: Sequence[int],
    repeat: bool = False,
    warm_up: float = 0.5,
    per_second: float | None = None,
) -> dict[str, Any]:
    """Run one round of the load generator. Raises RuntimeError for an answer not in ``expect``.

    ``per_second`` limits the rate; without it, each client sends as soon as it has an answer.
    """
    job = {
        "requests": str(requests),
        "ports": list(ports),
        "clients": clients,
        "seconds": seconds,
        "warm_up": warm_up,
        "expect": list(expect),
        "repeat": repeat,
        "per_second": per_second,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.speed.load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    output, _ = await process.communicate(json.dumps(job).encode())
    if process.returncode != 0:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    found: dict[str, Any] = json.loads(output)
    unexpected = {status: count for status, count in found["statuses"].items() if int(status) not in expect}
    if unexpected:
        raise RuntimeError(f"unexpected answers {unexpected}, such as {found['example']}")
    return found


def _environment(peer: str) -> str:
    """Return the Python of a peer's virtual environment, created from its pins at first use."""
    folder = ENVIRONMENTS / f"venv-{peer}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pins = ROOT / "requirements" / f"peer-{peer}.txt"
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(pins)], check=True)
    return str(python)


def _run(command: Sequence[str], environ: Mapping[str, str]) -> None:
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environ))


def computed(pid: int) -> float:
    """Return the processor seconds of a process and its children, exited ones included."""
    pids = [pid, *_children(pid)]
    ticks = 0
    for one in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            # utime and stime of each; of the first also cutime and cstime, of exited children.
            ticks += sum(map(int, fields[11 : 15 if one == pid else 13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []


def _proportional(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
