"""Writes settings the way gateway.toml is written, so that what is shown can be pasted back."""

import json
from collections.abc import Mapping
from typing import Any, cast


def dumps(values: Mapping[str, Any]) -> str:
    """Settings as TOML: plain values first, then one table for each section. A setting without value is a comment."""
    return "".join(f"{line}\n" for line in _lines(values, ""))


def _lines(values: Mapping[str, Any], path: str) -> list[str]:
    lines = [_setting(name, value) for name, value in values.items() if not isinstance(value, Mapping)]
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = f"{path}.{_key(name)}" if path else _key(name)
            lines += ["", f"[{inner}]", *_lines(cast("Mapping[str, Any]", value), inner)]
    return lines


def _setting(name: str, value: Any) -> str:
    return f"# {_key(name)} is not set" if value is None else f"{_key(name)} = {_value(value)}"


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items())  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
        return f"{{ {pairs} }}" if pairs else "{}"
    return _text(str(value))


def _text(text: str) -> str:
    # JSON escapes everything that TOML wants escaped, but for DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
