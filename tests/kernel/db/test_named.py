"""Protects statements with named parameters."""

import pytest

from mpesa_gateway.db.named import Named

INSERT = Named("INSERT INTO thing (a, b, c, d) VALUES ($name, $other::text[], $name, $sha256)")
ROWS = Named("INSERT INTO thing SELECT a, $at FROM unnest($a::text[], $b::integer[]) AS t(a, b)")


def test_named_repeated_parameter_has_one_number() -> None:
    assert INSERT.sql == "INSERT INTO thing (a, b, c, d) VALUES ($1, $2::text[], $1, $3)"
    assert INSERT.bind(other=2, name=1, sha256=3) == (INSERT.sql, 1, 2, 3)


@pytest.mark.parametrize("values", [{"name": 1, "sha256": 3}, {"name": 1, "other": 2, "sha256": 3, "third": 4}])
def test_named_bind_with_a_missing_or_unknown_name_raises(values: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"other|third"):
        INSERT.bind(**values)


def test_named_bind_rows_makes_one_array_for_each_name() -> None:
    rows = [{"a": "x", "b": 1, "unused": None}, {"a": "y", "b": 2, "unused": None}]
    assert ROWS.bind_rows(rows, at="now") == (ROWS.sql, "now", ["x", "y"], [1, 2])
    assert ROWS.bind_rows([], at="now") == (ROWS.sql, "now", [], [])


def test_named_bind_rows_without_a_name_or_with_an_unknown_one_raises() -> None:
    with pytest.raises(KeyError, match="b"):
        ROWS.bind_rows([{"a": "x"}], at="now")
    with pytest.raises(TypeError, match="later"):
        ROWS.bind_rows([], at="now", later="x")
