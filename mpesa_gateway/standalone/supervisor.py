"""Keeps the processes of a small shop running: what crashes is started again, what is stopped stops in order."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from mpesa_gateway.standalone.process import launch, open_log, rotate, stop

LARGEST_LOG = 10 * 1024 * 1024
"""Bytes of a log file; the one before it is kept beside it."""

_ROTATE_EVERY = 1.0
_LOOK = 0.1
_STEADY = 30.0
"""Seconds after which a process that runs counts as well again."""

_LONGEST_PAUSE = 30.0


class Child:
    """One process, with the command that starts it."""

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path | None, grace: float = 25.0
    ) -> None:
        """``log`` takes its output; None lets it through to ours. ``grace`` is the time to stop by itself, seconds."""
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
        """The process, None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process."""
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
        """None while the process runs; after it ended, the seconds to wait before it is started again."""
        if self._process is None or self._process.poll() is None:
            return None
        self._crashes = 1 if time.monotonic() - self._started_at > _STEADY else self._crashes + 1
        pause: float = 0.5 * 2 ** (self._crashes - 1)
        return min(_LONGEST_PAUSE, pause)

    @property
    def exit_code(self) -> int | None:
        """How the process ended, None while it runs."""
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        """Ask it to stop, and wait for it."""
        if self._process is not None:
            stop(self._process, (signal.SIGTERM,), self._grace)
            self._process = None


class Supervisor:
    """Starts children in order, restarts what crashes, stops them in reverse order."""

    def __init__(
        self,
        children: Sequence[Child],
        tell: Callable[[str], None],
        mend: Callable[[], Iterable[str]] = tuple,
        *,
        logs: Sequence[Path] = (),
    ) -> None:
        """``tell`` is given a sentence about each crash; ``mend`` looks after what is not a child of ours.

        ``logs`` are files besides the children's that must not grow without end.
        """
        self._children = list(children)
        self._tell = tell
        self._mend = mend
        self._logs = [*logs, *(child.log for child in children if child.log is not None)]
        self._rotated_at = 0.0
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start all children; with none left running if one cannot be started."""
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
        """Until ``request_stop``: start again whatever ends by itself, more slowly each time."""
        due: dict[str, float] = {}
        while not self._stopping.wait(_LOOK):
            for sentence in self._mend():
                self._tell(sentence)
            self._rotate()
            for child in self._children:
                if child.name in due:
                    if time.monotonic() >= due[child.name]:
                        del due[child.name]
                        child.start()
                    continue
                pause = child.pause_after_crash()
                if pause is not None:
                    self._tell(f"{child.name} ended by itself (exit {child.exit_code}): started again in {pause:g} s")
                    due[child.name] = time.monotonic() + pause

    def _rotate(self) -> None:
        if time.monotonic() - self._rotated_at >= _ROTATE_EVERY:
            self._rotated_at = time.monotonic()
            for log in self._logs:
                rotate(log, LARGEST_LOG)

    def stop(self) -> None:
        """Stop all children, the last started first."""
        self._stopping.set()
        for child in reversed(self._children):
            child.stop()
