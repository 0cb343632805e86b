"""The pinned requirements install the same everywhere: no host, no machine, nothing missing, nothing apart."""

import re
import tomllib

import pytest

from tests.house.tree import ROOT

PIN = re.compile(r"^[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?$")


def lines(name: str) -> list[str]:
    """What a requirements file says, without its empty lines."""
    return [line for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines() if line]


@pytest.mark.parametrize("name", ["run.txt", "test.txt"])
def test_everything_is_pinned_and_the_fork_of_urllib3_is_built(name: str) -> None:
    option, *pins = lines(name)
    assert option == "--no-binary urllib3-future"
    assert [line for line in pins if not PIN.match(line)] == []


@pytest.mark.parametrize(
    "name", ["peer-django", "peer-fastapi", "schemathesis", "clients", "browser", "deploy", "docs"]
)
def test_an_environment_of_its_own_is_pinned_too(name: str) -> None:
    pins = lines(f"{name}.txt")
    assert [line for line in pins if not PIN.match(line)] == []
    wanted = {name_of(line) for line in lines(f"{name}.in") if not line.startswith(("#", "-c "))}
    assert wanted
    assert wanted <= {line.partition("==")[0] for line in pins}


def test_schemathesis_has_the_real_urllib3() -> None:
    names = {line.partition("==")[0] for line in lines("schemathesis.txt")}
    assert "urllib3" in names
    assert not names & {"urllib3-future", "niquests"}


def test_tests_run_with_what_is_shipped() -> None:
    assert set(lines("run.txt")) <= set(lines("test.txt"))


@pytest.mark.parametrize(("name", "groups"), [("run.txt", []), ("test.txt", ["test", "lint", "tools"])])
def test_every_dependency_is_pinned(name: str, groups: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"]]
    wanted += [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    wanted += [line for group in groups for line in project["dependency-groups"][group]]
    pinned = {line.partition("==")[0] for line in lines(name)}
    assert {name_of(line) for line in wanted} <= pinned


def name_of(requirement: str) -> str:
    """The package that a requirement asks for."""
    return re.split(r"[\[<>=;~ ]", requirement, maxsplit=1)[0]
