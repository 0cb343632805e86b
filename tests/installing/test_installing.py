"""Protects the documented installation: its blocks run in a virtual environment per page (`just installing`)."""

import os
import sys
import venv
from pathlib import Path

import pytest

from tests.docs.blocks import blocks
from tests.docs.how import PAGES, Job
from tests.docs.reader import read

INSTALLING = [name for name, page in PAGES.items() if any(how.job is Job.INSTALLING for how in page.hows)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Set pip's cache folder, separate from this machine's."""
    return tmp_path_factory.mktemp("pip")


@pytest.mark.parametrize("name", INSTALLING)
async def test_documented_installation_works(name: str, cache: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    ours = ("MPESA_GATEWAY_", "URLLIB3_NO_OVERRIDE", "VIRTUAL_ENV", "PYTHON")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    others = [folder for folder in environ["PATH"].split(os.pathsep) if folder != str(Path(sys.executable).parent)]
    environ |= {"PATH": os.pathsep.join([str(tmp_path / "venv/bin"), *others]), "PIP_CACHE_DIR": str(cache)}
    await read(blocks(name), PAGES[name], tmp_path, environ, jobs=[Job.INSTALLING])
