"""Protects the `doctor` command: its output, its exit status, and that it changes nothing."""

import asyncio
import json
import os
import subprocess
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.security.sealing import generate
from tests.identifiers import literal
from tests.kernel.cli.terminal import Host, address_of, is_refused, wait_until

pytestmark = pytest.mark.as_owner


def report(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def levels(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    return {seen["name"]: seen["level"] for seen in report(done)["observations"]}


def in_database(host: Host, *statements: str) -> None:
    """Change rows without the gateway."""

    async def work() -> None:
        connection = await asyncpg.connect(
            host.variables["DATABASE__URL"],
            server_settings={"search_path": "mpesa", "session_replication_role": "replica"},
        )
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    asyncio.run(work())


@pytest.fixture
def narrow(host: Host) -> Host:
    """Return a host with a terminal of 80 columns and an unreachable Daraja."""
    host.outside = {"COLUMNS": "80", "PATH": os.environ["PATH"]}
    host.variables |= {"DARAJA__SANDBOX_URL": "http://127.0.0.1:9", "DARAJA__LIVE_URL": "http://127.0.0.1:19"}
    return host


def too_wide(lines: list[str]) -> list[str]:
    """Return breakable lines of more than 80 columns, and lines that end in blanks."""
    return [line for line in lines if (len(line) > 80 and " " in line.strip()) or line != line.rstrip()]


def test_doctor_without_settings_reports_the_settings_as_the_problem(bare_host: Host) -> None:
    done = bare_host.run("doctor")
    assert done.returncode == 1
    assert "problem" in done.stdout
    assert "database.url" in done.stdout
    assert done.stderr == ""
    done = bare_host.run("doctor", "--json")
    assert (done.returncode, levels(done)) == (1, {"settings.readable": "problem"})


def test_doctor_from_first_run_to_no_problem(narrow: Host) -> None:
    host = narrow
    done = host.run("doctor")
    assert done.returncode == 1
    assert "mpesa-gateway migrate" in done.stdout
    host.output_of("migrate")
    host.output_of("merchants", "create", "Duka la Mtaa")
    done = host.run("doctor", "--json")
    assert (done.returncode, report(done)["ready"]) == (1, False)
    assert {name for name, level in levels(done).items() if level == "problem"} == {"workers.alive", "daraja.sandbox"}

    host.variables["PUBLIC_URL"] = address_of(host.start("serve", "--port", "0"))
    # The Date header of any HTTP server is good enough for the check of the clock.
    host.variables["DARAJA__SANDBOX_URL"] = host.variables["PUBLIC_URL"]
    host.start("worker")
    wait_until(lambda: host.run("doctor").returncode == 0)
    done = host.run("doctor")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Examining http://127.0.0.1:")
    assert lines[-1].startswith("No problem: ")
    assert too_wide(lines) == []
    assert any(line.startswith("Duka la Mtaa (mer_") for line in lines)
    assert done.stderr == ""
    password = host.variables["DATABASE__URL"].partition("mpesa:")[2].partition("@")[0]
    assert password not in done.stdout

    quiet = host.run("doctor", "--quiet").stdout
    assert "note" in quiet
    assert not [line for line in quiet.splitlines() if line.startswith("ok ")]
    assert levels(host.run("doctor", "--json"))["address.reached"] == "ok"

    live = host.run("doctor", "--live")
    assert live.returncode == 1
    assert "problems (" in live.stdout
    # Problems are repeated at the end.
    assert live.stdout.count("public_url is http://127.0.0.1") == 2

    merchant_id = host.output_of("merchants", "create", "Other")
    only = report(host.run("doctor", "--merchant", merchant_id, "--json"))
    assert {seen.get("merchant_id") for seen in only["observations"]} == {None, merchant_id}
    assert is_refused(host.run("doctor", "--merchant", "mer_nobody"), 1, "there is no merchant mer_nobody")


def test_doctor_with_a_master_key_of_another_database_reports_a_problem(narrow: Host) -> None:
    host = narrow
    host.output_of("merchants", "list")
    host.variables["SECURITY__MASTER_KEY"] = generate()
    del host.variables["SECURITY__MASTER_KEY_FILE"]
    done = host.run("doctor", "--json")
    assert (done.returncode, levels(done)["gateway.starts"]) == (1, "problem")
    assert host.variables["SECURITY__MASTER_KEY"] not in done.stdout


def test_doctor_ledger_reports_broken_invariants(narrow: Host) -> None:
    host = narrow
    host.output_of("merchants", "create", "Duka")
    done = host.run("doctor", "--ledger")
    assert done.returncode == 0
    assert "The books agree: all " in done.stdout
    assert too_wide(done.stdout.splitlines()) == []
    assert "ok" not in host.run("doctor", "--ledger", "--quiet").stdout.split()

    in_database(host, "UPDATE audit_entry SET actor = 'nobody'", "UPDATE merchant SET envs = '{live}'")
    done = host.run("doctor", "--ledger")
    assert done.returncode == 1
    assert "2 of " in done.stdout
    assert "credentials.envs_are_the_shortcodes" in done.stdout
    done = host.run("doctor", "--ledger", "--json")
    broken = {one["name"]: one for one in report(done)["invariants"] if not one["holds"]}
    assert (done.returncode, report(done)["holds"]) == (1, False)
    assert set(broken) == {"envs_are_the_shortcodes", "audit_chain"}
    assert broken["envs_are_the_shortcodes"]["examples"][0].startswith("mer_")


def test_doctor_ledger_waiting_rows_are_stuck_after_the_given_grace(host: Host) -> None:
    host.output_of("merchants", "list")
    in_database(
        host,
        "INSERT INTO event_task (event_id, subscriber, due_at) "  # noqa: S608 - our own
        f"VALUES ({literal('evt')}, 'me', now() - interval '5 minutes')",
    )
    assert host.run("doctor", "--ledger").returncode == 0
    assert host.run("doctor", "--ledger", "--grace", "2").returncode == 1


def test_doctor_ledger_of_an_unreachable_database_is_refused(host: Host) -> None:
    done = host.run("doctor", "--ledger")
    assert done.returncode == 1
    assert "mpesa-gateway migrate" in done.stdout
    assert "could not be checked" in done.stdout
    host.variables["DATABASE__URL"] = "postgresql://mpesa:secret@127.0.0.1:9/shop"
    assert is_refused(host.run("doctor", "--ledger"), 1, "cannot reach Postgres at 127.0.0.1:9")
    assert host.run("doctor", "--ledger", "--live").returncode == 2


def test_doctor_changes_no_row(narrow: Host) -> None:
    host = narrow
    host.output_of("merchants", "create", "Duka")

    def rows() -> list[Any]:
        async def work() -> list[Any]:
            connection = await asyncpg.connect(host.variables["DATABASE__URL"])
            tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'mpesa' ORDER BY 1")
            found = [
                # Names from the catalogue.
                await connection.fetch(f'SELECT * FROM mpesa."{table["tablename"]}" ORDER BY 1')  # noqa: S608
                for table in tables
            ]
            await connection.close()
            return [[tuple(row) for row in table] for table in found]

        return asyncio.run(work())

    before = rows()
    host.run("doctor")
    host.run("doctor", "--ledger")
    assert rows() == before
