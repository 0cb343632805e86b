"""Protects the coverage of `just schemathesis`: every check is on, and every exclusion still applies."""

import tomllib

from bench.schema.__main__ import LAST
from bench.schema.beyond import BEYOND, beyond
from mpesa_gateway.errors import Code
from tests.house.tree import ROOT
from tests.routes import document

CALLS = {f"{method.upper()} {path}" for path, methods in document()["paths"].items() for method in methods}


def test_schemathesis_runs_every_check_on_every_operation() -> None:
    settings = tomllib.loads((ROOT / "bench/schema/schemathesis.toml").read_text(encoding="utf-8"))
    assert settings["continue-on-failure"] is True
    assert not settings.keys() & {"checks", "operations", "baseline", "phases", "max-failures"}


def test_schemathesis_excluded_operations_exist() -> None:
    assert set(LAST) < CALLS
    for each in BEYOND:
        assert each.calls <= CALLS, each.why
        assert each.code in set(Code)
        assert each.why


def test_exclusion_applies_to_one_operation_code_and_field() -> None:
    bad = {"code": "VALIDATION_ERROR", "field": "cursor", "message": "send the next_cursor"}
    assert beyond("GET /v1/payments", bad) is not None
    assert beyond("GET /v1/payments/export", bad) is None
    assert beyond("GET /v1/payments", bad | {"field": "limit"}) is None
    assert beyond("GET /v1/payments", bad | {"code": "NOT_FOUND"}) is None
    assert beyond("POST /v1/payments", {"code": "IDEMPOTENCY_MISMATCH"}) is not None
    assert beyond("POST /v1/payments", {"code": "VALIDATION_ERROR"}) is None
