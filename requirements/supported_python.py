"""The build backend: hatchling, after a check of Python's version.

pip looks for the pinned dependencies before it compares ``requires-python``. On an older Python it would end with the
name of a dependency that has no release for it.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - older versions are the ones that this file is for
    found = sys.version.split()[0]
    raise SystemExit(
        f"mpesa-gateway needs Python 3.11 or newer, and this is Python {found}: "
        "make the virtual environment with a newer one, such as `python3.11 -m venv .venv`"
    )

from hatchling.build import *  # noqa: F403 - what PEP 517 asks a backend for
