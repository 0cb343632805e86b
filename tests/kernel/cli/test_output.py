"""Protects JSON output of every command, and how the commands are found and completed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from mpesa_gateway import logs
from mpesa_gateway.app import Gateway
from mpesa_gateway.cli import COMMANDS
from mpesa_gateway.commands.completion import VARIABLE
from mpesa_gateway.commands.session import Session
from mpesa_gateway.config import LogsConfig
from tests.forking import forks
from tests.house.test_documented import plugins
from tests.kernel.cli.terminal import Host, is_refused

SHOWS_NOTHING = {
    "up": "runs until it is stopped",
    "demo": "plays a demonstration",
    "serve": "runs until it is stopped",
    "worker": "runs until it is stopped",
    "completion": "prints what a shell reads",
    "openapi": "prints JSON and nothing else",
    "keys generate": "prints one key and nothing else",
    "keys saved": "does one thing",
    "merchants deactivate": "does one thing",
    "apikeys revoke": "does one thing",
    "people create": "prints one id and nothing else",
    "people role": "does one thing",
    "people password": "does one thing",
    "people remove": "does one thing",
    "people invite": "prints one link and nothing else",
    "people reset": "prints one link and nothing else",
    "receivers allow": "does one thing",
    "receivers refuse": "does one thing",
    "receivers move": "does one thing",
    "shortcodes default": "does one thing",
    "shortcodes retire": "does one thing",
}


def commands() -> dict[str, click.Command]:
    """Return every command by its words, including plugin commands."""
    found: dict[str, click.Command] = {}

    def walk(command: click.Command, words: str) -> None:
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                walk(inner, f"{words} {name}".strip())
        else:
            found[words] = command

    for entry in [*COMMANDS, *(entry for plugin in plugins() for entry in plugin.commands)]:
        walk(entry.load(), entry.name)
    return found


def test_every_command_that_shows_data_has_json_output() -> None:
    mute = {words for words, command in commands().items() if not any("--json" in each.opts for each in command.params)}
    assert mute - {"plugins"} == set(SHOWS_NOTHING)


def reads(host: Host, *words: str) -> Any:
    """Return the JSON output of a command that must succeed."""
    return json.loads(host.output_of(*words, "--json"))


def test_json_output_has_the_data_of_the_text_output(host: Host) -> None:
    assert reads(host, "config", "check")["usable"] is True
    missing = host.run("migrate", "--check", "--json")
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["missing"] != []
    merchant = reads(host, "merchants", "create", "Duka")
    assert (merchant["name"], merchant["envs"], merchant["is_active"]) == ("Duka", [], True)
    (listed,) = reads(host, "merchants", "list")
    assert (listed["merchant_id"], listed["envs"], listed["active"]) == (merchant["merchant_id"], [], True)
    key = reads(host, "apikeys", "create", merchant["merchant_id"], "--name", "till")
    assert key["key"].startswith("sk_test_")
    (seen,) = reads(host, "apikeys", "list", merchant["merchant_id"])
    assert (seen["key_id"], seen["last_used_at"], seen["scopes"]) == (key["key_id"], None, key["scopes"])
    assert reads(host, "people", "list") == []
    assert reads(host, "payments", "list") == []
    assert reads(host, "audit", "verify")["entries"] == 2
    assert reads(host, "migrate") == {"applied": []}
    assert reads(host, "keys", "rotate")["old_keys_may_go"] is True
    assert reads(host, "config", "show")["database"]["url"].startswith("****")
    erased = reads(host, "privacy", "erase", "254708374149", "--dry-run")
    assert (erased["would_erase"], erased["left"]) == ({}, [])


def nothing(_: LogsConfig) -> None:
    """Replaces the setup of logging."""


def test_command_starts_no_worker_of_its_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the serving process has one: jobs started here would be cut off at the end of the command."""
    for name, value in (host.variables | {"WORKER__IN_PROCESS": "true", "CONFIG": ""}).items():
        monkeypatch.setenv(f"MPESA_GATEWAY_{name}", value)

    async def look(gateway: Gateway) -> tuple[bool, bool]:
        return gateway.is_running, gateway.config.worker.in_process

    # Logging belongs to a process of its own: configured here, it would stay for all later tests.
    monkeypatch.setattr(logs, "configure", nothing)
    session = Session()
    assert session.attached().worker.in_process is True
    assert session.run(look) == (True, False)


@pytest.mark.parametrize(("shell", "says"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete ")])
def test_completion_prints_the_script_of_a_shell(bare_host: Host, shell: str, says: str) -> None:
    done = bare_host.run_in_process("completion", shell)
    assert done.returncode == 0
    assert says in done.stdout
    assert VARIABLE in done.stdout


def test_completion_knows_plugin_commands_and_options(tmp_path: Path) -> None:
    def completed(*words: str) -> set[str]:
        environ = {"PATH": os.environ["PATH"], VARIABLE: "bash_complete"}
        environ |= {"COMP_WORDS": " ".join(["mpesa-gateway", *words]), "COMP_CWORD": str(len(words))}
        done = forks.run((), folder=tmp_path, environ=environ, reads="", patience=60)
        assert done.returncode == 0, done.stderr
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert {"up", "doctor", "webhooks", "payments", "people"} <= completed("")
    assert completed("webhooks", "") == {"listen", "trigger", "replay"}
    assert "payment.completed" in completed("webhooks", "trigger", "pay")
    assert {"--forward-to", "--events"} <= completed("webhooks", "listen", "--")


def test_litestar_command_has_our_commands(host: Host) -> None:
    def litestar(*words: str) -> subprocess.CompletedProcess[str]:
        ours = {f"MPESA_GATEWAY_{name}": value for name, value in host.variables.items()}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}
        return subprocess.run(
            [sys.executable, "-m", "litestar", "mpesa", *words],
            cwd=host.folder,
            env=environ | ours,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    done = litestar("--help")
    assert done.returncode == 0, done.stderr
    assert "webhooks" in done.stdout
    done = litestar("merchants", "create", "Duka", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "Duka"
    done = litestar("payments", "list", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert is_refused(litestar("apikeys", "create", "mer_nobody"), 1, "no such merchant")
