"""Child processes: bound to this process's life, found again after a crash, and stopped."""

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
    """A server did not start. The text has the reason and a fix."""


def free_port(preferred: int | None = None) -> int:
    """Return ``preferred`` if it is free, else any free loopback port."""
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
    """Return whether the port is free within ``patience`` seconds."""
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
    """Start a command that gets ``death_signal`` when this process dies.

    ``umask`` -1 keeps ours. The command has its own process group: Ctrl-C reaches only this process, which stops the
    others in order.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def bind_to_parent() -> None:
        # After the change of user, which clears it.
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
    """Get ``death_signal`` when the parent dies; exit now if it is dead already. Linux only."""
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
    """Return whether the process is this executable in this folder, and not another one with a reused pid."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return (
            executable in Path(name.partition(" ")[0]).name and state != "Z" and Path(f"/proc/{pid}/cwd").samefile(cwd)
        )
    except (OSError, IndexError):
        return False


def end(pid: int, executable: str, cwd: Path, signals: Sequence[signal.Signals], patience: float = 10.0) -> None:
    """Stop a process of ours with each signal in turn, ``patience`` seconds each."""
    for number in signals:
        if not is_running(pid, executable, cwd):
            return
        os.kill(pid, number)
        deadline = time.monotonic() + patience
        while is_running(pid, executable, cwd) and time.monotonic() < deadline:
            time.sleep(_PAUSE)


def stop(process: subprocess.Popen[bytes], signals: Sequence[signal.Signals], patience: float = 10.0) -> None:
    """Stop a child with each signal in turn, SIGKILL last."""
    for number in (*signals, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def tail(path: Path, lines: int = 8) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


PRIVATE = 0o077
"""Umask of servers: files are for their own account only."""


def open_log(path: Path) -> IO[bytes]:
    """Open a log file for appending, mode 0600."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    os.fchmod(file.fileno(), 0o600)
    return file


def rotate(path: Path, largest: int) -> None:
    """Move the contents of a log over ``largest`` bytes to ``<name>.1``.

    Its writer keeps it open: lines written during the copy are lost.
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
        # A full disk or a deleted file must not stop the gateway.
        return


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, mode 0600."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
