"""Protects commands of plugins: present once the plugin is enabled, and not before."""

import json
import os

import pytest

from tests.kernel.cli.terminal import Host, is_refused

MODULE = '''
import click
from mpesa_gateway.commands.session import Session, pass_session
from mpesa_gateway.plugin import CommandEntry, Plugin

@click.command()
@pass_session
def barter(session: Session) -> None:
    """Swap goats."""
    async def count(gateway):
        return len((await gateway.merchants.page(10)).rows)
    click.echo(f"{session.run(count)} merchants to swap with")

swap = CommandEntry("barter", "barter_plugin:barter", "Swap goats.")
plugin = Plugin(name="barter", summary="Goats.", commands=(swap,))
'''


@pytest.fixture
def trader(host: Host) -> Host:
    """Return a host with an installed plugin that is not enabled."""
    installed = host.folder / "site"
    (installed / "barter-1.0.dist-info").mkdir(parents=True)
    (installed / "barter-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: barter\nVersion: 1.0\n")
    (installed / "barter-1.0.dist-info" / "entry_points.txt").write_text(
        "[mpesa_gateway.plugins]\nbarter = barter_plugin:plugin\n"
    )
    (installed / "barter_plugin.py").write_text(MODULE)
    host.outside["PYTHONPATH"] = os.pathsep.join((str(installed), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    return host


def test_plugin_command_of_an_installed_plugin_is_absent(trader: Host) -> None:
    assert "Swap goats" not in trader.output_of("--help")
    done = trader.run("barter")
    assert done.returncode == 2
    assert "No such command" in done.stderr


def test_plugin_command_of_an_enabled_plugin_is_present(trader: Host) -> None:
    trader.variables["PLUGINS"] = "credentials,barter"
    assert "Swap goats" in trader.output_of("--help")
    assert trader.output_of("barter") == "0 merchants to swap with"
    assert "command    barter" in trader.output_of("plugins")


def test_plugins_command_lists_installed_plugins_with_what_they_provide_and_need(trader: Host) -> None:
    trader.variables["PLUGINS"] = "callbacks,credentials,transactions,payments"
    (trader.folder / "site" / "barter_plugin.py").write_text("raise RuntimeError('no goats')\n")
    views = {view["name"]: view for view in json.loads(trader.output_of("plugins", "--json"))["plugins"]}
    # Enabled plugins in configured order, the others by name.
    names = ["callbacks", "credentials", "transactions", "payments", "barter", "ops", "reconciliation", "refunds"]
    assert [name for name in views if name in names] == names
    assert [name for name, view in views.items() if view["is_enabled"]] == names[:4]
    assert views["refunds"]["needs"] == ["credentials", "callbacks", "transactions", "payments"]
    payments = views["payments"]["provides"]
    assert "POST /v1/payments" in payments["routes"]
    assert "payment" in payments["tables"]
    assert "payments.expire_after" in payments["settings"]
    assert "payment.completed" in payments["publishes"]
    assert {line.partition(" ")[0] for line in payments["crons"]} <= {
        line.partition(" ")[0] for line in payments["jobs"]
    }
    # A broken plugin is reported and hides no other.
    assert views["barter"]["problem"] == "cannot be read (RuntimeError: no goats)"
    assert (views["barter"]["distribution"], views["barter"]["version"]) == ("barter", "1.0")


def test_worker_with_a_gateway_path_that_leads_to_no_gateway_is_refused(trader: Host) -> None:
    for where, words in (
        ("nowhere:gateway", "leads to no gateway (No module named 'nowhere'): name it as module:name"),
        ("barter_plugin:gateway", "leads to no gateway (module 'barter_plugin' has no attribute 'gateway')"),
        ("barter_plugin:plugin", "leads to a Plugin: name a Gateway"),
        ("barter_plugin", "name it as module:name"),
    ):
        assert is_refused(trader.run("worker", "--gateway", where), 1, words)


def test_help_with_an_invalid_configuration_is_printed(trader: Host) -> None:
    trader.variables["BOGUS"] = "1"
    assert "merchants" in trader.output_of("--help")
