"""Settings in the form of gateway.toml."""

import re
from collections.abc import Mapping
from datetime import time
from typing import Any, cast

import tomli_w

_UNSET = time.min
"""Marks a setting without a value."""

_UNSET_LINE = re.compile(rf"^(.+) = {_UNSET.isoformat()}$", re.MULTILINE)


def dumps(values: Mapping[str, Any]) -> str:
    """A setting without a value becomes a comment."""
    return _UNSET_LINE.sub(r"# \1 is not set", tomli_w.dumps(_writable(values)))


def _writable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in values.items()}


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _writable(cast("Mapping[str, Any]", value))
    return _UNSET if value is None else value
