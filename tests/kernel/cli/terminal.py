"""The command as a host runs it: a process of its own, in an empty folder, with only its environment.

It is a fork of a process that has imported it: tests.forking.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import TypeAlias

from click.testing import CliRunner

from mpesa_gateway.cli import cli
from tests.forking import Forked, forks

COMMAND = (sys.executable, "-m", "mpesa_gateway.cli")
PATIENCE = 30.0

Process: TypeAlias = subprocess.Popen[str] | Forked
"""A command that keeps running."""


class Host:
    """A terminal in ``folder``. ``variables`` are ours, without MPESA_GATEWAY_; ``outside`` are others."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.variables = variables
        self.outside: dict[str, str] = {}
        self._processes: list[Process] = []

    @property
    def _environ(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}
        return ours | self.outside | {f"MPESA_GATEWAY_{name}": value for name, value in self.variables.items()}

    def run(self, *words: str, reads: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ``reads`` is its standard input."""
        return forks.run(words, folder=self.folder, environ=self._environ, reads=reads, patience=PATIENCE)

    def run_in_process(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command that starts no gateway in this process: the result is the same, and sooner."""
        answer = CliRunner(env=dict.fromkeys(set(os.environ) - set(self._environ)) | self._environ)
        with chdir(self.folder):
            done = answer.invoke(cli, list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    def output_of(self, *words: str) -> str:
        """Return the output of a command that must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, *words: str, log: str = "") -> Forked:
        """Start a command; its log is in ``<first word>.log``, or in the file ``log``."""
        with (self.folder / (log or f"{words[0]}.log")).open("w") as file:
            process = forks.start(words, folder=self.folder, environ=self._environ, log=file.fileno(), is_read=True)
        self._processes.append(process)
        return process

    def start_fresh(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command as a fresh process instead of a fork: it spawns processes of its own."""
        with (self.folder / f"{words[0]}.log").open("w") as file:
            process = subprocess.Popen(
                [*COMMAND, *words], cwd=self.folder, env=self._environ, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        """Kill the running commands."""
        while self._processes:
            process = self._processes.pop()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def is_refused(done: "subprocess.CompletedProcess[str]", status: int, words: str) -> bool:
    """Return True if a command ended with this status and one sentence with these words."""
    assert done.returncode == status, (done.returncode, done.stderr)
    assert done.stderr.startswith("mpesa-gateway: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    return True


def address_of(process: "Process") -> str:
    """Return the address that a serving process prints."""
    assert process.stdout is not None
    found = re.search(r"http://[^ ]+", process.stdout.readline())
    assert found is not None
    return found[0]


def exit_status_after(process: "Process", number: signal.Signals) -> int:
    """Send the signal and return the exit status."""
    process.send_signal(number)
    return process.wait(PATIENCE)


def wait_until(is_so: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + patience
    while not is_so():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.05)
