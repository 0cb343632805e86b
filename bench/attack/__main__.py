"""``just attack``: the whole suite, or a part of it; ends by itself, speaks to loopback only, and prints one report."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.attack import bounds, floods, smuggling
from bench.attack.attackers import ATTACKS
from bench.attack.report import Report
from bench.attack.routes import ROUTES, is_installed, through, wait_until_listening
from mpesa_gateway.standalone.process import free_port, launch, stop

CANDIDATES = ("gateway", "granian", "uvicorn", "uvicorn-h11")
"""``gateway`` is the server as it ships. The others are for comparison: bare, by their own settings."""

QUICK = ("idle-kept", "half-bodies", "no-key", "logins")


def main() -> int:
    """Run what the arguments ask for; gives the exit status."""
    parser = argparse.ArgumentParser(prog="just attack", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes: for CI")
    parser.add_argument("--server", action="append", choices=CANDIDATES, help="what is attacked (default: gateway)")
    parser.add_argument("--route", action="append", choices=ROUTES, help="the way to it (default: all)")
    parser.add_argument("--flood", action="append", choices=[attack.name for attack in ATTACKS], help="these floods")
    parser.add_argument("--flood-route", action="append", choices=ROUTES, help="the way of floods (default: direct)")
    parts = ["smuggling", "bounds", "floods"]
    parser.add_argument("--skip", action="append", default=[], choices=parts, help="leave a part out")
    parser.add_argument("--case", default="", help="only the smuggling cases whose name contains this")
    parser.add_argument("--seconds", type=float, help="of each window with or without a flood")
    parser.add_argument("--rounds", type=int, help="windows with each flood")
    parser.add_argument("--report", type=Path, help="write the Markdown there as well")
    options = parser.parse_args()
    servers = options.server or ["gateway"]
    routes = [route for route in options.route or ROUTES if is_installed(route)]
    if options.quick and not options.route:
        routes = [route for route in routes if route in {"direct", "caddy", "ingress"}]
    chosen = options.flood or (QUICK if options.quick else [attack.name for attack in ATTACKS])
    seconds = options.seconds or (3.0 if options.quick else 6.0)
    rounds = options.rounds or (1 if options.quick else 2)
    began = time.monotonic()
    report = Report(servers, seconds, rounds)
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        for server in servers:
            if "smuggling" not in options.skip:
                cases = [case for case in smuggling.cases() if options.case in case.name]
                report.add_smuggling(server, _smuggle(server, routes, cases, folder / f"{server}-smuggling", _say))
            if "bounds" not in options.skip and not options.case:
                report.add_bounds(server, _try_bounds(server, folder / f"{server}-bounds", _say))
            if "floods" not in options.skip and server in {"gateway", "granian"}:
                report.add_floods(
                    server,
                    floods.run(
                        server,
                        [attack for attack in ATTACKS if attack.name in chosen],
                        options.flood_route or ["direct"],
                        folder / f"{server}-floods",
                        seconds=seconds,
                        rounds=rounds,
                        say=_say,
                    ),
                )
    text = report.markdown(time.monotonic() - began)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return 0 if report.is_withstood("gateway") else 1


@contextmanager
def _recording(server: str, folder: Path) -> Generator[tuple[int, "subprocess.Popen[bytes]", Path]]:
    """The recorder behind a server: its port, its process, and the file of what reached it."""
    folder.mkdir()
    record, log, port = folder / "reached.jsonl", folder / "log", free_port()
    record.touch()
    with log.open("wb") as output:
        process = launch(
            [sys.executable, "-m", "bench.attack.recorder", server, str(port), str(record)],
            output=output,
            death_signal=signal.SIGKILL,
            cwd=Path(__file__).parents[2],
        )
    try:
        wait_until_listening(port, process, log)
        yield port, process, record
    finally:
        stop(process, (signal.SIGTERM,), 5)


def _smuggle(
    server: str, routes: Sequence[str], cases: Sequence[smuggling.Case], folder: Path, say: Callable[[str], None]
) -> dict[str, list[smuggling.Verdict]]:
    """Every case by every route."""
    found: dict[str, list[smuggling.Verdict]] = {}
    with _recording(server, folder) as (port, _, record):
        for route in routes:
            say(f"{server}, {route}: {len(cases)} cases")
            with through(route, port, folder / route) as at:
                found[route] = smuggling.run(at, record, route, cases, say)
    return found


def _try_bounds(server: str, folder: Path, say: Callable[[str], None]) -> Mapping[str, tuple[bool, str]]:
    """Every bound, directly."""
    say(f"{server}: bounds")
    with _recording(server, folder) as (port, process, _):
        return bounds.run(port, process, say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
