"""Runs commands in processes that need not import everything first: each is a fork of one that has done so.

A command imports for 0.7 s and works for less. What is run here is a process of its own all the same, with its own
environment, folder, standard streams and exit status.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

_SERVE = "import sys; from tests.kernel.cli.forking import serve; serve(int(sys.argv[1]))"


class Forks:
    """The process that is forked, started when it is first needed, ended with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def run(
        self, words: Sequence[str], *, folder: Path, environ: Mapping[str, str], reads: str, patience: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run `mpesa-gateway` with these words to its end. Raises TimeoutError, with the command ended."""
        line = self._started()
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            given.write(reads)
            given.seek(0)
            request = json.dumps({"words": list(words), "folder": str(folder), "environ": dict(environ)}).encode()
            streams = [given.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(line, [len(request).to_bytes(4, "big") + request], streams)
            pid = int.from_bytes(_exactly(line, 4), "big")
            line.settimeout(patience)
            try:
                status = int.from_bytes(_exactly(line, 4), "big", signed=True)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                line.settimeout(None)
                _exactly(line, 4)
                raise
            line.settimeout(None)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def _started(self) -> socket.socket:
        if self._line is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _SERVE, str(theirs.fileno())],
                    cwd=Path(__file__).parents[3],
                    pass_fds=[theirs.fileno()],
                )
            self._line = ours
            atexit.register(self.stop)
        return self._line

    def stop(self) -> None:
        """End the process: it ends when nobody can ask it any more."""
        if self._line is not None and self._process is not None:
            self._line.close()
            self._process.wait()
            self._line = None


def serve(number: int) -> None:
    """Fork for each request on this socket, one after the other, until it is closed."""
    from mpesa_gateway.cli import main  # noqa: PLC0415 - not in the process that asks
    from mpesa_gateway.plugin import installed, load  # noqa: PLC0415 - likewise

    load(tuple(installed()))
    line = socket.socket(fileno=number)
    while True:
        head, streams, _, _ = socket.recv_fds(line, 4, 3)
        if not head:
            return
        size = int.from_bytes(head + _exactly(line, 4 - len(head)), "big")
        request = json.loads(_exactly(line, size))
        pid = os.fork()
        if pid == 0:
            line.close()
            os._exit(_run(request["words"], request["folder"], request["environ"], streams, main))
        for stream in streams:
            os.close(stream)
        line.sendall(pid.to_bytes(4, "big"))
        _, ended = os.waitpid(pid, 0)
        line.sendall(os.waitstatus_to_exitcode(ended).to_bytes(4, "big", signed=True))


def _run(words: list[str], folder: str, environ: dict[str, str], streams: list[int], main: object) -> int:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["mpesa-gateway", *words]
    status: int | str | None = 0
    try:
        assert callable(main)
        main()
    except SystemExit as ended:
        status = ended.code
    except BaseException:  # noqa: BLE001 - what Python itself does with it
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)  # noqa: T201 - likewise
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


forks = Forks()
"""Those of this test process."""
