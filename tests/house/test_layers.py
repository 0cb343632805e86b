"""Protects the direction of imports: plugins call down through public modules, and the kernel imports no plugin."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.house.tree import ROOT


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages below ``root``, with the contracts of its pyproject.toml."""
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "plugins")]), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, command, "--no-cache", "--no-logo"],
        cwd=root,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_follow_the_layers() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "reach"),
    [
        ("mpesa_gateway/ids.py", "mpesa_gateway_payments.events"),
        ("mpesa_gateway/clock.py", "mpesa_gateway.db.engine"),
        ("mpesa_gateway/db/outbox.py", "mpesa_gateway.runtime"),
        ("mpesa_gateway/runtime.py", "mpesa_gateway.http.auth"),
        ("mpesa_gateway/worker.py", "mpesa_gateway.app"),
        ("plugins/mpesa_gateway_webhooks/__init__.py", "mpesa_gateway_payments.api"),
        ("plugins/mpesa_gateway_callbacks/__init__.py", "mpesa_gateway_payments.api"),
        ("plugins/mpesa_gateway_ops/__init__.py", "mpesa_gateway_payments.api"),
        ("plugins/mpesa_gateway_payments/__init__.py", "mpesa_gateway_webhooks.plugin"),
        ("plugins/mpesa_gateway_payments/__init__.py", "mpesa_gateway_callbacks.tables"),
        ("plugins/mpesa_gateway_payments/__init__.py", "mpesa_gateway_callbacks"),
    ],
)
def test_import_against_the_layers_is_found(module: str, reach: str, tmp_path: Path) -> None:
    _copy(tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"import {reach}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout
    assert reach in done.stdout


def test_kernel_module_without_a_layer_is_found(tmp_path: Path) -> None:
    _copy(tmp_path)
    (tmp_path / "mpesa_gateway" / "somewhere.py").write_text('"""A module."""\n', encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "somewhere" in done.stdout


def test_import_cycle_of_three_for_type_checkers_is_found(tmp_path: Path) -> None:
    _copy(tmp_path)
    circle = {"money": "phone", "phone": "secret", "secret": "money"}
    for module, reach in circle.items():
        with (tmp_path / "mpesa_gateway" / f"{module}.py").open("a", encoding="utf-8") as file:
            file.write(f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mpesa_gateway.{reach}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "3 modules import each other: mpesa_gateway.money, mpesa_gateway.phone, mpesa_gateway.secret" in done.stdout


def _copy(to: Path) -> None:
    for name in ("mpesa_gateway", "plugins", "tests/house"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
