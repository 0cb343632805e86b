"""The doctor on the command line: what it prints, how it ends, and that it changes nothing."""

import asyncio
import json
import os
import subprocess
from typing import Any

import asyncpg
import pytest

from mpesa_gateway.security.sealing import generate
from tests.identifiers import literal
from tests.kernel.cli.terminal import Host, address_of, is_refused, until

pytestmark = pytest.mark.as_owner


def report(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The JSON that was printed."""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def levels(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """How bad each thing is, by its name."""
    return {seen["name"]: seen["level"] for seen in report(done)["observations"]}


def in_database(host: Host, *statements: str) -> None:
    """Change something behind the gateway's back."""

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
    """A host whose terminal has 80 columns, and whose Daraja nobody is."""
    host.outside = {"COLUMNS": "80", "PATH": os.environ["PATH"]}
    host.variables |= {"DARAJA__SANDBOX_URL": "http://127.0.0.1:9", "DARAJA__LIVE_URL": "http://127.0.0.1:19"}
    return host


def too_wide(lines: list[str]) -> list[str]:
    """Lines of more than 80 columns that could have been broken, and those that end in blanks."""
    return [line for line in lines if (len(line) > 80 and " " in line.strip()) or line != line.rstrip()]


def test_nothing_set_is_itself_what_is_wrong(bare_host: Host) -> None:
    done = bare_host.types("doctor")
    assert done.returncode == 1
    assert "problem" in done.stdout
    assert "database.url" in done.stdout
    assert done.stderr == ""
    done = bare_host.types("doctor", "--json")
    assert (done.returncode, levels(done)) == (1, {"settings.readable": "problem"})


def test_from_the_first_look_to_no_problem(narrow: Host) -> None:
    host = narrow
    done = host.types("doctor")
    assert done.returncode == 1
    assert "mpesa-gateway migrate" in done.stdout
    host.gets("migrate")
    host.gets("merchants", "create", "Duka la Mtaa")
    done = host.types("doctor", "--json")
    assert (done.returncode, report(done)["ready"]) == (1, False)
    assert {name for name, level in levels(done).items() if level == "problem"} == {"workers.alive", "daraja.sandbox"}

    host.variables["PUBLIC_URL"] = address_of(host.starts("serve", "--port", "0"))
    # Whatever answers there says what time it is.
    host.variables["DARAJA__SANDBOX_URL"] = host.variables["PUBLIC_URL"]
    host.starts("worker")
    until(lambda: host.types("doctor").returncode == 0)
    done = host.types("doctor")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Examining http://127.0.0.1:")
    assert lines[-1].startswith("No problem: ")
    assert too_wide(lines) == []
    assert any(line.startswith("Duka la Mtaa (mer_") for line in lines)
    assert done.stderr == ""
    password = host.variables["DATABASE__URL"].partition("mpesa:")[2].partition("@")[0]
    assert password not in done.stdout

    quiet = host.types("doctor", "--quiet").stdout
    assert "note" in quiet
    assert not [line for line in quiet.splitlines() if line.startswith("ok ")]
    assert levels(host.types("doctor", "--json"))["address.reached"] == "ok"

    live = host.types("doctor", "--live")
    assert live.returncode == 1
    assert "problems (" in live.stdout
    # What has to be mended stands once more at the end.
    assert live.stdout.count("public_url is http://127.0.0.1") == 2

    merchant_id = host.gets("merchants", "create", "Other")
    only = report(host.types("doctor", "--merchant", merchant_id, "--json"))
    assert {seen.get("merchant_id") for seen in only["observations"]} == {None, merchant_id}
    assert is_refused(host.types("doctor", "--merchant", "mer_nobody"), 1, "there is no merchant mer_nobody")


def test_a_master_key_that_is_not_the_databases(narrow: Host) -> None:
    host = narrow
    host.gets("merchants", "list")
    host.variables["SECURITY__MASTER_KEY"] = generate()
    del host.variables["SECURITY__MASTER_KEY_FILE"]
    done = host.types("doctor", "--json")
    assert (done.returncode, levels(done)["gateway.starts"]) == (1, "problem")
    assert host.variables["SECURITY__MASTER_KEY"] not in done.stdout


def test_books_that_agree_and_books_that_do_not(narrow: Host) -> None:
    host = narrow
    host.gets("merchants", "create", "Duka")
    done = host.types("doctor", "--ledger")
    assert done.returncode == 0
    assert "The books agree: all " in done.stdout
    assert too_wide(done.stdout.splitlines()) == []
    assert "ok" not in host.types("doctor", "--ledger", "--quiet").stdout.split()

    in_database(host, "UPDATE audit_entry SET actor = 'nobody'", "UPDATE merchant SET envs = '{live}'")
    done = host.types("doctor", "--ledger")
    assert done.returncode == 1
    assert "2 of " in done.stdout
    assert "credentials.envs_are_the_shortcodes" in done.stdout
    done = host.types("doctor", "--ledger", "--json")
    broken = {one["name"]: one for one in report(done)["invariants"] if not one["holds"]}
    assert (done.returncode, report(done)["holds"]) == (1, False)
    assert set(broken) == {"envs_are_the_shortcodes", "audit_chain"}
    assert broken["envs_are_the_shortcodes"]["examples"][0].startswith("mer_")


def test_what_waits_is_stuck_after_the_grace_that_is_given(host: Host) -> None:
    host.gets("merchants", "list")
    in_database(
        host,
        "INSERT INTO event_task (event_id, subscriber, due_at) "  # noqa: S608 - our own
        f"VALUES ({literal('evt')}, 'me', now() - interval '5 minutes')",
    )
    assert host.types("doctor", "--ledger").returncode == 0
    assert host.types("doctor", "--ledger", "--grace", "2").returncode == 1


def test_books_that_cannot_be_asked(host: Host) -> None:
    done = host.types("doctor", "--ledger")
    assert done.returncode == 1
    assert "mpesa-gateway migrate" in done.stdout
    assert "could not be checked" in done.stdout
    host.variables["DATABASE__URL"] = "postgresql://mpesa:secret@127.0.0.1:9/shop"
    assert is_refused(host.types("doctor", "--ledger"), 1, "cannot reach Postgres at 127.0.0.1:9")
    assert host.types("doctor", "--ledger", "--live").returncode == 2


def test_neither_changes_anything(narrow: Host) -> None:
    host = narrow
    host.gets("merchants", "create", "Duka")

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
    host.types("doctor")
    host.types("doctor", "--ledger")
    assert rows() == before
