"""Installed plugins by their entry points, without importing them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mpesa_gateway.command_entry import CommandEntry

GROUP = "mpesa_gateway.plugins"


@dataclass(frozen=True)
class InstalledPlugin:
    """An entry point and its package."""

    name: str
    distribution: str
    version: str
    point: EntryPoint

    def commands(self) -> Sequence[CommandEntry]:
        """Return ``COMMANDS`` of the plugin's package; without it, import the plugin and return its commands."""
        package = self.point.module.rpartition(".")[0] or self.point.module
        declared: Sequence[CommandEntry] | None = getattr(import_module(package), "COMMANDS", None)
        plugin: Any = self.point.load() if declared is None else None
        return plugin.commands if declared is None else declared


def installed() -> dict[str, InstalledPlugin]:
    """Return the installed plugins without importing them.

    New packages are found once ``sys.path`` has changed.
    """
    return dict(_installed(tuple(sys.path)))


@lru_cache(maxsize=1)
def _installed(_: tuple[str, ...]) -> dict[str, InstalledPlugin]:
    return {
        point.name: InstalledPlugin(
            point.name, point.dist.name if point.dist else "", point.dist.version if point.dist else "", point
        )
        for point in entry_points(group=GROUP)
    }
