"""The tested gateway: its own process with every plugin, real servers, and the simulator as its Daraja."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path

from mpesa_gateway.clock import SystemClock
from mpesa_gateway.config import ENVIRONMENT
from mpesa_gateway.installed_plugins import GROUP
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.data_folder import DataFolder
from mpesa_gateway.standalone.process import free_port, launch, stop, tail
from mpesa_gateway.standalone.sample_credentials import make_certificate

PATIENCE = 60.0
"""Seconds for the gateway to start."""


class Site:
    """A running gateway in a folder, from ``start`` to ``close``."""

    def __init__(self, folder: Path) -> None:
        self._standalone = DataFolder(folder / "data")
        self._log = folder / "log"
        self._certificate = folder / "sandbox-certificate.pem"
        self._process: subprocess.Popen[bytes] | None = None
        self.base = ""
        self.settings: dict[str, str] = {}

    def start(self) -> None:
        """Start everything. Raises RuntimeError if it does not serve."""
        self._standalone.start()
        self._certificate.write_bytes(make_certificate(SystemClock().now()))
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        self.settings = self._settings()
        with self._log.open("wb") as output:
            self._process = launch(
                self._command("serve", "--with-worker", "--port", str(port)),
                output=output,
                death_signal=signal.SIGKILL,
                env=self._environ(),
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"the gateway does not serve:\n{tail(self._log)}")
            time.sleep(0.2)

    def close(self) -> None:
        if self._process is not None:
            stop(self._process, (signal.SIGTERM,), 15)
        self._standalone.stop()

    @property
    def is_alive(self) -> bool:
        """Return True if the started process is the one that still answers."""
        return self._process is not None and self._process.poll() is None and self._answers()

    @property
    def memory(self) -> float:
        """Return the memory of the serving process in MiB."""
        pid = 0 if self._process is None else self._process.pid
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024

    @property
    def mishaps(self) -> list[str]:
        """Return the log lines about unexpected errors."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if "unexpected_error" in line or "Traceback" in line]

    def run(self, *words: str) -> None:
        """Run one of our commands with this gateway's settings. Raises CalledProcessError."""
        subprocess.run(self._command(*words), env=self._environ(), check=True)

    def audit(self) -> int:
        """Return the exit status of ``doctor --ledger``, which prints its checks."""
        return subprocess.run(self._command("doctor", "--ledger"), env=self._environ(), check=False).returncode

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}/health/live", timeout=5) as answer:  # noqa: S310 - our own server
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "mpesa_gateway.cli", *words]

    def _environ(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)}
        return others | {ENVIRONMENT + name: value for name, value in self.settings.items()}

    def _settings(self) -> dict[str, str]:
        """Every plugin enabled, and no limit."""
        return {
            "PLUGINS": ",".join(sorted(point.name for point in entry_points(group=GROUP))),
            "PUBLIC_URL": self.base,
            "DATABASE__URL": self._standalone.postgres.url,
            "VALKEY__URL": self._standalone.valkey.url,
            "SECURITY__MASTER_KEY": generate(),
            "DARAJA__SANDBOX_URL": f"{self.base}/simulator",
            "DARAJA__SANDBOX_CERTIFICATE": str(self._certificate),
            "DARAJA__TIMEOUT": "5",
            "LIMITS__AUTH_FAILURES": "1000000",
            "LIMITS__REQUESTS_PER_SECOND": "100000",
            "LIMITS__BURST": "1000000",
            "SIMULATOR__CALLBACK_DELAY": "0.05",
            "METRICS__NETWORKS": "127.0.0.0/8",
            "TRACES__ENDPOINT": "http://127.0.0.1:1/nobody",
        }
