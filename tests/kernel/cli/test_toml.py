"""Protects the TOML writer: settings read back as they were written."""

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway import toml

texts = st.text(alphabet=st.characters(codec="utf-8"))
values = st.one_of(
    texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
settings = st.recursive(values | st.lists(values), lambda inner: st.dictionaries(texts, inner), max_leaves=10)


@given(st.dictionaries(texts, settings))
def test_toml_dumps_any_settings_read_back_as_written(written: dict[str, Any]) -> None:
    assert tomllib.loads(toml.dumps(written)) == written


def test_toml_dumps_an_unset_value_is_a_comment() -> None:
    assert toml.dumps({"url": None, "schema": "mpesa"}) == '# url is not set\nschema = "mpesa"\n'
