"""`just schemathesis` tries all that the OpenAPI document describes: no check is off, and no exclusion is left over."""

import tomllib

from bench.schema.__main__ import LAST
from bench.schema.beyond import BEYOND, beyond
from mpesa_gateway.errors import Code
from tests.house.tree import ROOT
from tests.routes import document

CALLS = {f"{method.upper()} {path}" for path, methods in document()["paths"].items() for method in methods}


def test_no_check_is_off_and_no_call_is_left_out() -> None:
    settings = tomllib.loads((ROOT / "bench/schema/schemathesis.toml").read_text(encoding="utf-8"))
    assert settings["continue-on-failure"] is True
    assert not settings.keys() & {"checks", "operations", "baseline", "phases", "max-failures"}


def test_what_comes_last_and_what_is_excluded_exists() -> None:
    assert set(LAST) < CALLS
    for each in BEYOND:
        assert each.calls <= CALLS, each.why
        assert each.code in set(Code)
        assert each.why


def test_an_exclusion_is_for_its_call_its_code_and_its_field_only() -> None:
    bad = {"code": "VALIDATION_ERROR", "field": "cursor", "message": "send the next_cursor"}
    assert beyond("GET /v1/payments", bad) is not None
    assert beyond("GET /v1/payments/export", bad) is None
    assert beyond("GET /v1/payments", bad | {"field": "limit"}) is None
    assert beyond("GET /v1/payments", bad | {"code": "NOT_FOUND"}) is None
    assert beyond("POST /v1/payments", {"code": "IDEMPOTENCY_MISMATCH"}) is not None
    assert beyond("POST /v1/payments", {"code": "VALIDATION_ERROR"}) is None
