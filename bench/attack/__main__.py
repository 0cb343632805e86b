"""``just attack``: runs the whole suite or a part of it on loopback only, and prints one report."""

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
from bench.attack.egress import SCENARIOS
from bench.attack.report import Report, write
from bench.attack.routes import ROUTES, is_installed, through, wait_until_listening
from mpesa_gateway.standalone.process import free_port, launch, stop

CANDIDATES = ("gateway", "granian", "uvicorn", "uvicorn-h11")
"""``gateway`` is the server as shipped. The others are for comparison, with their own settings only."""

QUICK = ("idle-kept", "half-bodies", "no-key", "logins", "slow-dns", "chunks")
"""The floods and webhook hosts of ``--quick``."""

PARTS = ("smuggling", "bounds", "floods", "egress")


def main() -> int:
    """Run the selected parts; returns the exit status: 1 if an attack succeeded or a bar was missed.

    ``--quick`` measures too briefly for bars: a share below one does not fail it.
    """
    options = _parser().parse_args()
    servers = options.server or ["gateway"]
    parts = [part for part in options.only or PARTS if part not in options.skip]
    routes = [route for route in options.route or ROUTES if is_installed(route)]
    smuggled = routes
    if options.quick and not options.route:
        smuggled = [route for route in routes if route in {"direct", "caddy", "ingress"}]
    plan = _plan(options, parts, routes)
    began = time.monotonic()
    report = Report(servers, plan, is_quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        for server in servers:
            if "smuggling" in parts:
                cases = [case for case in smuggling.cases() if options.case in case.name]
                report.add_smuggling(server, _smuggle(server, smuggled, cases, folder / f"{server}-smuggling", _say))
            if "bounds" in parts and not options.case:
                report.add_bounds(server, _try_bounds(server, folder / f"{server}-bounds", _say))
            if (plan.attacks or plan.scenarios) and server in {"gateway", "granian"}:
                _say(f"{server}: floods and webhook hosts")
                report.add_outcomes(server, *floods.run(server, plan, folder / f"{server}-floods", _say))
    text = report.markdown(time.monotonic() - began)
    print(text)
    if options.report:
        write(options.report, text)
    return 0 if report.is_withstood("gateway") else 1


def _parser() -> argparse.ArgumentParser:
    names = [attack.name for attack in ATTACKS]
    parser = argparse.ArgumentParser(prog="just attack", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes: for CI")
    parser.add_argument("--server", action="append", choices=CANDIDATES, help="the server to attack (default: gateway)")
    parser.add_argument("--route", action="append", choices=ROUTES, help="the way to it (default: all)")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (default: all)")
    parser.add_argument("--skip", action="append", default=[], choices=PARTS, help="leave a part out")
    parser.add_argument("--case", default="", help="only the smuggling cases whose name contains this")
    parser.add_argument("--flood", action="append", choices=names, help="these floods, by each selected route")
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="these webhook hosts")
    parser.add_argument("--seconds", type=float, help="of each window with an attack (default: 8)")
    parser.add_argument("--control", type=float, help="of each window without (default: 5)")
    parser.add_argument("--rounds", type=int, help="windows with each attack (default: 2)")
    parser.add_argument("--report", type=Path, help="write the Markdown there, or into that file between its marks")
    return parser


def _plan(options: argparse.Namespace, parts: Sequence[str], routes: Sequence[str]) -> floods.Plan:
    is_quick: bool = options.quick
    attacks = options.flood or [attack.name for attack in ATTACKS if not is_quick or attack.name in QUICK]
    scenarios = options.scenario or [name for name in SCENARIOS if not is_quick or name in QUICK]
    if is_quick and not options.route:
        routes = ["direct"]
    return floods.Plan(
        attacks=attacks if "floods" in parts else (),
        scenarios=scenarios if "egress" in parts else (),
        routes=routes,
        all_by=routes if options.flood else ["direct"],
        seconds=options.seconds or (2.0 if is_quick else 8.0),
        control=options.control or (1.5 if is_quick else 5.0),
        rounds=options.rounds or (1 if is_quick else 2),
    )


@contextmanager
def _recording(server: str, folder: Path) -> Generator[tuple[int, "subprocess.Popen[bytes]", Path]]:
    """Yield the port, the process and the file of a server with the recorder behind it."""
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
    """Run every case by every route."""
    found: dict[str, list[smuggling.Verdict]] = {}
    with _recording(server, folder) as (port, _, record):
        for route in routes:
            say(f"{server}, {route}: {len(cases)} cases")
            with through(route, port, folder / route) as at:
                found[route] = smuggling.run(at, record, route, cases, say)
    return found


def _try_bounds(server: str, folder: Path, say: Callable[[str], None]) -> Mapping[str, tuple[bool, str]]:
    """Test every bound directly."""
    say(f"{server}: bounds")
    with _recording(server, folder) as (port, process, _):
        return bounds.run(port, process, say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
