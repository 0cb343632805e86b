"""Protects the wheel: it contains every file that a host needs and declares every package it imports."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import PACKAGES, ROOT, name_of, parsed, shipped_modules

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {package.name for package in PACKAGES}

LOAD_EVERYTHING = """
import importlib, pkgutil, sys
from importlib.metadata import distributions

site = sys.path[0] = sys.argv[1]
(ours,) = (found for found in distributions(path=[site]) if found.name == "mpesa-gateway")
for point in ours.entry_points:
    if point.group != "pytest11":
        point.load()
for name in sys.argv[2:]:
    package = importlib.import_module(name)
    assert package.__file__.startswith(site), package.__file__
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
"""


def unnamed_places(package: str, settings: dict[str, Any]) -> list[str]:
    """Return the places of pyproject.toml that do not name a plugin's package."""
    contracts = {each["id"]: each for each in settings["tool"]["importlinter"]["contracts"]}
    places: dict[str, Any] = {
        "entry point": settings["project"]["entry-points"]["mpesa_gateway.plugins"].values(),
        "wheel": settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        "first-party": settings["tool"]["ruff"]["lint"]["isort"]["known-first-party"],
        "root packages": settings["tool"]["importlinter"]["root_packages"],
        "layers": contracts["arrows"]["layers"],
        "public modules": contracts["drawers"]["packages"],
    }
    return [place for place, names in places.items() if not re.search(rf"\b{package}\b", " ".join(names))]


def test_each_plugin_is_named_in_all_places_of_pyproject() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    unnamed = {package.name: unnamed_places(package.name, settings) for package in PACKAGES[1:]}
    assert unnamed == {package.name: [] for package in PACKAGES[1:]}
    assert len(unnamed_places("mpesa_gateway_tickets", settings)) == 6


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel built from this tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_contains_every_file_of_the_packages(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == expected
    assert {f"{name}/py.typed" for name in OWN} <= held
    assert any(name.endswith(".sql") for name in held)


def test_wheel_modules_can_all_be_imported(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = [sys.executable, "-c", LOAD_EVERYTHING, str(tmp_path), *sorted(OWN)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plugins_have_an_entry_point_of_their_name() -> None:
    points = PROJECT["entry-points"]["mpesa_gateway.plugins"]
    assert points == {
        name.removeprefix("mpesa_gateway_"): f"{name}.plugin:plugin" for name in sorted(OWN - {"mpesa_gateway"})
    }


def test_imported_packages_are_declared() -> None:
    providers = metadata.packages_distributions()
    missing = [
        f"{name_of(path)}: {module}"
        for path in shipped_modules()
        for module in sorted(_imported(parsed(path)) - OWN - sys.stdlib_module_names)
        if not {_plain(provider) for provider in providers.get(module, ["?"])} & _declared_for(path)
    ]
    assert missing == []


def test_declared_packages_are_used() -> None:
    providers = metadata.packages_distributions()
    used = {
        _plain(provider)
        for path in shipped_modules()
        for module in _imported(parsed(path)) | _named(parsed(path))
        for provider in providers.get(module, [])
    }
    idle = {_plain(text) for text in PROJECT["dependencies"]} - used
    # Imports of SAQ's queue, pinned to the version it works with. uvicorn imports its parser by name.
    assert idle <= {"redis"}


def _declared_for(path: Path) -> set[str]:
    declared = {_plain(text) for text in PROJECT["dependencies"]}
    standalone = {_plain(text) for text in PROJECT["optional-dependencies"]["standalone"]}
    if "standalone" in path.parts or name_of(path) == "plugins/mpesa_gateway_simulator/demo.py":
        return declared | standalone
    if "mpesa_gateway_traces" in path.parts:
        return declared | {_plain(text) for text in PROJECT["optional-dependencies"]["otel"]}
    if "testing" in path.parts:
        # Only pytest loads these, in a test environment.
        return declared | standalone | {"pytest", "pytest-asyncio"}
    return declared


def _imported(tree: ast.Module) -> set[str]:
    """Return the top-level names of all imported modules, imports for types included."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _named(tree: ast.Module) -> set[str]:
    """Return text constants: uvicorn takes the names of its loop and parser as text."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _plain(requirement: str) -> str:
    """Return a distribution's name in normalised form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]).lower()


def test_server_package_is_bounded_and_used_by_public_names() -> None:
    """A change of uvicorn's internals must not change how requests are parsed."""
    (bound,) = [text for text in PROJECT["dependencies"] if _plain(text) == "uvicorn"]
    assert re.fullmatch(r"uvicorn>=[0-9.]+,<[0-9.]+", bound)
    used: set[str] = set()
    for path in shipped_modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "uvicorn":
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "uvicorn"}
            elif isinstance(node, ast.ClassDef):
                used |= {base for base in map(ast.unparse, node.bases) if base.startswith("uvicorn.")}
    # Its settings, server, process supervisor, and the exit status of a failed start.
    public = {"Config", "Server", "config.STARTUP_FAILURE", "supervisors.Multiprocess"}
    assert used == {"uvicorn", *(f"uvicorn.{name}" for name in public)}


def test_older_python_is_rejected_with_the_required_version(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ROOT / "requirements/supported_python.py"
    # Any Python 3 must be able to parse the file: no syntax of 3.11 precedes the check.
    compile(backend.read_text(encoding="utf-8"), str(backend), "exec", dont_inherit=True)
    ast.parse(backend.read_text(encoding="utf-8"), feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and this is Python"):
        runpy.run_path(str(backend))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
