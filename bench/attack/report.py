"""The report of one run, as Markdown."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from bench.attack.bounds import CONNECTIONS, SECONDS
from bench.attack.floods import BAR, CLIENTS, OFFERED, Flood
from bench.attack.smuggling import Verdict


class Report:
    """What was tried against each server, and what it came to."""

    def __init__(self, servers: Sequence[str], seconds: float, rounds: int) -> None:
        self._servers = servers
        self._seconds = seconds
        self._rounds = rounds
        self._smuggling: dict[str, Mapping[str, Sequence[Verdict]]] = {}
        self._bounds: dict[str, Mapping[str, tuple[bool, str]]] = {}
        self._floods: dict[str, Sequence[Flood]] = {}

    def add_smuggling(self, server: str, found: Mapping[str, Sequence[Verdict]]) -> None:
        """Add the verdicts of a server, by route."""
        self._smuggling[server] = found

    def add_bounds(self, server: str, found: Mapping[str, tuple[bool, str]]) -> None:
        """Add what each bound of a server came to."""
        self._bounds[server] = found

    def add_floods(self, server: str, found: Sequence[Flood]) -> None:
        """Add the floods of a server."""
        self._floods[server] = found

    def is_withstood(self, server: str) -> bool:
        """Whether the server let nothing through, held its bounds and outlived every flood, whatever its shares."""
        verdicts = [one.problem is None for each in self._smuggling.get(server, {}).values() for one in each]
        held = [is_held for is_held, _ in self._bounds.get(server, {}).values()]
        return all([*verdicts, *held, *(flood.is_alive for flood in self._floods.get(server, ()))])

    def markdown(self, took: float) -> str:
        """The whole report."""
        parts = [self._conditions(took)]
        if self._smuggling:
            parts.append(self._smuggled())
        if self._bounds:
            parts.append(self._bounded())
        if self._floods:
            parts.append(self._flooded())
        return "\n\n".join(parts) + "\n"

    def _conditions(self, took: float) -> str:
        versions = ", ".join(f"{name} {_version(name)}" for name in ("uvicorn", "httptools", "h11", "granian"))
        return (
            f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}, {took:.0f} s in all, on loopback."
        )

    def _smuggled(self) -> str:
        routes = list(dict.fromkeys(route for found in self._smuggling.values() for route in found))
        lines = [
            "Smuggling: cases that were not withstood, of those tried. The judge counts the requests that reached the",
            "application.",
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
            f"Bounds that only the server can hold. Times are set to {SECONDS:g} s, connections to {CONNECTIONS},",
            "where the server has such a setting.",
            "",
            f"| | {' | '.join(self._bounds)} |",
            f"|---|{'---|' * len(self._bounds)}",
        ]
        for name in dict.fromkeys(name for found in self._bounds.values() for name in found):
            cells = [
                said if is_held else f"**{said}**"
                for is_held, said in (found.get(name, (True, "")) for found in self._bounds.values())
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _flooded(self) -> str:
        lines = [
            f"Floods: creates per second of an honest merchant (it offers {OFFERED} over {CLIENTS} connections) as a",
            f"share of those without the flood, {self._rounds} windows of {self._seconds:g} s with it and one more",
            "without, in turns; and the cores that the gateway computed on, with its worker and the simulator.",
            "Attackers run at the lowest priority, since the processor of an attacker is not the gateway's.",
            f"The bar is {BAR} where one address attacks.",
            "",
            "| flood | what it does | route | "
            + " | ".join(f"{server}: share | without | refused | cores" for server in self._floods)
            + " | bar |",
            "|---|---|---|" + "---:|---:|---:|---:|" * len(self._floods) + "---|",
        ]
        rows: dict[tuple[str, str], dict[str, Flood]] = {}
        for server, found in self._floods.items():
            for flood in found:
                rows.setdefault((flood.attack.name, flood.route), {})[server] = flood
        for (name, route), by_server in rows.items():
            one = next(iter(by_server.values()))
            cells = [_share(by_server.get(server)) for server in self._floods]
            bar = "none" if not one.attack.has_bar else _bar(by_server)
            lines.append(f"| {name} | {one.attack.text} | {route} | {' | '.join(cells)} | {bar} |")
        return "\n".join(lines)


def _cell(verdicts: Sequence[Verdict]) -> str:
    failed = sum(one.problem is not None for one in verdicts)
    return f"{'**' if failed else ''}{failed}{'**' if failed else ''} of {len(verdicts)}"


def _share(flood: Flood | None) -> str:
    if flood is None:
        return " | | | "
    dead = "" if flood.is_alive else " (the server ended)"
    return (
        f"{flood.share:.2f}{dead} | {flood.without:.1f} | {flood.refused} | {flood.cores[0]:.2f} → {flood.cores[1]:.2f}"
    )


def _bar(by_server: Mapping[str, Flood]) -> str:
    below = [server for server, flood in by_server.items() if not flood.is_withstood]
    return f"**below: {', '.join(below)}**" if below else "met"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
