"""Reports the interoperability tests that are skipped."""

import shutil


def pytest_report_header() -> list[str]:
    """Name the missing programs."""
    absent = [name for name in ("java", "go") if shutil.which(name) is None]
    return [f"no {name} here: clients that need it are not generated" for name in absent]
