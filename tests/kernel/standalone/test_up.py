"""Protects what `up` tells at its start: another port than the usual one, and a master key without a copy."""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from mpesa_gateway.cli import cli
from mpesa_gateway.commands.session import CommandFailed
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.standalone.data_folder import confirm_key_saved, is_key_saved, read_state, write_state
from mpesa_gateway.standalone.settings import master_key_file
from mpesa_gateway.standalone.up import Up, UpOptions

# pyright: reportPrivateUsage=false


def up_on(data: Path, port: int | None = None) -> Up:
    return Up(GatewayConfig.from_values({"http": {"port": 0}}), data, UpOptions(port=port), Console())


@pytest.fixture
def taken() -> object:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_up_on_its_former_port_says_nothing(tmp_path: Path) -> None:
    first = up_on(tmp_path)
    port = first._port(was_killed=False)
    write_state(tmp_path, {"port": port})
    again = up_on(tmp_path)
    assert again._port(was_killed=False) == port
    assert (first._port_note, again._port_note) == ("", "")


def test_up_with_its_former_port_taken_takes_another_and_names_both(tmp_path: Path, taken: int) -> None:
    write_state(tmp_path, {"port": taken})
    up = up_on(tmp_path)
    port = up._port(was_killed=False)
    assert port != taken
    assert f"Port {taken} is in use" in up._port_note
    assert str(port) in up._port_note
    assert up._port_note in up._notes(has_live=False, is_own=False)


def test_up_after_a_fallback_returns_to_its_former_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        usual = other.getsockname()[1]
        write_state(tmp_path, {"port": usual})
        up = up_on(tmp_path)
        up._keep_ports(up._port(was_killed=False), None)
        assert up._port_note
    again = up_on(tmp_path)
    assert again._port(was_killed=False) == usual
    again._keep_ports(usual, None)
    assert (again._port_note, read_state(tmp_path)["port"]) == ("", usual)


def test_up_with_the_wished_port_taken_stops(tmp_path: Path, taken: int) -> None:
    with pytest.raises(CommandFailed, match=f"port {taken} is in use: stop what listens"):
        up_on(tmp_path, taken)._port(was_killed=False)
    up = up_on(tmp_path, 0)
    write_state(tmp_path, {"port": taken})
    assert up._port(was_killed=False) != taken
    assert up._port_note == ""


def test_master_key_is_unsaved_until_confirmed_and_again_after_a_rotation(tmp_path: Path) -> None:
    file = master_key_file(GatewayConfig.from_values({}), tmp_path)
    assert file is not None
    assert not is_key_saved(tmp_path, file)
    write_state(tmp_path, {"port": 1})
    # Neither a second start nor a demo in between ends the warning.
    assert master_key_file(GatewayConfig.from_values({}), tmp_path) == file
    assert not is_key_saved(tmp_path, file)
    done = CliRunner().invoke(cli, ["keys", "saved", "--data", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert is_key_saved(tmp_path, file)
    assert read_state(tmp_path)["port"] == 1
    file.write_text("another key\n" + file.read_text())
    assert not is_key_saved(tmp_path, file)
    confirm_key_saved(tmp_path, file)
    assert is_key_saved(tmp_path, file)


def test_keys_saved_without_a_key_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["keys", "saved", "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert "there is no master key" in done.output
