"""Starts our commands as forks of a process that has imported everything.

A command imports for about a second and often works for less. Each fork is still a process with its own environment,
folder, standard streams, process group and exit status. It ends with this process.
"""

import atexit
import ctypes
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

_SERVE = "import sys; from tests.forking import serve; serve(*map(int, sys.argv[1:]))"
_PR_SET_PDEATHSIG = 1

_COMMAND = """#!{python} -ISE
import json, os, signal, socket, sys

status, tells = os.pipe()
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect({door!r})
    asked = json.dumps({{"words": sys.argv[1:], "folder": os.getcwd(), "environ": dict(os.environ)}}).encode()
    socket.send_fds(asking, [len(asked).to_bytes(4, "big") + asked], [0, 1, 2, tells])
    pid = int.from_bytes(asking.recv(4, socket.MSG_WAITALL), "big")
os.close(tells)
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, lambda number, _: os.kill(pid, number))
ended = int.from_bytes(os.read(status, 4), "big", signed=True)
if ended < 0:
    signal.signal(-ended, signal.SIG_DFL)
    os.kill(os.getpid(), -ended)
sys.exit(ended)
"""
"""The `mpesa-gateway` of a shell: it requests a fork, passes signals on, and exits with its status."""


class Forked:
    """A forked process with the part of `subprocess.Popen` that tests use."""

    def __init__(self, args: Sequence[str], pid: int, ended: int, stdout: IO[str] | None) -> None:
        """``ended`` is a pipe that carries the exit status."""
        self.args = list(args)
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, None while the process runs."""
        if self.returncode is None and _is_readable(self._ended, 0):
            self.returncode = int.from_bytes(_read(self._ended), "big", signed=True)
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit status. Raises subprocess.TimeoutExpired after ``timeout`` seconds."""
        if self.returncode is None and not _is_readable(self._ended, timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and close its output."""
        self.kill()
        self.wait()
        if self.stdout is not None:
            self.stdout.close()


class Forks:
    """The forking process, started on first use, ended with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._asking = threading.Lock()
        self._folder: Path | None = None

    def run(
        self, words: Sequence[str], *, folder: Path, environ: Mapping[str, str], reads: str, patience: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run `mpesa-gateway` with these words to its end. Raises TimeoutError after ending the command."""
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            given.write(reads)
            given.seek(0)
            process = self._fork(words, folder, environ, (given.fileno(), out.fileno(), err.fileno()))
            try:
                status = process.wait(patience)
            except subprocess.TimeoutExpired:
                process.close()
                raise TimeoutError(f"{words} has not ended after {patience:g} s") from None
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def start(
        self, words: Sequence[str], *, folder: Path, environ: Mapping[str, str], log: int, is_read: bool = False
    ) -> Forked:
        """Start `mpesa-gateway` with these words. Its output goes to the file ``log``.

        With ``is_read``, only its standard error does: its standard output is in the process's ``stdout``.
        """
        with Path(os.devnull).open("rb") as nothing:
            if not is_read:
                return self._fork(words, folder, environ, (nothing.fileno(), log, log))
            ours, theirs = os.pipe()
            try:
                process = self._fork(words, folder, environ, (nothing.fileno(), theirs, log))
            finally:
                os.close(theirs)
            process.stdout = os.fdopen(ours, encoding="utf-8")
            return process

    def command(self) -> Path:
        """Return a folder for the PATH of a shell. Its `mpesa-gateway` starts a fork in the shell's folder."""
        with self._asking:
            self._started()
        assert self._folder is not None
        return self._folder / "bin"

    def _fork(
        self, words: Sequence[str], folder: Path, environ: Mapping[str, str], streams: tuple[int, int, int]
    ) -> Forked:
        request = json.dumps({"words": list(words), "folder": str(folder), "environ": dict(environ)}).encode()
        ended, tells = os.pipe()
        try:
            with self._asking:
                line = self._started()
                socket.send_fds(line, [len(request).to_bytes(4, "big") + request], [*streams, tells])
                pid = int.from_bytes(_exactly(line, 4), "big")
        finally:
            os.close(tells)
        return Forked(words, pid, ended, None)

    def _started(self) -> socket.socket:
        if self._line is None:
            self._folder = Path(tempfile.mkdtemp(prefix="forks-"))
            command = self._folder / "bin" / "mpesa-gateway"
            command.parent.mkdir()
            door_path = str(self._folder / "door")
            command.write_text(_COMMAND.format(python=sys.executable, door=door_path), encoding="utf-8")
            command.chmod(0o700)
            ours, theirs = socket.socketpair()
            with theirs, socket.socket(socket.AF_UNIX) as door:
                door.bind(door_path)
                door.listen()
                passed = [theirs.fileno(), door.fileno()]
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _SERVE, *map(str, passed)], cwd=Path(__file__).parents[1], pass_fds=passed
                )
            self._line = ours
            atexit.register(self.stop)
        return self._line

    def stop(self) -> None:
        """End the forking process by closing its socket."""
        if self._line is not None and self._process is not None:
            self._line.close()
            self._process.wait()
            self._line = None
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None


