"""What the tests of other people's code say before they begin."""

import shutil


def pytest_report_header() -> list[str]:
    """Say which tests are not there."""
    absent = [name for name in ("java", "go") if shutil.which(name) is None]
    return [f"no {name} here: clients that need it are not generated" for name in absent]
