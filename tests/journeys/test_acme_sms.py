"""Protects third-party plugins: acme_sms, installed as a package, is found, enabled and passes its tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forking import forks
from tests.house.tree import ROOT

PACKAGE = ROOT / "examples" / "acme_sms"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package installed from its sources by pip."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder)]
    done = subprocess.run([sys.executable, *command, str(PACKAGE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def environment(site: Path, **variables: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MPESA_GATEWAY_")}
    return ours | {"PYTHONPATH": str(site)} | variables


def test_acme_sms_installs_one_package_and_one_entry_point(site: Path) -> None:
    (info,) = site.glob("*.dist-info")
    lines = (info / "entry_points.txt").read_text(encoding="utf-8").split("\n")
    assert [line for line in lines if line] == ["[mpesa_gateway.plugins]", "acme_sms = acme_sms.plugin:plugin"]
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"acme_sms"}
    assert (site / "acme_sms" / "migrations" / "0001_texts.sql").is_file()


@pytest.mark.parametrize("is_enabled", [False, True])
def test_plugins_command_lists_acme_sms_and_its_ports(site: Path, tmp_path: Path, *, is_enabled: bool) -> None:
    names = "credentials,callbacks,transactions,payments" + (",acme_sms" if is_enabled else "")
    environ = environment(site, MPESA_GATEWAY_PLUGINS=names)
    done = forks.run(("plugins", "--json"), folder=tmp_path, environ=environ, reads="", patience=60)
    assert done.returncode == 0, done.stderr
    (found,) = (each for each in json.loads(done.stdout)["plugins"] if each["name"] == "acme_sms")
    assert found == {
        "name": "acme_sms",
        "summary": "Texts buyers when their payment has arrived.",
        "distribution": "acme-sms",
        "version": "1.0.0",
        "is_enabled": is_enabled,
        "needs": ["payments"],
        "provides": {
            "settings": [f"acme_sms.{name}" for name in SETTINGS],
            "routes": ["GET /v1/sms"],
            "tables": ["acme_sms_text"],
            "jobs": ["acme_sms.send (30 s)", "acme_sms.sweep (30 s)"],
            "crons": ["acme_sms.sweep * * * * *"],
            "hears": ["payment.completed"],
            "ports": ["Texts"],
        },
        "problem": None,
    }


SETTINGS = ("url", "api_key", "sender", "words", "timeout", "pause", "give_up_after")


def test_acme_sms_installed_passes_its_tests(site: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-c", str(PACKAGE / "pyproject.toml"), str(PACKAGE)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment(site, PYTHONDONTWRITEBYTECODE="1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout
    assert "skipped" not in done.stdout