def serve(number: int, door_number: int) -> None:
    """Fork for each request until the socket ``number`` is closed, and report how each fork ended.

    ``door_number`` is a listening socket: each connection to it carries one request.
    """
    from mpesa_gateway.cli import COMMANDS, main  # noqa: PLC0415 - not in the process that requests a fork
    from mpesa_gateway.installed_plugins import installed  # noqa: PLC0415 - the same reason
    from mpesa_gateway.plugin import load  # noqa: PLC0415 - the same reason

    for entry in [*COMMANDS, *(entry for plugin in load(tuple(installed())) for entry in plugin.commands)]:
        entry.load()
    gc.collect()
    gc.freeze()
    line, door = socket.socket(fileno=number), socket.socket(fileno=door_number)
    waking, woken = socket.socketpair()
    for end in (waking, woken):
        end.settimeout(0)
    signal.signal(signal.SIGCHLD, _ignore)
    signal.set_wakeup_fd(waking.fileno())
    running: dict[int, int] = {}
    ours = (line, door, waking, woken)
    while True:
        ready, _, _ = select.select([line, door, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _report_ended(running)
        if door in ready:
            asking, _ = door.accept()
            with asking:
                _fork_on_request(asking, (*ours, asking), running, main)
        if line in ready and not _fork_on_request(line, ours, running, main):
            return


def _fork_on_request(
    line: socket.socket, ours: Sequence[socket.socket], running: dict[int, int], main: Callable[[], object]
) -> bool:
    """Fork for the next request on ``line`` and answer with the process number; return False at its end."""
    head, streams, _, _ = socket.recv_fds(line, 4, 4)
    if not head:
        return False
    size = int.from_bytes(head + _exactly(line, 4 - len(head)), "big")
    request = json.loads(_exactly(line, size))
    *streams, tells = streams
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (tells, *running.values(), *(one.fileno() for one in ours)):
            os.close(each)
        os._exit(_run(request["words"], request["folder"], request["environ"], streams, main, parent))
    for stream in streams:
        os.close(stream)
    running[pid] = tells
    line.sendall(pid.to_bytes(4, "big"))
    return True


def _ignore(_: int, __: FrameType | None) -> None:
    """Python writes to the wake-up pipe only for signals that have a handler."""


def _report_ended(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        tells = running.pop(pid)
        try:
            os.write(tells, os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        except BrokenPipeError:
            pass
        finally:
            os.close(tells)


def _run(
    words: list[str], folder: str, environ: dict[str, str], streams: list[int], main: Callable[[], object], parent: int
) -> int:
    os.setpgid(0, 0)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return 1
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    # PYTHONPATH must be searched, as when Python starts with it. It cannot replace modules that are imported already.
    added = [each for each in environ.get("PYTHONPATH", "").split(os.pathsep) if each and each not in sys.path]
    sys.path[1:1] = added
    sys.argv = ["mpesa-gateway", *words]
    status: int | str | None = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    except BaseException:  # noqa: BLE001 - Python itself handles uncaught exceptions in this way
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)  # noqa: T201 - Python itself prints the text of a SystemExit
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status or 0


def _exactly(line: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = line.recv(size - len(found))
        if not part:
            raise ConnectionError("the forking process has ended")
        found += part
    return found


def _is_readable(pipe: int, patience: float | None) -> bool:
    """Wait up to ``patience`` seconds for data. Unlike `select`, poll works for any number of files."""
    looking = select.poll()
    looking.register(pipe, select.POLLIN | select.POLLHUP)
    return bool(looking.poll(None if patience is None else patience * 1000))


def _read(pipe: int) -> bytes:
    found = os.read(pipe, 4)
    if len(found) < 4:
        raise ConnectionError("the forking process has ended")
    return found


forks = Forks()
"""The forks of this test process."""
