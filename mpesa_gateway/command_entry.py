"""Commands declared by name, so that a list of commands imports none of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


@dataclass(frozen=True)
class CommandEntry:
    """A command that is imported when it is called.

    ``target`` is ``module:attribute``; ``summary`` is the first paragraph of the command's help.
    """

    name: str
    target: str
    summary: str

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command
