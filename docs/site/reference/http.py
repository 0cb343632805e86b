"""HTTP: every call of the OpenAPI document with its scope, what it takes, what it answers and how it refuses."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.routes import HTTPRoute

from docs.site.reference.words import NOTE, code, document, prose, table
from mpesa_gateway.app import Gateway
from mpesa_gateway.http.openapi import complete
from mpesa_gateway.http.outline import PLACES, Call, Row, answers, body_rows, codes, curl, grouped, parameter_rows


@cache
def openapi(gateway: Gateway) -> dict[str, Any]:
    """The OpenAPI document of a gateway that is not started."""
    app = gateway.asgi.litestar
    return complete(app, msgspec.json.decode(msgspec.json.encode(app.openapi_schema.to_schema())))


def anchor(method: str, path: str) -> str:
    """What a call's heading is called in addresses, as hosts of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", f"{method} {path}".lower()).replace(" ", "-")


def page(gateway: Gateway) -> str:
    """The whole page."""
    described = openapi(gateway)
    groups = grouped(described)
    schemas = described["components"]["schemas"]
    opening = (
        "Every call, as the OpenAPI document has it that a running gateway shows at `/schema` to try them. "
        "[The API](../api.md) says what a description cannot. In the examples `$BASE` is the gateway's address and "
        "`$KEY` an API key. What each code of a refusal asks for is in [errors](errors.md)."
    )
    parts = ["# HTTP", NOTE, opening]
    for name, calls in groups.items():
        parts.append(f"## {name}")
        parts += [_call(call, schemas) for call in calls]
    return document(*parts, *_besides(gateway))


def _call(call: Call, schemas: dict[str, Any]) -> str:
    method, path, operation = call
    scope = operation.get("x-scope")
    wants = f"Wants the scope [`{scope}`](scopes.md#{scope.replace(':', '')})." if scope else "Wants no API key."
    parts = [f"### {method.upper()} {path}", f"{prose(operation.get('description'))} {wants}"]
    parts.append(f"```text\n{curl(method, path, operation, schemas)}\n```")
    for place, caption in PLACES.items():
        rows = parameter_rows(operation, place, schemas)
        parts.append(_rows(f"{caption}:", rows) if rows else "")
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(_rows(f"Body, `{media}`:", body_rows(content.get("schema", {}), schemas)))
    found = answers(operation, schemas)
    parts += [_rows(f"Answer {_statuses(statuses)}:", rows) for rows, statuses in found.items()]
    if not found:
        parts.append(f"Answer {_statuses([each for each in operation['responses'] if each.startswith('2')])}.")
    refusals = [f"{status} [`{each}`](errors.md#{each.lower()})" for status, each in codes(operation)]
    return document(*parts, f"Refused with {', '.join(refusals)}.")


def _besides(gateway: Gateway) -> Iterator[str]:
    """What the document leaves out: pages for people, and what the simulator answers in Safaricom's place."""
    rows = [
        (route.path_format, str(method), prose(handler.fn.__doc__).partition("\n\n")[0])
        for route in gateway.asgi.litestar.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if not handler.resolve_include_in_schema() and handler.fn.__module__.startswith("mpesa_gateway")
        for method in handler.http_methods
    ]
    yield "## Not in the document"
    yield "Pages for people, files that they are drawn with, and what the simulator answers in Safaricom's place."
    yield table(["call", "is"], ((code(f"{method} {path}"), text) for path, method, text in sorted(rows)))


def _rows(caption: str, rows: Sequence[Row]) -> str:
    if not rows:
        return caption.removesuffix(":") + "."
    has_text = any(row[2] for row in rows)
    headings = ["field", "type", "says"] if has_text else ["field", "type"]
    lines = ((code(row[0]), _type(row[1]), prose(row[2])) for row in rows)
    return f"{caption}\n\n{table(headings, (line if has_text else line[:2] for line in lines))}"


def _type(text: str) -> str:
    words = text.split(" | ")
    return text if len(words) == 1 else ", ".join(code(word) for word in words)


def _statuses(statuses: Sequence[str]) -> str:
    return ", ".join(f"{status} {HTTPStatus(int(status)).phrase}" for status in statuses)
