"""Protects the plugin guide: its code, copied from the page, works as described."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import ConfigError, GatewayConfig
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.plugin import Plugin, PluginError, load
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_ops.people import People
from mpesa_gateway_payments.scopes import PAYMENTS_WRITE
from tests.browsing import PASSWORD, signed_in
from tests.house.tree import ROOT
from tests.identifiers import identifier
from tests.ledger import broken_invariants
from tests.looking import levels, results_of_check

GUIDE = ROOT / "docs" / "writing-a-plugin.md"

FILE = re.compile(r"^`(?P<name>[\w./]+)`[^\n]*\n\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
"""A code block and the line above it that names the file."""


def files() -> dict[str, str]:
    """Return the files of the guide by name."""
    return {found["name"]: found["text"] for found in FILE.finditer(GUIDE.read_text(encoding="utf-8"))}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with the guide's steps done, on Python's import path."""
    for name, text in files().items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for folder in ("my_thanks", "my_thanks/migrations"):
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_thanks"]:
        del sys.modules[name]


@pytest.fixture
def plugin(site: Path) -> Plugin:
    """Return the guide's plugin as a host imports it."""
    assert (site / "my_thanks" / "plugin.py").is_file()
    found = import_module("my_thanks.plugin").plugin
    assert isinstance(found, Plugin)
    return found


async def thanks(api: Api) -> list[str]:
    """Return the answer of the guide's route."""
    found: list[str] = (await api.call("GET", "/v1/thanks")).data
    return found


async def test_guide_plugin_shows_thanks_to_the_merchant_only(values: dict[str, Any], plugin: Plugin) -> None:
    values["thanks"] = {"words": "merci"}
    async with running_gateway(values, plugins=(plugin,)) as (gateway, base), shop(gateway, base) as api:
        assert await thanks(api) == []
        made = await api.pay("254711000001", key="order")
        await api.settled(made.data["id"], "completed")
        assert await eventually(lambda: thanks(api)) == [f"merci {made.data['id']}"]
        async with shop(gateway, base, is_configured=False) as other:
            assert await thanks(other) == []
        async with shop(gateway, base, scopes=(PAYMENTS_WRITE,), is_configured=False) as powerless:
            refused = await powerless.call("GET", "/v1/thanks")
            assert (refused.status, refused.error["code"]) == (403, "AUTH_INSUFFICIENT_SCOPE")
            assert "payments:read" in refused.error["message"]


