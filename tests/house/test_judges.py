"""Protects the independence of the judges of the model, chaos and soak tests: they import no judged module."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

JUDGES = (
    ROOT / "bench/chaos/truth.py",
    ROOT / "bench/chaos/verify.py",
    ROOT / "bench/soak/run.py",
    *sorted((ROOT / "tests/model").glob("*.py")),
)

FORBIDDEN = frozenset(
    {
        "mpesa_gateway.daraja.wire",
        "mpesa_gateway_payments.changes",
        "mpesa_gateway_payments.decisions",
        "mpesa_gateway_payments.operator_service",
        "mpesa_gateway_payments.evidence",
        "mpesa_gateway_payments.matching",
        "mpesa_gateway_payments.result_codes",
        "mpesa_gateway_payments.states",
        "mpesa_gateway_payments.statement_matching",
        "mpesa_gateway_payments.transitions",
        "mpesa_gateway_payments.verdicts",
        "mpesa_gateway_refunds.result_codes",
    }
)
"""Modules that decide how a report of money is matched."""

FORBIDDEN_NAMES = frozenset({"Evidence", "Match", "judge", "may_be", "take_money", "visible_pattern"})
"""Names of the product's matching code, from any module."""


def imported(source: str) -> Iterable[tuple[str, str]]:
    """Yield every imported module and each name imported from it; the name is empty for a whole module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, alias.name) for alias in node.names)


def violations(source: str) -> list[str]:
    return [
        f"{module} {name}".strip()
        for module, name in imported(source)
        if module in FORBIDDEN
        or f"{module}.{name}" in FORBIDDEN
        or (module.startswith("mpesa_gateway") and name in FORBIDDEN_NAMES)
    ]


@pytest.mark.parametrize("path", JUDGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_judges_import_no_judged_module(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from mpesa_gateway_payments.states import TRANSITIONS",
        "from mpesa_gateway_payments import statement_matching",
        "import mpesa_gateway_payments.transitions",
        "from mpesa_gateway.phone import may_be",
        "from mpesa_gateway_payments.result_codes import stk_outcome",
        "def late():\n    from mpesa_gateway_payments.api import Match",
    ],
)
def test_judge_importing_matching_code_is_found(source: str) -> None:
    assert violations(source) != []


def test_judge_calling_services_is_accepted() -> None:
    assert violations("from mpesa_gateway_payments.service import PaymentService\nfrom tests.model import books") == []
