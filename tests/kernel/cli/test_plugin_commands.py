"""A plugin's own commands stand beside ours as soon as it is enabled, and not before."""

import os

import pytest

from tests.kernel.cli.terminal import Host

MODULE = '''
import click
from mpesa_gateway.commands.session import Session, pass_session
from mpesa_gateway.plugin import Plugin

@click.command()
@pass_session
def barter(session: Session) -> None:
    """Swap goats."""
    async def count(gateway):
        return len(await gateway.merchants.page(10))
    click.echo(f"{session.run(count)} merchants to swap with")

plugin = Plugin(name="barter", summary="Goats.", commands=(barter,))
'''


@pytest.fixture
def trader(host: Host) -> Host:
    """A host who has installed somebody's plugin, and not enabled it."""
    installed = host.folder / "site"
    (installed / "barter-1.0.dist-info").mkdir(parents=True)
    (installed / "barter-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: barter\nVersion: 1.0\n")
    (installed / "barter-1.0.dist-info" / "entry_points.txt").write_text(
        "[mpesa_gateway.plugins]\nbarter = barter_plugin:plugin\n"
    )
    (installed / "barter_plugin.py").write_text(MODULE)
    host.outside["PYTHONPATH"] = os.pathsep.join((str(installed), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    return host


def test_installed_is_not_enabled(trader: Host) -> None:
    assert "Swap goats" not in trader.gets("--help")
    done = trader.types("barter")
    assert done.returncode == 2
    assert "No such command" in done.stderr


def test_an_enabled_plugin_brings_its_commands(trader: Host) -> None:
    trader.variables["PLUGINS"] = "credentials,barter"
    assert "Swap goats" in trader.gets("--help")
    assert trader.gets("barter") == "0 merchants to swap with"
    assert "command    barter" in trader.gets("plugins")


def test_help_survives_a_configuration_that_cannot_be_used(trader: Host) -> None:
    trader.variables["BOGUS"] = "1"
    assert "merchants" in trader.gets("--help")
