"""Protects `config check` and `config show`: what the host learns about the settings before any connection."""

import re
import tomllib
from pathlib import Path

import pytest

from mpesa_gateway.security.sealing import generate
from tests.kernel.cli.terminal import Host, is_refused

URL = "postgresql://mpesa:hunter2-and-more@127.0.0.1:1/shop"


def test_config_check_without_servers_names_the_missing_settings(bare_host: Host) -> None:
    printed = bare_host.output_of("config", "check")
    assert "can be used" in printed
    assert "`database.url` is not set" in printed


def test_config_check_with_all_settings_reports_nothing_missing(host: Host) -> None:
    assert "not set" not in host.output_of("config", "check")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bogus = 1", "unknown setting `bogus`"),
        ("[database]\nurll = 'x'", "unknown setting `database.urll`"),
        ("[http]\nport = 'many'", "`http.port`"),
        ("[refund]\nwindow = 1", "unknown section `[refund]`"),
        ("[payments]\nexpire = 1", "unknown setting `payments.expire`"),
        ("plugins = ['payments']", "`payments` requires"),
        ("plugins = ['credentials', 'credentials']", "listed twice"),
        ("plugins = ['barter']", "`barter` is not installed"),
        ("[security]\nmaster_key = 'short'", "not a master key"),
        ("[security]\ntrusted_proxies = ['my-proxy']", "security.trusted_proxies"),
        ("public_url = 'pay.example.co.ke'", "`public_url`"),
        ("= 1", "is not valid TOML"),
    ],
)
def test_config_check_of_an_invalid_setting_is_refused_with_a_sentence(bare_host: Host, text: str, words: str) -> None:
    (bare_host.folder / "mine.toml").write_text(text)
    assert is_refused(bare_host.run_in_process("--config", "mine.toml", "config", "check"), 2, words)


def test_config_check_of_a_missing_file_is_refused(bare_host: Host) -> None:
    assert is_refused(bare_host.run_in_process("--config", "gone.toml", "config", "check"), 2, "cannot read gone.toml")


def test_config_check_of_an_unknown_variable_is_refused(bare_host: Host) -> None:
    bare_host.variables["DATABASE__ULR"] = "x"
    assert is_refused(bare_host.run_in_process("config", "check"), 2, "unknown setting `database.ulr`")


def test_config_show_masks_every_secret_and_is_toml(bare_host: Host) -> None:
    key, old = generate(), generate()
    bare_host.variables |= {
        "DATABASE__URL": URL,
        "VALKEY__URL": "redis://:another-password@127.0.0.1:1",
        "SECURITY__MASTER_KEY": key,
        "SECURITY__OLD_MASTER_KEYS": old,
    }
    printed = bare_host.run_in_process("config", "show").stdout
    for secret in (key, old, "hunter2", "another-password"):
        assert secret not in printed
    shown = tomllib.loads(printed)
    assert shown["security"]["master_key"] == f"****{key[-4:]}"
    assert shown["security"]["old_master_keys"] == [f"****{old[-4:]}"]
    assert shown["payments"]["expire_after"] == 900


def test_config_show_environment_overrides_the_file_in_the_folder(bare_host: Host) -> None:
    folder = bare_host.folder / "config"
    folder.mkdir()
    (folder / "gateway.toml").write_text("[http]\nport = 9000\n[payments]\ncreate_lease = 99\n")
    assert tomllib.loads(bare_host.run_in_process("config", "show").stdout)["http"]["port"] == 9000
    bare_host.variables["HTTP__PORT"] = "9001"
    bare_host.variables["PAYMENTS__CREATE_LEASE"] = "98"
    shown = tomllib.loads(bare_host.run_in_process("config", "show").stdout)
    assert (shown["http"]["port"], shown["payments"]["create_lease"]) == (9001, 98)
    bare_host.variables = {"CONFIG": ""}
    assert tomllib.loads(bare_host.run_in_process("config", "show").stdout)["payments"]["create_lease"] == 150


@pytest.mark.parametrize("name", ["gateway.toml", "gateway.live.toml"])
def test_config_check_of_our_own_files_succeeds(bare_host: Host, name: str) -> None:
    file = Path(__file__).parents[3] / "config" / name
    bare_host.variables["SECURITY__MASTER_KEY"] = generate()
    (bare_host.folder / name).write_text(file.read_text().replace("master_key_file =", "# master_key_file ="))
    assert "can be used" in bare_host.run_in_process("--config", name, "config", "check").stdout


def test_plugins_command_lists_what_each_plugin_provides(bare_host: Host) -> None:
    printed = bare_host.run_in_process("plugins").stdout
    for words in ("payments: ", "POST /v1/payments", "payment.completed", "webhooks.deliver", "PublicEvent"):
        assert words in printed
    not_enabled = re.findall(
        r"^(\w+): .*\n(?:  .*\n)*?  enabled    no: add `(\w+)` to `plugins`$", printed, re.MULTILINE
    )
    assert sorted(not_enabled) == [(name, name) for name in ("metrics", "simulator", "traces")]
