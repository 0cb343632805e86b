"""Host fixtures: one without settings, one with real servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpesa_gateway.security.sealing import generate
from tests.kernel.cli.terminal import Host


@pytest.fixture
def bare_host(tmp_path: Path) -> Iterator[Host]:
    """Yield a host without settings."""
    host = Host(tmp_path, {})
    yield host
    host.stop()


@pytest.fixture
def host(tmp_path: Path, database_url: str, valkey_url: str) -> Iterator[Host]:
    """Yield a host with a Postgres, a Valkey and a ring file."""
    ring = tmp_path / "ring"
    ring.write_text(generate() + "\n")
    ring.chmod(0o600)
    variables = {
        "DATABASE__URL": database_url,
        "VALKEY__URL": valkey_url,
        "SECURITY__MASTER_KEY_FILE": str(ring),
    }
    host = Host(tmp_path, variables)
    yield host
    host.stop()
