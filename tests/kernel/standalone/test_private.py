"""Protects the data folder of `up`: private to its user, a gateway without owner rights, any folder name."""

import asyncio
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
import valkey

from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.secret import Secret
from mpesa_gateway.standalone.data_folder import DataFolder
from mpesa_gateway.standalone.postgres import RUNNING_ROLE, EmbeddedPostgres
from mpesa_gateway.standalone.settings import Embedded, gateway_config, owner_config, simulator_config, write_config

ODD_NAMES = ['a "b" c', "back\\slash", "it's $HOME `id` %d", "é😀 ", "#hash;semi"]


@contextmanager
def folder_named(name: str) -> Generator[Path]:
    """Yield a data folder of this name that the server's own user can enter."""
    with tempfile.TemporaryDirectory(prefix="mpesa-gateway-") as home:
        Path(home).chmod(0o711)
        folder = Path(home) / name
        folder.mkdir(mode=0o711)
        yield folder


def ask(url: str, *statements: str) -> Any:
    """Return the first value of the last statement."""

    async def work() -> Any:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(work())


def test_data_folder_files_are_readable_to_their_owner_only() -> None:
    before = os.umask(0)
    try:
        with folder_named("data") as folder:
            # As an earlier release left it.
            (folder / "valkey").mkdir(mode=0o755)
            (folder / "valkey" / "old").write_text("old")
            standalone = DataFolder(folder, has_two_roles=True)
            standalone.start()
            try:
                client: Any = valkey.from_url(standalone.valkey.url)  # type: ignore[no-untyped-call]
                client.set("a", "b")
                client.bgrewriteaof()
                client.close()
                ask(standalone.postgres.url, "CREATE TABLE kept AS SELECT 1 AS one", "CHECKPOINT", "SELECT 1")
            finally:
                standalone.stop()
            home = standalone.postgres.home
            open_to_others = [
                str(path)
                for top in (folder / "valkey", home)
                for path in (top, *top.rglob("*"))
                if not path.is_symlink() and path.stat().st_mode & 0o077
            ]
            assert open_to_others == []
            for name in ("postgres.log", "postgres.password", "postgres.running.password"):
                assert (home.parent / name).stat().st_mode & 0o777 == 0o600, name
    finally:
        os.umask(before)


def _is_postgres(_: int) -> SimpleNamespace:
    return SimpleNamespace(pw_name="postgres")


@pytest.mark.parametrize(
    ("accounts", "whom"),
    [(["root", "nobody", "mpesa-gateway"], "mpesa-gateway"), (["root", "nobody"], "nobody"), (["root"], "nobody")],
)
def test_postgres_runs_as_its_own_user_if_root_has_created_one(
    monkeypatch: pytest.MonkeyPatch, accounts: list[str], whom: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwall", lambda: [SimpleNamespace(pw_name=name) for name in accounts])
    with folder_named("data") as folder:
        assert EmbeddedPostgres(folder).user == whom
        # An existing folder keeps its owner.
        (folder / "postgres").mkdir()
        monkeypatch.setattr(pwd, "getpwuid", _is_postgres)
        assert EmbeddedPostgres(folder).user == "postgres"


def test_data_folder_with_one_role_is_given_the_other() -> None:
    with folder_named("data") as folder:
        before = EmbeddedPostgres(folder)
        ask(before.start(), "CREATE TABLE kept AS SELECT 7 AS number", "SELECT 1")
        before.stop()
        urls: list[str] = []
        for _ in range(2):
            now = EmbeddedPostgres(folder, has_two_roles=True)
            now.start()
            try:
                urls.append(now.running_url.partition("@")[0])
                role = "SELECT (rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls)::text "
                found = ask(now.running_url, role + "FROM pg_roles WHERE rolname = current_user")
                assert found == f"({RUNNING_ROLE},f,f,f,f,f)"
                assert ask(now.url, "SELECT number FROM kept") == 7
                stored = f"SELECT rolpassword FROM pg_authid WHERE rolname = '{RUNNING_ROLE}'"  # noqa: S608 - our name
                assert ask(now.url, stored).startswith("SCRAM-SHA-256$")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    ask(now.running_url, "SELECT number FROM kept")
            finally:
                now.stop()
        assert urls[0] == urls[1]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_data_folder_may_have_any_name(name: str) -> None:
    with folder_named(name) as folder:
        standalone = DataFolder(folder, has_two_roles=True)
        standalone.start()
        try:
            assert ask(standalone.postgres.running_url, "SELECT 1") == 1
            client: Any = valkey.from_url(standalone.valkey.url, decode_responses=True)  # type: ignore[no-untyped-call]
            assert Path(client.config_get("dir")["dir"]) == folder / "valkey"
            client.close()
        finally:
            standalone.stop()
        embedded = Embedded(
            database_url=Secret("postgresql://running@localhost/x"),
            owner_url=Secret("postgresql://owner@localhost/x"),
            valkey_url=Secret("valkey://localhost"),
            master_key_file=folder / "master.key",
            port=1,
            simulator_port=2,
            sandbox_certificate=folder / "certificate.pem",
        )
        config = gateway_config(GatewayConfig(), embedded)
        write_config(folder / "gateway.toml", config)
        assert GatewayConfig.load(folder / "gateway.toml", {}).security.master_key_file == str(folder / "master.key")


def test_only_the_migrating_process_is_given_the_owner(tmp_path: Path) -> None:
    embedded = Embedded(
        database_url=Secret("postgresql://running@localhost/x"),
        owner_url=Secret("postgresql://owner@localhost/x"),
        valkey_url=Secret("valkey://localhost"),
        master_key_file=None,
        port=1,
        simulator_port=2,
        sandbox_certificate=None,
    )
    base = GatewayConfig.from_values({"database": {"owner_url": "postgresql://owner@localhost/x"}})
    gateway = gateway_config(base, embedded)
    for config in (gateway, simulator_config(base, gateway, 2)):
        write_config(tmp_path / "written.toml", config)
        assert "owner@" not in (tmp_path / "written.toml").read_text()
    assert owner_config(base, embedded).database.owner_url == embedded.owner_url


@pytest.mark.parametrize(
    "arguments", [[b"\xff"], [b"--data", b"/tmp/\xff", b"up"], [b"merchants", b"create", b"\xc3("]]
)
def test_command_with_an_argument_that_is_no_text_fails_with_a_sentence(arguments: list[bytes]) -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"mpesa_gateway.cli", *arguments], capture_output=True, check=False
    )
    said = done.stderr.decode()
    assert (done.returncode, "is not valid UTF-8" in said, "Traceback" in said) == (2, True, False)
    assert len(said.splitlines()) == 1
