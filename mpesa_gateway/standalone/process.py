"""Processes that we start and stop: taken down with us, found again when we were killed, never mistaken for others."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_PAUSE = 0.02


class StartFailed(Exception):
    """A server did not start. The text says why, and what to do."""


def free_port(preferred: int | None = None) -> int:
    """``preferred`` if nobody listens there, else a free port of the loopback interface."""
    for candidate in (preferred, 0):
        if candidate is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StartFailed("no free port on 127.0.0.1")


def becomes_free(port: int, patience: float) -> bool:
    """Whether nobody listens on this port, or will not any more within ``patience`` seconds."""
    until = time.monotonic() + patience
    while free_port(port) != port:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def launch(
    command: Sequence[str],
    *,
    output: IO[bytes] | int,
    death_signal: signal.Signals,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Start a command that gets ``death_signal`` when this process dies, however it dies.

    ``user`` (root only) is whom it runs as; ``umask`` is -1 for our own. It gets a process group of
    its own: a Ctrl-C in the terminal reaches us alone, and we stop the others in order.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def bind_to_parent() -> None:
        # After the change of user, which would clear it again.
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:
            os._exit(1)

    # S603: the commands are our own; preexec_fn runs two calls that are safe after fork.
    return subprocess.Popen(  # noqa: S603
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(env) if env is not None else None,
        cwd=cwd,
        user=user,
        group=_group_of(user),
        extra_groups=[] if user is not None else None,
        process_group=0,
        umask=umask,
        preexec_fn=bind_to_parent,  # noqa: PLW1509
    )


def die_with_parent(parent: int, death_signal: signal.Signals) -> None:
    """Get ``death_signal`` when the process that started us dies; end now if it has died already. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:
            os._exit(1)


def _group_of(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd  # noqa: PLC0415 - not on every platform

    return pwd.getpwnam(user).pw_gid


def is_running(pid: int, executable: str, cwd: Path) -> bool:
    """Whether the process is this executable, at work in this folder: ours, and not a stranger with a reused number."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return (
            executable in Path(name.partition(" ")[0]).name and state != "Z" and Path(f"/proc/{pid}/cwd").samefile(cwd)
        )
    except (OSError, IndexError):
        return False


def end(pid: int, executable: str, cwd: Path, signals: Sequence[signal.Signals], patience: float = 10.0) -> None:
    """Stop a process that is ours, with each signal in turn, ``patience`` seconds each."""
    for number in signals:
        if not is_running(pid, executable, cwd):
            return
        os.kill(pid, number)
        deadline = time.monotonic() + patience
        while is_running(pid, executable, cwd) and time.monotonic() < deadline:
            time.sleep(_PAUSE)


def stop(process: subprocess.Popen[bytes], signals: Sequence[signal.Signals], patience: float = 10.0) -> None:
    """Stop a child and wait for it, with each signal in turn, at last with SIGKILL."""
    for number in (*signals, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a log file, for an error message."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


PRIVATE = 0o077
"""The umask of servers: what they write is for their own user alone."""


def open_log(path: Path) -> IO[bytes]:
    """A log file to append to, which only its owner can read."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    os.fchmod(file.fileno(), 0o600)
    return file


def rotate(path: Path, largest: int) -> None:
    """Move what a log file of more than ``largest`` bytes holds to ``<name>.1``, over what is there.

    Its writer keeps it open for appending: the file is copied and emptied. Lines written in between are lost.
    """
    try:
        if path.stat().st_size <= largest:
            return
        draft = path.with_name(path.name + ".1.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with path.open("rb") as source, os.fdopen(descriptor, "wb") as target:
            shutil.copyfileobj(source, target)
            os.truncate(path, 0)
        draft.replace(path.with_name(path.name + ".1"))
    except OSError:
        # A full disk, or a file that has gone: a log is no reason to stop.
        return


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, all of it or nothing."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
