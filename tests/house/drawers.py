"""Import-linter contract that limits imports between plugins to their public modules."""

from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class PublicDrawers(Contract):
    """Modules of one package may import only the modules called ``drawers`` of the other packages."""

    packages = fields.SetField(subfield=fields.StringField())
    drawers = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002 - import-linter's shape
        # import-linter turns its field declarations into plain sets on each contract.
        packages, drawers = cast("tuple[set[str], set[str]]", (self.packages, self.drawers))
        reached = [
            f"{importer} imports {imported} (line {detail['line_number']}): {detail['line_contents']}"
            for importer in sorted(graph.modules)
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if _crosses(importer, imported, packages) and _drawer(imported) not in drawers
            for detail in graph.get_import_details(importer=importer, imported=imported)
        ]
        return ContractCheck(kept=not reached, metadata={"reached": reached})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["reached"]:
            output.print_error(line)


def _crosses(importer: str, imported: str, packages: set[str]) -> bool:
    ends = {importer.partition(".")[0], imported.partition(".")[0]}
    return len(ends) == 2 and ends <= packages


def _drawer(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]
