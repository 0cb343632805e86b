"""Protects the environment's urllib3: niquests' fork does not replace it."""

import json
import subprocess
import sys
from importlib import metadata

FIX = (
    "niquests' fork has replaced urllib3 in this environment (docs/embedding-urllib3.md). pip may have reused a wheel "
    "that it built earlier without URLLIB3_NO_OVERRIDE=1: `pip cache remove urllib3_future`, then rebuild .venv."
)

SEEN = """
import json, sys
import niquests, urllib3, urllib3_future
session = niquests.Session()
print(json.dumps({
    "urllib3": [urllib3.__version__, urllib3.__file__],
    "fork": [urllib3_future.__version__, urllib3_future.__file__],
    "pool manager": type(session.get_adapter("https://example.test").poolmanager).__module__.partition(".")[0],
}))
"""


def test_urllib3_is_the_original() -> None:
    seen = json.loads(subprocess.run([sys.executable, "-c", SEEN], capture_output=True, text=True, check=True).stdout)
    assert seen["urllib3"][0] == metadata.version("urllib3"), FIX
    assert seen["fork"][0] == metadata.version("urllib3-future")
    assert seen["urllib3"][0] != seen["fork"][0], FIX
    assert "urllib3_future" in seen["fork"][1]
    assert seen["pool manager"] == "urllib3_future", "niquests must find its fork under the fork's own name"


def test_urllib3_future_installs_no_file_named_urllib3() -> None:
    files = metadata.files("urllib3-future") or []
    assert files, "urllib3-future must list its files"
    assert not [str(file) for file in files if file.parts[0] == "urllib3" or file.suffix == ".pth"], FIX
