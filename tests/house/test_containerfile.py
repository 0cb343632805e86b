"""Protects the container image: it runs as an unprivileged user and contains no server."""

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from tests.house.tree import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("containerfile", ROOT / ".ci/containerfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def steps(script: ModuleType) -> list[str]:
    found: list[str] = script.steps((ROOT / "Containerfile").read_text(encoding="utf-8"))
    return found


def test_image_process_is_not_root(steps: list[str]) -> None:
    users = [step.split()[1] for step in steps if step.startswith("USER ")]
    assert users
    assert int(users[-1]) > 0


def test_image_contains_no_embedded_server(steps: list[str]) -> None:
    assert [step for step in steps if "standalone" in step or "test.txt" in step] == []


def test_image_sources_all_exist(steps: list[str]) -> None:
    copied = [step.split()[1:-1] for step in steps if step.startswith("COPY ") and "--from" not in step]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert copied
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists()
        assert name.partition("/")[0] not in ignored


def test_image_has_a_command_and_a_health_check(steps: list[str]) -> None:
    assert 'ENTRYPOINT ["mpesa-gateway"]' in steps
    assert 'CMD ["serve"]' in steps
    assert any(step.startswith("HEALTHCHECK ") and "/health/live" in step for step in steps)
