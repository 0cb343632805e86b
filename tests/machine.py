"""A machine with only this program: `up` on a data folder of its own, and a terminal for commands."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.forking import forks

COMMAND = (sys.executable, "-m", "mpesa_gateway.cli")
PATIENCE = 120.0


class Machine:
    """A machine with only this program and one data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.said = ""
        self.key = ""
        """The demo merchant's key, which only the first `up` prints."""
        self._up: subprocess.Popen[str] | None = None
        self._number = 0

    @property
    def environ(self) -> dict[str, str]:
        """The environment without our variables, and with our commands on the PATH."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}
        return ours | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def up(self, *options: str) -> "subprocess.Popen[str]":
        """Start `up` and wait until it has printed its last line."""
        self._number += 1
        log = self.log
        with log.open("w") as output:
            process = subprocess.Popen(
                [*COMMAND, "up", "--data", str(self.data), *options],
                cwd=self.folder,
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._up = process
        deadline = time.monotonic() + PATIENCE
        while "Ctrl-C stops everything" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        self.said = log.read_text()
        if printed := re.findall(r"sk_test_\w+", self.said):
            self.key = printed[0]
        return process

    @property
    def log(self) -> Path:
        """The output of the last `up`."""
        return self.folder / f"up-{self._number}.log"

    @property
    def url(self) -> str:
        """The API's address, as the last `up` printed it."""
        found = re.search(r"API: (http://\S+)", self.said)
        assert found is not None, self.said
        return found[1]

    @property
    def simulator(self) -> str:
        """The address of the simulated phones, as the last `up` printed it."""
        found = re.search(r"simulated phones: (http://\S+)", self.said)
        assert found is not None, self.said
        return found[1]

    @property
    def running(self) -> "subprocess.Popen[str] | None":
        """The running `up`, or None."""
        return self._up if self._up is not None and self._up.poll() is None else None

    def run(self, *words: str, script: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command, or a script as pasted into a shell, to its end."""
        if script is None:
            return forks.run(words, folder=self.folder, environ=self.environ, reads="", patience=PATIENCE)
        command = ["bash", "-eu", "-o", "pipefail", "-c", script]
        return subprocess.run(
            command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def processes(self) -> dict[int, str]:
        """Return the command lines of processes on the data folder, found by command line or environment."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                text = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
                is_dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if str(self.data).encode() in text and not is_dead:
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        return found

    def kill_all_during_demo(self) -> None:
        """Start the demo, and at its first payment kill every process on the data folder with SIGKILL."""
        log = self.folder / "demo.log"
        with log.open("w") as output:
            demo = subprocess.Popen(
                [*COMMAND, "demo", "--data", str(self.data)],
                cwd=self.folder,
                env=self.environ,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + PATIENCE
        while "Payment of KES 500 asked for" not in log.read_text():
            assert demo.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert demo.wait(PATIENCE) == -signal.SIGKILL
        assert self._up is not None
        assert self._up.wait(PATIENCE) == -signal.SIGKILL
        while self.processes():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the running `up`."""
        if (process := self.running) is not None:
            process.terminate()
            process.wait(PATIENCE)


def machine_in(folder: Path) -> Machine:
    """Return a machine in this new folder, with permissions for the database server's own user to enter it."""
    folder.mkdir()
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return Machine(folder)
