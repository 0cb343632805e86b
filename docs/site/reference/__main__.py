"""Writes docs/reference. With ``--check``, prints the outdated pages and exits with 1."""

import sys
from pathlib import Path

from docs.site.reference.pages import outdated, write

FOLDER = Path(__file__).parents[2] / "reference"

if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        names = outdated(FOLDER)
        for name in names:
            print(f"docs/reference/{name} is outdated: run `just reference`")
        sys.exit(bool(names))
    write(FOLDER)
