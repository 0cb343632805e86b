"""Protects log files of `up`: bounded while their writers continue, and private."""

import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from mpesa_gateway.standalone import supervisor as supervising
from mpesa_gateway.standalone.process import rotate
from mpesa_gateway.standalone.supervisor import Child, Supervisor

WRITES = """
import sys, time
for number in range(200_000):
    sys.stderr.write(f"line {number} {'x' * 80}\\n")
    sys.stderr.flush()
    if number % 100 == 0:
        time.sleep(0.001)
"""


def test_rotate_moves_a_large_log_and_its_writer_continues(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        rotate(log, 100)
        assert (log.stat().st_size, log.with_name("api.log.1").exists()) == (100, False)
        writer.write(b"b")
        rotate(log, 100)
        writer.write(b"after")
    aside = log.with_name("api.log.1")
    assert (log.read_bytes(), aside.read_bytes()) == (b"after", b"a" * 100 + b"b")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    rotate(tmp_path / "none.log", 1)
    rotate(tmp_path, 1)


def test_supervisor_bounds_the_logs_of_children_and_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "LARGEST_LOG", 50_000)
    monkeypatch.setattr(supervising, "_ROTATE_EVERY", 0.0)
    log, other = tmp_path / "api.log", tmp_path / "postgres.log"
    other.write_bytes(b"x" * 60_000)
    child = Child("api", [sys.executable, "-c", WRITES], env={}, log=log)
    supervisor = Supervisor([child], lambda _: None, logs=[other])
    supervisor.start()
    watching = threading.Thread(target=supervisor.watch)
    watching.start()
    try:
        until = time.monotonic() + 20
        while not (log.with_name("api.log.1").exists() and other.stat().st_size == 0):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert other.with_name("postgres.log.1").stat().st_size == 60_000
        assert child.pid is not None
    finally:
        supervisor.request_stop()
        watching.join()
        supervisor.stop()
    # One check of the size leaves this much to the next.
    assert log.stat().st_size < 20_000_000
