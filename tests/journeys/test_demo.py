"""Protects `demo` and `up`: the printed lines work, Ctrl-C and kill -9 leave no process and no loss.

An `up` takes several seconds of CPU, so tests share a machine, in a running or stopped state.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from mpesa_gateway.security.sealing import generate
from mpesa_gateway.standalone.process import write_private
from mpesa_gateway.testing.serving import SANDBOX, Api, eventually
from tests.machine import PATIENCE, Machine, machine_in


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with folders that the database server's own user can traverse."""
    machine = machine_in(tmp_path_factory.mktemp("demo") / "machine")
    yield machine
    machine.stop()


@pytest.fixture
def running(machine: Machine) -> "subprocess.Popen[str]":
    """The machine's `up`, started if none runs."""
    return machine.running or machine.up()


@pytest.fixture
def stopped(machine: Machine) -> Machine:
    """The machine after an `up` has run and stopped."""
    if not machine.data.exists():
        machine.up()
    machine.stop()
    assert machine.processes() == {}
    return machine


@pytest.fixture
def another_machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine for one test."""
    machine = machine_in(tmp_path / "machine")
    yield machine
    machine.stop()


def pasted_lines(output: str) -> str:
    """Return the lines that `up` prints for copying."""
    return "\n".join(line for line in output.splitlines() if re.match(r"(KEY|ANSWER|PAYMENT)=|curl |sleep ", line))


def test_demo_and_up_started_twice_work_as_printed(machine: Machine) -> None:
    played = machine.run("demo", "--data", str(machine.data))
    assert played.returncode == 0, played.stdout + played.stderr
    assert "All 23 steps passed" in played.stdout
    assert machine.processes() == {}

    process = machine.up()
    # The demo's `up` created the key and printed to a file.
    assert "The master key is in" in machine.said
    key = re.findall(r"sk_test_\w+", machine.said)
    assert len(key) == 1
    url = re.findall(r"API: (http://\S+)", machine.said)[0]

    pasted = machine.run(script=pasted_lines(machine.said))
    assert pasted.returncode == 0, pasted.stderr
    stored, payment, found, listed, in_hand = map(json.loads, pasted.stdout.splitlines())
    assert stored["data"]["config_summary"]["passkey"] == "****c919"
    assert payment["data"]["status"] == "pending"
    assert found["data"]["status"] == "completed"
    assert [payment["id"] for payment in listed["data"]] == [payment["data"]["id"]]
    assert in_hand["data"]["status"] == "pending"

    played = machine.run("demo", "--data", str(machine.data))
    assert played.returncode == 0, played.stdout + played.stderr
    assert "21/23" in played.stdout
    assert "\x1b" not in played.stdout
    assert asyncio.run(left_by_the_demo(machine)) == (0, 0, 0)
    assert logged_secrets(machine, key[0]) == []
    lines = [json.loads(line) for line in (machine.data / "logs/api.log").read_text().splitlines() if line[:1] == "{"]
    (created,) = [
        line for line in lines if line["event"] == "request" and line.get("payment_id") == payment["data"]["id"]
        if (line["method"], line["route"], line["status"]) == ("POST", "/v1/payments", 201)
    ]  # fmt: skip
    assert created["merchant_id"] == payment["data"]["merchant_id"]
    assert created["request_id"].startswith("req_")

    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert machine.processes() == {}

    # The warning lasts until a copy is confirmed.
    confirmed = machine.run("keys", "saved", "--data", str(machine.data))
    assert confirmed.returncode == 0, confirmed.stderr
    process = machine.up()
    assert url in machine.said
    assert "sk_test_" not in machine.said
    assert "The master key is in" not in machine.said
    pasted = machine.run(script=pasted_lines(machine.said))
    assert pasted.returncode == 0, pasted.stderr
    *_, listed, _ = map(json.loads, pasted.stdout.splitlines())
    assert payment["data"]["id"] in [payment["id"] for payment in listed["data"]]


def test_up_on_a_used_folder_or_port_fails(machine: Machine, running: "subprocess.Popen[str]") -> None:
    second = machine.run("up", "--data", str(machine.data))
    assert second.returncode == 1
    assert f"is in use by process {running.pid}" in second.stderr
    assert "Traceback" not in second.stderr

    port = re.findall(r"API: http://\S+:(\d+)", machine.said)[0]
    third = machine.run("up", "--data", str(machine.folder / "other"), "--port", port)
    assert third.returncode == 1
    assert third.stderr == f"mpesa-gateway: port {port} is in use: stop what listens there, or choose another --port\n"


def test_demo_with_a_failing_step_exits_nonzero(machine: Machine, running: "subprocess.Popen[str]") -> None:
    assert running.poll() is None
    worker = next(pid for pid, command in machine.processes().items() if command.endswith("mpesa_gateway.cli worker"))
    os.kill(worker, signal.SIGSTOP)
    try:
        played = machine.run("demo", "--data", str(machine.data))
    finally:
        os.kill(worker, signal.SIGCONT)
    assert played.returncode == 1
    assert "✗ 6/23 Webhook received" in played.stdout
    assert played.stderr == (
        "mpesa-gateway: the demo stopped: a payment.completed webhook was expected within 10 seconds and did not come\n"
    )


def test_up_restarts_its_killed_servers(machine: Machine, running: "subprocess.Popen[str]") -> None:
    log = machine.log
    for file in ("postgres/postmaster.pid", "valkey/pid"):
        os.kill(int((machine.data / file).read_text().split()[0]), signal.SIGKILL)
    deadline, answer = time.monotonic() + PATIENCE, ""
    while '"success":true' not in answer:
        assert time.monotonic() < deadline, answer + log.read_text()
        time.sleep(0.2)
        answer = machine.run(
            script=f"curl -sS {machine.url}/v1/merchant/me -H 'X-API-Key: {machine.key}' || true"
        ).stdout
    played = machine.run("demo", "--data", str(machine.data))
    assert played.returncode == 0, played.stdout + played.stderr
    output = log.read_text()
    assert "Postgres ended by itself: started again" in output
    assert "Valkey ended by itself: started again" in output
    running.terminate()
    assert running.wait(PATIENCE) == 0
    assert machine.processes() == {}


def test_up_without_the_right_master_key_fails_and_creates_none(stopped: Machine) -> None:
    machine = stopped
    file = machine.data / "master.key"
    assert file.stat().st_mode & 0o777 == 0o600
    key = file.read_text()
    for change, sentence in (
        (file.unlink, "is missing: restore it from your copy"),
        (lambda: write_private(file, generate()), "is not the one that this database was sealed with"),
        (lambda: file.write_text("hunter2"), "is not a master key: it must be 32 bytes in base64"),
    ):
        change()
        before = file.read_text() if file.exists() else None
        refused = machine.run("up", "--data", str(machine.data))
        assert refused.returncode == 2
        assert sentence in refused.stderr
        assert "Traceback" not in refused.stderr + refused.stdout
        assert (file.read_text() if file.exists() else None) == before
        assert machine.processes() == {}
    file.write_text(key)
    machine.up()


def test_up_killed_leaves_no_process_and_restarts(machine: Machine, running: "subprocess.Popen[str]") -> None:
    url = machine.url
    running.kill()
    running.wait()
    deadline = time.monotonic() + PATIENCE
    while machine.processes():
        assert time.monotonic() < deadline, machine.processes()
        time.sleep(0.1)

    process = machine.up()
    process.kill()
    process.wait()
    process = machine.up()
    assert url in machine.said
    answer = machine.run(script=f"curl -sS {url}/v1/merchant/me -H 'X-API-Key: {machine.key}'")
    assert json.loads(answer.stdout)["success"]
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert machine.processes() == {}


async def test_up_tree_killed_during_a_demo_loses_nothing(another_machine: Machine) -> None:
    machine = another_machine
    machine.up()
    api = Api(machine.url, machine.key)
    assert (await api.call("PUT", "/v1/merchant/providers", SANDBOX)).status == 200
    payment = (await api.pay("254700000020", 321, key="kill")).data
    machine.kill_all_during_demo()

    process = machine.up()
    # The payers answer their prompts.
    phones = Api(re.findall(r"simulated phones: (http://[^/\s]+)", machine.said)[0], None)
    for prompt in (await phones.call("GET", "/simulator/control/pushes?state=open")).data:
        path = f"/simulator/control/pushes/{prompt['checkout_request_id']}/answer"
        assert (await phones.call("POST", path, {"answer": "pay"})).status == 200
    ended = await api.settled(payment["id"], "completed", patience=PATIENCE)
    (prompt,) = (await phones.call("GET", f"/simulator/control/pushes?reference={payment['reference']}")).data
    assert ended["receipt"] in {prompt["receipt"], None}
    again = await api.pay("254700000020", 321, key="kill")
    assert (again.status, again.data["id"]) == (200, payment["id"])
    # The demo's own payments are included: all money that moved is in the books.
    ledger = (await phones.call("GET", "/simulator/control/ledger")).data
    url = tomllib.loads((machine.data / "run/gateway.toml").read_text())["database"]["url"]

    async def is_booked() -> bool:
        books = await asyncpg.connect(url)
        try:
            rows = await books.fetch("SELECT amount FROM mpesa.payment WHERE status = 'completed'")
        finally:
            await books.close()
        return sorted(row["amount"] for row in rows) == sorted(entry["amount"] for entry in ledger)

    await eventually(is_booked, patience=PATIENCE)
    await api.close()
    await phones.close()
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert machine.processes() == {}


async def left_by_the_demo(machine: Machine) -> tuple[int, int, int]:
    """Return the counts of rejected callbacks, statement lines for review, and pending deliveries."""
    books = await asyncpg.connect(tomllib.loads((machine.data / "run/gateway.toml").read_text())["database"]["url"])
    try:
        row = await books.fetchrow(
            "SELECT (SELECT count(*) FROM mpesa.refused_callback),"
            " (SELECT count(*) FROM mpesa.noted_line WHERE finding IN ('not_found', 'mismatched', 'ambiguous')"
            "  AND NOT is_known),"
            " (SELECT count(*) FROM mpesa.delivery JOIN mpesa.merchant USING (merchant_id)"
            "  WHERE merchant.name = 'Demo story' AND delivery.status <> 'delivered')"
        )
    finally:
        await books.close()
    assert row is not None
    return row[0], row[1], row[2]


def logged_secrets(machine: Machine, key: str) -> list[str]:
    """Return keys, secrets and whole phone numbers in the logs."""
    written = "\n".join(file.read_text() for file in (machine.data / "logs").iterdir())
    assert "gateway_started" in written
    forbidden = [
        key,
        (machine.data / "master.key").read_text().strip(),
        "demo-consumer-secret-3c4d",
        "bfb279f9aa9bdbcf158e97dd71a467cd2e0c893059b10f78e6b72ada1ed2c919",
        "254700000020",
        "254700000000",
        "whsec_",
    ]
    return [word for word in forbidden if word in written]
