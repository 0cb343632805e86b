"""Restarts crashed processes, and stops them in order."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from mpesa_gateway.standalone.process import launch, open_log, rotate, stop

LARGEST_LOG = 10 * 1024 * 1024
"""Bytes of a log file before it is rotated."""

_ROTATE_EVERY = 1.0
_LOOK = 0.1
_STEADY = 30.0
"""Seconds of uptime after which the count of crashes restarts."""

_LONGEST_PAUSE = 30.0


class Child:
    """One process and its command."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path | None, grace: float = 25.0
    ) -> None:
        """``log`` None inherits our output. ``grace`` is the time until SIGKILL, seconds."""
        self.name = name
        self._command = list(command)
        self._env = dict(env)
        self.log = log
        self._grace = grace
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._crashes = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        if self.log is None:
            self._process = self._launch(None)
        else:
            rotate(self.log, LARGEST_LOG)
            with open_log(self.log) as output:
                self._process = self._launch(output)
        self._started_at = time.monotonic()

    def _launch(self, output: IO[bytes] | None) -> subprocess.Popen[bytes]:
        return launch(
            self._command,
            output=2 if output is None else output,
            death_signal=signal.SIGTERM,
            env=self._env,
        )

    def pause_after_crash(self) -> float | None:
        """Return None while the process runs, else the seconds before a restart."""
        if self._process is None or self._process.poll() is None:
            return None
        self._crashes = 1 if time.monotonic() - self._started_at > _STEADY else self._crashes + 1
        pause: float = 0.5 * 2 ** (self._crashes - 1)
        return min(_LONGEST_PAUSE, pause)

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process, (signal.SIGTERM,), self._grace)
            self._process = None


class Supervisor:
    """Starts children in order, restarts crashed ones, stops them in reverse order."""

    def __init__(
        self,
        children: Sequence[Child],
        report: Callable[[str], None],
        repair: Callable[[], Iterable[str]] = tuple,
        *,
        logs: Sequence[Path] = (),
    ) -> None:
        """``report`` receives messages. ``repair`` restarts other servers and returns messages.

        ``logs`` are further files to rotate.
        """
        self._children = list(children)
        self._report = report
        self._repair = repair
        self._logs = [*logs, *(child.log for child in children if child.log is not None)]
        self._rotated_at = 0.0
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start all children; on failure none is left running."""
        try:
            for child in self._children:
                child.start()
        except BaseException:
            self.stop()
            raise

    def request_stop(self) -> None:
        """Make ``watch`` return. Safe in a signal handler."""
        self._stopping.set()

    def watch(self) -> None:
        """Restart crashed children, with growing pauses, until ``request_stop``."""
        due: dict[str, float] = {}
        while not self._stopping.wait(_LOOK):
            for sentence in self._repair():
                self._report(sentence)
            self._rotate()
            for child in self._children:
                if child.name in due:
                    if time.monotonic() >= due[child.name]:
                        del due[child.name]
                        child.start()
                    continue
                pause = child.pause_after_crash()
                if pause is not None:
                    self._report(f"{child.name} ended by itself (exit {child.exit_code}): started again in {pause:g} s")
                    due[child.name] = time.monotonic() + pause

    def _rotate(self) -> None:
        if time.monotonic() - self._rotated_at >= _ROTATE_EVERY:
            self._rotated_at = time.monotonic()
            for log in self._logs:
                rotate(log, LARGEST_LOG)

    def stop(self) -> None:
        self._stopping.set()
        for child in reversed(self._children):
            child.stop()