async def test_guide_plugin_page_lists_thanks_and_admin_deletes_one(values: dict[str, Any], plugin: Plugin) -> None:
    async with running_gateway(values, plugins=(plugin,)) as (gateway, base), shop(gateway, base) as api:
        await gateway.port(People).create("amina@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
        made = await api.pay("254711000001", key="order")
        await api.settled(made.data["id"], "completed")
        assert await eventually(lambda: thanks(api))
        async with signed_in(f"{base}/ops") as browser:
            page = await browser.open("/thanks")
            assert page.unbalanced_tags == []
            assert page.link(f"/ops/payments/{made.data['id']}")
            answer = await browser.submit(page, "/back")
            assert "Taken back. Thanks Nobody has been thanked." in answer.words
        assert await thanks(api) == []


async def test_guide_plugin_checks_run_in_the_doctor(values: dict[str, Any], plugin: Plugin) -> None:
    (check,) = plugin.checks
    async with running_gateway(values, plugins=(plugin,)) as (gateway, base), shop(gateway, base) as api:
        assert levels(await results_of_check(check.look, gateway)) == {"thanks.given": "note"}
        made = await api.pay("254711000001", key="order")
        await api.settled(made.data["id"], "completed")
        await eventually(lambda: thanks(api))
        assert levels(await results_of_check(check.look, gateway)) == {"thanks.given": "ok"}
        assert await broken_invariants(gateway) == {}
        unpaid = identifier("pay")
        await gateway.db.execute(
            "INSERT INTO thank SELECT $1, merchant_id, 'sandbox', 'x', now() FROM merchant", unpaid
        )
        assert await broken_invariants(gateway) == {"thanks.paid_first": (unpaid,)}


async def test_guide_plugin_event_repeated_thanks_once(values: dict[str, Any], plugin: Plugin) -> None:
    async with running_gateway(values, plugins=(plugin,)) as (gateway, base), shop(gateway, base) as api:
        made = await api.pay("254711000001", key="order")
        await api.settled(made.data["id"], "completed")
        name = plugin.subscribers[0].name
        assert name == "my_thanks.plugin.thank"

        async def undone() -> str | None:
            """Clear the outbox's record of the handled event, so that it is handled again."""
            event_id: str | None = await gateway.db.fetchval(
                "UPDATE event_task SET done_at = NULL WHERE subscriber = $1 AND done_at IS NOT NULL RETURNING event_id",
                name,
            )
            return event_id

        event_id = await eventually(undone)
        assert event_id is not None
        assert await gateway.outbox.handle(event_id, name)
        assert await thanks(api) == [f"asante {made.data['id']}"]


async def test_guide_plugin_table_and_job_have_the_documented_names(values: dict[str, Any], plugin: Plugin) -> None:
    async with running_gateway(values, plugins=(plugin,)) as (gateway, _):
        applied = await gateway.db.fetch("SELECT number, name FROM migration WHERE owner = 'thanks'")
        assert [tuple(row) for row in applied] == [(1, "0001_thanks.sql")]
        await gateway.merchants.create("Duka", actor="test")
        old, new = identifier("pay", 1), identifier("pay", 2)
        for payment_id, age in ((old, "2 years"), (new, "1 second")):
            await gateway.db.execute(
                "INSERT INTO thank SELECT $1, merchant_id, 'live', 'x', now() - $2::text::interval FROM merchant",
                payment_id,
                age,
            )
        (enqueue,) = re.findall(r'jobs\.enqueue\("([\w.]+)"\)', GUIDE.read_text(encoding="utf-8"))
        assert gateway.jobs_by_name[enqueue].cron is not None
        assert await gateway.jobs.enqueue(enqueue)

        async def is_forgotten() -> bool:
            return [row["payment_id"] for row in await gateway.db.fetch("SELECT payment_id FROM thank")] == [new]

        await eventually(is_forgotten)


def test_guide_files_build_a_wheel_with_the_entry_point(site: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(command, cwd=site, check=True, capture_output=True, text=True)
    (wheel,) = (site / "dist").glob("my_thanks-*.whl")
    held = zipfile.ZipFile(wheel)
    names = set(held.namelist())
    assert {name for name in files() if name.startswith("my_thanks/")} <= names
    assert {"my_thanks/__init__.py", "my_thanks/migrations/__init__.py"} <= names
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "thanks = my_thanks.plugin:plugin" in held.read(entry_points).decode()
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    assert "Requires-Dist: mpesa-gateway" in held.read(metadata).decode()


def test_guide_plugin_is_loaded_by_its_entry_point(site: Path) -> None:
    points = tomllib.loads(files()["pyproject.toml"])["project"]["entry-points"]["mpesa_gateway.plugins"]
    info = site / "my_thanks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-thanks\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mpesa_gateway.plugins]", *lines]))
    loaded = load(["credentials", "callbacks", "transactions", "payments", "thanks"])
    assert loaded[-1] is import_module("my_thanks.plugin").plugin


def test_guide_plugin_settings_and_needs_are_checked_at_start(values: dict[str, Any], plugin: Plugin) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting `thanks\.word`.*\(known: words\)"):
        Gateway(GatewayConfig.from_values(values | {"thanks": {"word": "merci"}}), plugins=(plugin,))
    with pytest.raises(ConfigError, match=r"unknown section `\[thanks\]`"):
        Gateway(GatewayConfig.from_values(values | {"thanks": {"words": "merci"}}))
    with pytest.raises(PluginError, match="`thanks` requires `payments`"):
        load(["credentials"], [plugin])


async def test_guide_plugin_imported_but_disabled_does_nothing(values: dict[str, Any], plugin: Plugin) -> None:
    assert plugin.name == "thanks"
    async with running_gateway(values) as (gateway, base), shop(gateway, base, is_configured=False) as api:
        assert (await api.call("GET", "/v1/thanks")).status == 404
        assert await gateway.db.fetchval("SELECT to_regclass('thank')") is None


def test_guide_blocks_all_name_their_file() -> None:
    assert set(files()) == {
        "my_thanks/plugin.py",
        "my_thanks/migrations/0001_thanks.sql",
        "my_thanks/templates/thanks.html",
        "pyproject.toml",
    }
    assert GUIDE.read_text(encoding="utf-8").count("\n```\n") == len(files())
