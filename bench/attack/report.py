"""The report of one run in Markdown: the tables of docs/security.md."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.attack.bounds import CONNECTIONS, SECONDS
from bench.attack.floods import BAR, EGRESS_BAR, Plan
from bench.attack.merchant import CLIENTS
from bench.attack.routes import is_installed, proxy_version
from bench.attack.smuggling import Verdict
from bench.attack.windows import QUIET, Outcome, Window

BEGIN, END = "<!-- just attack: begin -->", "<!-- just attack: end -->"
"""The lines of a page between which the report of the last full run is written."""


class Report:
    """The trials against each server, with their results."""

    def __init__(self, servers: Sequence[str], plan: Plan, *, is_quick: bool) -> None:
        self._servers = servers
        self._plan = plan
        self._is_quick = is_quick
        self._smuggling: dict[str, Mapping[str, Sequence[Verdict]]] = {}
        self._bounds: dict[str, Mapping[str, tuple[bool, str]]] = {}
        self._floods: dict[str, Sequence[Outcome]] = {}
        self._hosts: dict[str, Sequence[Outcome]] = {}

    def add_smuggling(self, server: str, found: Mapping[str, Sequence[Verdict]]) -> None:
        """Add the verdicts of a server by route."""
        self._smuggling[server] = found

    def add_bounds(self, server: str, found: Mapping[str, tuple[bool, str]]) -> None:
        """Add the results of a server's limits."""
        self._bounds[server] = found

    def add_outcomes(self, server: str, floods: Sequence[Outcome], hosts: Sequence[Outcome]) -> None:
        """Add the outcomes of floods and of misbehaving webhook hosts."""
        self._floods[server] = floods
        self._hosts[server] = hosts

    def is_withstood(self, server: str) -> bool:
        """Return True if the server let no attack through, enforced its limits, stayed alive and met every bar.

        A quick run ignores the bars.
        """
        verdicts = [one.problem is None for each in self._smuggling.get(server, {}).values() for one in each]
        held = [is_held for is_held, _ in self._bounds.get(server, {}).values()]
        outcomes = [*self._floods.get(server, ()), *self._hosts.get(server, ())]
        withstood = [one.is_alive if self._is_quick else one.is_withstood for one in outcomes]
        return all([*verdicts, *held, *withstood])

    def markdown(self, took: float) -> str:
        """Return the whole report."""
        parts = [self._conditions(took)]
        if self._smuggling:
            parts.append(self._smuggled())
        if self._bounds:
            parts.append(self._bounded())
        if any(self._floods.values()) or any(self._hosts.values()):
            parts.append(self._measured())
        for title, bar, found in (
            ("**Floods**, from one address of loopback unless stated otherwise", BAR, self._floods),
            (
                "**Webhook hosts** of four other merchants, compared with windows with healthy hosts",
                EGRESS_BAR,
                self._hosts,
            ),
        ):
            parts += [_table(title, bar, server, outcomes) for server, outcomes in found.items() if outcomes]
        return "\n\n".join(parts) + "\n"

    def _conditions(self, took: float) -> str:
        names = ("uvicorn", "httptools", "h11", "uvloop", "granian")
        versions = [f"{name} {found}" for name in names if (found := _version(name))]
        proxies = [proxy_version(route) for route in ("nginx", "caddy") if is_installed(route)]
        return (
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {took / 60:.0f} minutes, on loopback. {_machine()}. "
            f"Python {platform.python_version()}, {', '.join([*versions, *proxies])}."
        )

    def _measured(self) -> str:
        plan = self._plan
        outcomes = [one for found in (self._floods, self._hosts) for each in found.values() for one in each]
        noise = [f"{one.share:.2f} ({_spread(one)})" for one in outcomes if one.trial.command is None]
        loaded = [one for one in outcomes if one.others > QUIET]
        lines = [
            f"An honest merchant creates payments on {CLIENTS} kept connections, as fast as they are answered. Its",
            f"*share* is its creates per second in a window of {plan.seconds:g} s with the attack, over the mean of",
            f"the windows of {plan.control:g} s without it before and after. Shown are the median of {plan.rounds}",
            "rounds, which are minutes apart, and the least and the most of them. *Slowest* is the 99th percentile of",
            "its answers. The cores are those of the gateway, with its worker and the simulator in the",
            "same process, and the attacker with its hosts, at the lowest priority.",
        ]
        if noise:
            lines.append(f"Without any attack the share came to {', '.join(noise)}: that is the noise.")
        if loaded:
            rows = f"{len(loaded)} of {len(outcomes)} rows"
            lines.append(f"**Other programs took more than {QUIET:g} cores in {rows}: measure again.**")
        else:
            lines.append(f"Other programs took {max(one.others for one in outcomes):.2f} cores at most in any window.")
        return "\n".join(lines)

    def _smuggled(self) -> str:
        routes = list(dict.fromkeys(route for found in self._smuggling.values() for route in found))
        lines = [
            "**Smuggling**: successful attacks of all cases. The verdict counts the requests that reached",
            "the application.",
            "",
            f"| server | {' | '.join(routes)} |",
            f"|---|{'---:|' * len(routes)}",
        ]
        notes: list[str] = []
        for server, found in self._smuggling.items():
            cells = [_cell(found[route]) if route in found else "" for route in routes]
            lines.append(f"| {server} | {' | '.join(cells)} |")
            for route, verdicts in found.items():
                notes += [f"- {server}, {route}: {one.case}: {one.problem}" for one in verdicts if one.problem]
        return "\n".join(lines + ([""] if notes else []) + notes)

    def _bounded(self) -> str:
        lines = [
            f"**Bounds** that only the server can hold. Times are set to {SECONDS:g} s, connections to {CONNECTIONS},",
            "if the server has such a setting.",
            "",
            f"| | {' | '.join(self._bounds)} |",
            f"|---|{'---|' * len(self._bounds)}",
        ]
        for name in dict.fromkeys(name for found in self._bounds.values() for name in found):
            cells = [
                text if is_held else f"**{text}**"
                for is_held, text in (found.get(name, (True, "")) for found in self._bounds.values())
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _cell(verdicts: Sequence[Verdict]) -> str:
    failed = sum(one.problem is not None for one in verdicts)
    return f"{'**' if failed else ''}{failed}{'**' if failed else ''} of {len(verdicts)}"


def _table(title: str, bar: float, server: str, outcomes: Sequence[Outcome]) -> str:
    suffix = "" if server == "gateway" else f" ({server})"
    lines = [
        f"{title}{suffix}; the bar is {bar:g}:",
        "",
        "| attack | route | share | creates/s, without → with | slowest, ms | refused | gateway | attacker | |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(_cells(one))} |" for one in outcomes]
    return "\n".join(lines)


def _cells(one: Outcome) -> list[str]:
    verdict = "no bar" if one.trial.bar is None else "met" if one.is_withstood else "**below**"
    if not one.is_alive:
        verdict = "**the server ended**"
    if one.others > QUIET:
        verdict += f" (others: {one.others:.1f} cores)"
    return [
        one.trial.text,
        one.trial.route,
        f"{one.share:.2f} ({_spread(one)})",
        _change(one, lambda window: window.creates.per_second, 1),
        _change(one, lambda window: window.creates.slowest * 1000, 0),
        str(one.refused),
        _change(one, lambda window: window.cores.gateway, 2),
        f"{one.during(lambda window: window.cores.attacker):.2f}",
        verdict,
    ]


def _change(one: Outcome, read: Callable[[Window], float], digits: int) -> str:
    return f"{one.without(read):.{digits}f} → {one.during(read):.{digits}f}"


def _spread(one: Outcome) -> str:
    return f"{min(one.shares):.2f}\u2013{max(one.shares):.2f}"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GB, Linux {platform.release()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def write(path: Path, text: str) -> None:
    """Write a report to a file, or into a page between its marks."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    if BEGIN in page:
        before, _, rest = page.partition(BEGIN)
        text = f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}"
    path.write_text(text, encoding="utf-8")
