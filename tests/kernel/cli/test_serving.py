"""Protects `serve`, `worker` and `migrate`: the printed address, refusals in one sentence, and the stop on a signal."""

import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from uvicorn.supervisors import Multiprocess

from mpesa_gateway.commands.serve import _Processes  # pyright: ignore[reportPrivateUsage] - the announcement is its
from mpesa_gateway.commands.session import Session
from tests.kernel.cli.terminal import Host, address_of, exit_status_after, is_refused, wait_until


def health(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/health/ready", timeout=10) as answer:
        parts: dict[str, Any] = json.loads(answer.read())["data"]["parts"]
    return parts


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            status: int = answer.status
    except urllib.error.HTTPError as refused:
        return refused.code
    return status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_on_a_free_port_runs_until_a_signal(host: Host, number: signal.Signals) -> None:
    process = host.start("serve", "--port", "0")
    assert health(address_of(process))["postgres"]["ok"]
    assert exit_status_after(process, number) == 0


SLOW = """
import sys, time

if "multiprocessing" in " ".join(sys.orig_argv):
    time.sleep(6)
"""
"""Delays each process of several for longer than uvicorn waits by default."""


def test_serve_with_several_slow_processes_shares_the_address_and_ends_with_its_parent(host: Host) -> None:
    (host.folder / "slow").mkdir()
    (host.folder / "slow/sitecustomize.py").write_text(SLOW, encoding="utf-8")
    host.outside["PYTHONPATH"] = str(host.folder / "slow")
    process = host.start_fresh("serve", "--port", "0", "--workers", "2")
    address = address_of(process)
    assert health(address)["migrations"]["ok"]
    assert "died" not in (host.folder / "serve.log").read_text()
    children = children_of(process.pid)
    assert len(children) >= 2
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_on_sigterm_is_not_ready_first_and_still_serves(host: Host, workers: str) -> None:
    host.variables["HTTP__DRAIN"] = "3"
    starts = host.start if workers == "1" else host.start_fresh
    process = starts("serve", "--port", "0", "--workers", workers)
    address = address_of(process)
    assert health(address)["postgres"]["ok"]
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: status_of(f"{address}/health/ready") == 503)
    assert status_of(f"{address}/health/live") == 200
    assert process.poll() is None
    assert process.wait(30) == 0


def test_serve_with_several_processes_prints_the_address_once_all_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def keep(_: Multiprocess) -> None:
        """Replaces the restart of processes."""

    monkeypatch.setattr(Multiprocess, "keep_subprocess_alive", keep)
    ready = [False, False]
    processes = _Processes.__new__(_Processes)
    processes.where, processes.should_exit = "Serving http://127.0.0.1:1", threading.Event()
    processes.processes = [cast("Any", SimpleNamespace(is_ready=partial(ready.__getitem__, at))) for at in (0, 1)]
    for at in (0, 1):
        processes.keep_subprocess_alive()
        assert capsys.readouterr().out == ""
        ready[at] = True
    for said in ("Serving http://127.0.0.1:1\n", ""):
        processes.keep_subprocess_alive()
        assert capsys.readouterr().out == said


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("worker",), ("demo",), ("plugins",)])
def test_command_interrupted_before_its_signal_handlers_exits_with_130(
    bare_host: Host, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("config", "attached", "keep_data_in", "running"):
        monkeypatch.setattr(Session, name, interrupt)
    done = bare_host.run_in_process(*command)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_serve_with_worker_runs_a_worker(host: Host) -> None:
    address = address_of(host.start("serve", "--port", "0", "--with-worker"))
    wait_until(lambda: health(address)["queue"]["ok"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_runs_until_a_signal(host: Host, number: signal.Signals) -> None:
    process = host.start("worker")
    assert process.stdout is not None
    assert process.stdout.readline() == "Working\n"
    assert exit_status_after(process, number) == 0


def test_worker_with_chosen_queues_leaves_the_others_without_a_worker(host: Host) -> None:
    address = address_of(host.start("serve", "--port", "0"))
    process = host.start("worker", "--queues", "daraja, deliveries")
    assert process.stdout is not None
    assert process.stdout.readline() == "Working\n"
    said = "no worker serves maintenance, default: see --queues of `mpesa-gateway worker`"
    wait_until(lambda: health(address)["queue"]["detail"] == said)
    assert exit_status_after(process, signal.SIGTERM) == 0


@pytest.mark.parametrize("queues", ["webhooks", "", ",", "daraja,webhooks"])
def test_worker_with_an_unknown_queue_is_refused(host: Host, queues: str) -> None:
    words = "name some of deliveries, daraja, maintenance, default"
    assert is_refused(host.run("worker", "--queues", queues), 1, words)


def test_serve_on_a_port_in_use_is_refused(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert is_refused(host.run("serve", "--port", port), 1, f"cannot listen on 127.0.0.1 port {port}")


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_serve_and_worker_without_a_database_url_are_refused(bare_host: Host, command: str) -> None:
    assert is_refused(bare_host.run(command), 2, "`database.url` is not set")


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("worker",), ("migrate",), ("merchants", "list")])
def test_commands_with_an_unreachable_postgres_are_refused(host: Host, command: tuple[str, ...]) -> None:
    host.variables["DATABASE__URL"] = "postgresql://mpesa:hunter2-and-more@127.0.0.1:1/shop"
    done = host.run(*command)
    assert is_refused(done, 1, "cannot reach Postgres at 127.0.0.1:1")
    assert "hunter2" not in done.stderr


def test_migrate_of_a_missing_database_is_refused(host: Host) -> None:
    host.variables["DATABASE__URL"] += "_gone"
    assert is_refused(host.run("migrate"), 1, "does not exist")


def test_worker_with_an_unreachable_valkey_waits_for_it(host: Host) -> None:
    host.variables["VALKEY__URL"] = "redis://:hunter2-and-more@127.0.0.1:1"
    process = host.start("worker")
    assert process.stdout is not None
    assert process.stdout.readline() == "Working\n"
    assert exit_status_after(process, signal.SIGTERM) == 0
    said = (host.folder / "worker.log").read_text()
    assert "cannot reach Valkey at 127.0.0.1:1 (ConnectionError): waiting for it" in said
    assert "hunter2" not in said


def test_worker_with_a_wrong_valkey_password_fails(host: Host) -> None:
    start, _, end = host.variables["VALKEY__URL"].partition("@")
    assert end
    host.variables["VALKEY__URL"] = start.rpartition(":")[0] + ":not-the-password@" + end
    done = host.run("worker")
    assert done.returncode == 1
    assert "refuses us" in done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_prints_what_it_applies(host: Host) -> None:
    done = host.run("migrate", "--check")
    assert done.returncode == 1
    assert "missing kernel/0001_kernel.sql" in done.stdout
    assert "applied payments/" in host.output_of("migrate")
    assert "Nothing to apply" in host.output_of("migrate")
    assert "Nothing to apply" in host.output_of("migrate", "--check")


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if int(child) != os.getpid()
    ]
