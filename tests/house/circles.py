"""Import-linter contract that limits the size of import cycles, imports for type checkers included."""

from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class SmallCircles(Contract):
    """At most ``at_most`` modules import each other, directly or through others."""

    at_most = fields.IntegerField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002 - import-linter's shape
        at_most = cast("int", self.at_most)
        reached = {module: _reached_from(module, graph) for module in graph.modules}
        circles = {
            frozenset(other for other in others if module in reached[other])
            for module, others in reached.items()
            if module in others
        }
        return ContractCheck(
            kept=all(len(circle) <= at_most for circle in circles),
            metadata={"circles": sorted(sorted(circle) for circle in circles if len(circle) > at_most)},
        )

    def render_broken_contract(self, check: ContractCheck) -> None:
        for circle in check.metadata["circles"]:
            output.print_error(f"{len(circle)} modules import each other: {', '.join(circle)}")


def _reached_from(module: str, graph: ImportGraph) -> set[str]:
    reached: set[str] = set()
    pending = [module]
    while pending:
        for imported in graph.find_modules_directly_imported_by(pending.pop()) - reached:
            reached.add(imported)
            pending.append(imported)
    return reached
