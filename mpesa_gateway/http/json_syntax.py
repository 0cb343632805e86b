"""Advice on malformed JSON, with line and column."""

import json
import re
from collections.abc import Mapping

import msgspec

SEND_JSON = "send a JSON object (RFC 8259, UTF-8)"

_AT = re.compile(r"JSON is malformed: (.+) \(byte (\d+)\)\Z")

_HALF_PAIR = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]",
    re.DOTALL,
)

_ESCAPE = 6
"""Bytes of an escape such as ``\\ud800``."""

_HALF = "this is half of a surrogate pair, which is no character"
_BEFORE = re.compile(rb"(?<=[\s:,\[])(?:[a-z]+[^a-z]?|-)\Z")

_ADVICE: Mapping[str, str] = {
    "trailing comma in object": "remove the comma before }",
    "trailing comma in array": "remove the comma before ]",
    "object keys must be strings": "put each name in double quotes",
    "expected ':'": "put a colon after the name",
    "expected ',' or '}'": "put a comma between members, or } at the end",
    "expected ',' or ']'": "put a comma between elements, or ] at the end",
    "trailing characters": "remove the text after the end of the object",
    "invalid number": "write the number as 500 or 500.25, without leading zeros",
    "invalid escape character in string": "write a backslash in text as \\\\",
    "invalid character in unicode escape": "write four hexadecimal digits after \\u",
}
"""Texts of msgspec; others are answered with the position only."""

_AT_VALUE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"-?(?:NaN|Inf)", "JSON has no NaN and no Infinity: send a number or null"),
        (r"-", "put digits after the minus sign"),
        (r"True|False|None", "write true, false and null in lower case"),
        (r"['\u2018\u2019\u201c\u201d]", 'put text in straight double quotes (")'),
        (r"/[/*]|#", "remove the comment: JSON has none"),
        (r"[+.]", "write the number without a plus sign, and with a digit before the point"),
        (r"[}\],]", "a value is missing"),
        (r"[\x00-\x1f]", "escape line breaks and control characters in text, such as \\n"),
        (r"[A-Za-z_]", "put text in double quotes"),
    )
)


def explain_syntax(body: bytes) -> str:
    """Return the advice for a body that is not valid JSON."""
    try:
        body.decode()
    except UnicodeDecodeError as problem:
        return f"{SEND_JSON}: {_position(body, problem.start)}: this is not UTF-8"
    try:
        msgspec.json.decode(body)
    except RecursionError:
        return f"{SEND_JSON}: it is nested too deeply"
    except msgspec.ValidationError:
        return f"{SEND_JSON}: a number is out of range"
    except msgspec.DecodeError as problem:
        return f"{SEND_JSON}{_explain(body, str(problem))}"
    return SEND_JSON


def _explain(body: bytes, text: str) -> str:
    found = _AT.search(text)
    if found is None:
        return _explain_end(body)
    # msgspec counts the first trailing character as read.
    at = int(found[2]) - (found[1] == "trailing characters")
    if at >= _ESCAPE and _HALF_PAIR.match(body, at - _ESCAPE):
        return f": {_position(body, at - _ESCAPE)}: {_HALF}"
    if found[1] == "invalid character" and (word := _BEFORE.search(body, max(at - 12, 0), at)):
        # msgspec stops within -Infinity and within words such as ten and four.
        at = word.start()
    rest = body[at : at + 40].decode("utf-8", "replace")
    advice = _ADVICE.get(found[1]) or next((said for pattern, said in _AT_VALUE if pattern.match(rest)), "")
    return f": {_position(body, at)}: {advice or 'this character is not expected here'}"


def _explain_end(body: bytes) -> str:
    if not body.strip():
        return ": the body is empty"
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return f": {_position(body, len(body))}: it ends too early"
    # The standard library accepts half of a surrogate pair.
    at = _HALF_PAIR.search(body)
    return f": {_position(body, at.start() if at else 0)}: {_HALF}"


def _position(body: bytes, at: int) -> str:
    lines = body[:at].split(b"\n")
    return f"line {len(lines)}, column {len(lines[-1].decode('utf-8', 'replace')) + 1}"
