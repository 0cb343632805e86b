"""Characters that control a terminal, browser or spreadsheet."""

import re

CONTROL_CHARACTERS = (
    "\\x00-\\x1f\\x7f-\\x9f\\xad\\u0600-\\u0605\\u061c\\u06dd\\u070f\\u0890\\u0891\\u08e2\\u180e\\u200b-\\u200f\\u2028-\\u202f"
    "\\u2060-\\u206f\\ud800-\\udfff\\ufeff\\ufff9-\\ufffb\\U000110bd\\U000110cd\\U00013430-\\U0001343f"
    "\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e007f"
)
"""Control characters, bidirectional marks, invisible text, line separators and surrogates."""

_ESCAPED = re.compile(f"(?![\n\t])[{CONTROL_CHARACTERS}]")


def escape_control_characters(text: str) -> str:
    return text if text.isprintable() else _ESCAPED.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
