"""Limits that a server enforces itself: heads, idle connections, deaf clients, connections, its own stop.

The application behind it can enforce none of these. Each is tested with the recorder, with every limit set to SECONDS
or CONNECTIONS if the server has one.
"""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

SECONDS = 3.0
"""The value of every time limit, in seconds."""

CONNECTIONS = 200
"""The limit of connections."""

_PATIENCE = 4 * SECONDS
_GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"


def _connect(port: int, receive_buffer: int = 0) -> socket.socket:
    line = socket.socket()
    if receive_buffer:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    line.settimeout(_PATIENCE)
    line.connect(("127.0.0.1", port))
    return line


def _closes(line: socket.socket, drip: bytes = b"") -> float | None:
    """Return the seconds until the server closes the connection, or None if it stays open."""
    start = time.monotonic()
    line.settimeout(0.25)
    while time.monotonic() - start < _PATIENCE:
        try:
            if drip:
                line.sendall(drip)
            while line.recv(65_536):
                pass
        except TimeoutError:
            continue
        except OSError:
            pass
        return time.monotonic() - start
    return None


def _verdict(seconds: float | None) -> tuple[bool, str]:
    return (False, "stays open") if seconds is None else (True, f"closed after {seconds:.1f} s")


def silent(port: int) -> tuple[bool, str]:
    """A connection that sends nothing is closed."""
    with _connect(port) as line:
        return _verdict(_closes(line))


def dripping_head(port: int) -> tuple[bool, str]:
    """A head that comes byte by byte is cut off."""
    with _connect(port) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
        return _verdict(_closes(line, b"x"))


def huge_head(port: int) -> tuple[bool, str]:
    """A head of 4 MiB is refused before it has all come."""
    with _connect(port) as line:
        with suppress(OSError):
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 4_194_304)
        answer = b""
        with suppress(OSError):
            answer = line.recv(12)
    return (
        (answer[9:12] != b"200" and answer != b"", answer.decode("latin-1") or "hung up")
        if answer
        else (True, "hung up")
    )


def deaf(port: int) -> tuple[bool, str]:
    """A client that reads nothing of its answer is disconnected."""
    with _connect(port, 4096) as line:
        line.sendall(_GET % b"large" * 3)
        start = time.monotonic()
        while time.monotonic() - start < _PATIENCE:
            time.sleep(0.25)
            try:
                line.sendall(b"\r\n")
            except OSError:
                return _verdict(time.monotonic() - start)
    return _verdict(None)


def crowded(port: int) -> tuple[bool, str]:
    """With every connection taken by silent ones, a new client is answered at once."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS + 20):
            with suppress(OSError):
                stack.enter_context(_connect(port))
        start = time.monotonic()
        answer = b""
        with suppress(OSError):
            line = stack.enter_context(_connect(port))
            line.sendall(_GET % b"")
            answer = line.recv(65_536)
        took = time.monotonic() - start
    is_answered = answer.startswith(b"HTTP/1.1 200")
    return is_answered and took < 1, f"answered after {took:.1f} s" if is_answered else "not answered"


def kept(port: int) -> tuple[bool, str]:
    """A kept connection may be idle for longer than a head may take (a proxy's pool)."""
    with _connect(port) as line:
        line.sendall(_GET % b"")
        time.sleep(SECONDS + 1.5)
        answers = b""
        with suppress(OSError):
            line.sendall(_GET % b"")
            while answers.count(b"HTTP/1.1 200") < 2 and (part := line.recv(65_536)):
                answers += part
    is_served = answers.count(b"HTTP/1.1 200") == 2
    return is_served, "still served" if is_served else "closed"


TOGETHER: tuple[Callable[[int], tuple[bool, str]], ...] = (silent, dripping_head, huge_head, deaf, kept)


def stops(port: int, process: "subprocess.Popen[bytes]") -> tuple[bool, str]:
    """A request in work is answered after SIGTERM, and an idle connection does not keep the process."""
    with _connect(port) as idle, _connect(port) as busy:
        idle.sendall(_GET % b"")
        idle.recv(65_536)
        busy.sendall(_GET % b"slow")
        time.sleep(0.3)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        answer = b""
        with suppress(OSError):
            answer = busy.recv(12)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return False, "goes on"
        took = time.monotonic() - start
    if answer != b"HTTP/1.1 200":
        return False, f"the request is not answered; ended after {took:.1f} s"
    return True, f"answered; ended after {took:.1f} s"


def run(port: int, process: "subprocess.Popen[bytes]", say: Callable[[str], None]) -> Mapping[str, tuple[bool, str]]:
    """Run all checks, and stop the server at the end. Returns the result of each."""
    with ThreadPoolExecutor(len(TOGETHER)) as pool:
        waits = {_name(check): pool.submit(check, port) for check in TOGETHER}
        found = {name: wait.result() for name, wait in waits.items()}
    found[_name(crowded)] = crowded(port)
    found[_name(stops)] = stops(port, process)
    for name, (is_held, text) in found.items():
        if not is_held:
            say(f"  not so: {name}: {text}")
    return found


def _name(check: Callable[..., object]) -> str:
    return (check.__doc__ or check.__name__).rstrip(".")
