"""The API's reference as one page: every call with what it takes, what it answers, and a form to try it with.

There are many calls, and the page is to stay under 100 KB: end tags that HTML lets out are left out, what is the same
for several answers is said once, and what only a script can use is made by the script.
"""

import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterator
from html import escape
from typing import Any

from mpesa_gateway.http.html import asset

LAST = ("Administration", "Operators", "Callbacks", "Simulator")
"""Groups that few readers come for."""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What the page may load: an API key is typed into it."""

_PLACES = {"path": "In the path", "query": "In the query", "header": "Headers"}
"""Where parameters stand."""

_Row = tuple[str, str, str]
"""A field's name, its type, and what else there is to say of it."""

_METHODS = ("get", "post", "put", "patch", "delete")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2421; --soft: #5c6b65; --line: #dfe6e2; --paper: #fff; --tint: #f4f8f6;
  --green: #087a3f; --blue: #1257a8; --amber: #95610a; --red: #ad2a2a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edea; --soft: #9aa9a2; --line: #2c3632; --paper: #121715;
  --tint: #1a211e; --green: #4cc38a; --blue: #7fb3f5; --amber: #e0b25c; --red: #f08a8a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
.page { display: grid; grid-template-columns: 17rem minmax(0, 1fr); max-width: 80rem; margin: 0 auto }
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 1.5rem 1rem;
  font-size: .85rem; border-right: 1px solid var(--line) }
nav h2 { margin: 1.2rem 0 .3rem; font-size: .75rem; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft) }
nav a { display: grid; grid-template-columns: 3.4rem minmax(0, 1fr); padding: .12rem 0; color: inherit;
  text-decoration: none; overflow-wrap: anywhere }
nav a:hover { text-decoration: underline }
main { padding: 1.5rem 2rem 4rem }
h1 { margin: 0 0 .3rem; font-size: 1.6rem }
section > h2 { margin: 2.5rem 0 .5rem; font-size: 1.2rem; border-bottom: 1px solid var(--line) }
article { margin: 1.2rem 0 2rem; scroll-margin-top: 1rem }
h3 { margin: 0; font: 600 .95rem/1.6 ui-monospace, monospace; overflow-wrap: anywhere }
.verb { display: inline-block; min-width: 3.2rem; color: var(--blue) }
.verb.post, .verb.put, .verb.patch { color: var(--green) } .verb.delete { color: var(--red) }
.scope { margin-left: .6rem; padding: .05rem .5rem; border-radius: 1rem; background: var(--tint); color: var(--amber);
  font: .75rem/1.7 ui-monospace, monospace; white-space: nowrap }
p { margin: .3rem 0 .6rem } .soft { color: var(--soft) }
.rows { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .85rem; background: var(--tint); border-radius: .4rem }
caption { text-align: left; padding: .5rem 0 .2rem; color: var(--soft); font-size: .8rem }
td { padding: .3rem .7rem; vertical-align: top; overflow-wrap: anywhere; border-top: 1px solid var(--line) }
tr:first-child td { border-top: 0 } td:first-child { width: 19rem; font-family: ui-monospace, monospace }
td:nth-child(2) { width: 12rem; color: var(--soft) }
pre { margin: .3rem 0 .6rem; padding: .5rem .7rem; background: var(--tint); border-radius: .4rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .8rem/1.5 ui-monospace, monospace }
details { margin: .5rem 0 } summary { cursor: pointer; color: var(--blue) }
form { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .6rem; margin: .6rem 0 }
label { display: grid; gap: .2rem; font: .8rem/1.4 ui-monospace, monospace } .wide { grid-column: 1 / -1 }
input, textarea, button { font: .85rem/1.4 ui-monospace, monospace; padding: .4rem .5rem; border: 1px solid var(--soft);
  border-radius: .3rem; background: var(--paper); color: inherit; min-width: 0 }
button { justify-self: start; align-self: end; background: var(--green); color: var(--paper); cursor: pointer;
  border-color: var(--green); font-weight: 600; padding-inline: 1.2rem }
output { display: block; white-space: pre-wrap; overflow-wrap: anywhere; font: .8rem/1.5 ui-monospace, monospace }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px }
@media (max-width: 48rem) { .page { display: block } nav { position: static; max-height: none; border: 0 }
  main { padding: 1rem } td:first-child, td:nth-child(2) { width: auto } }
"""


def render_reference(document: dict[str, Any]) -> str:
    """An OpenAPI document as HTML that can be read without a script, and fetches nothing from another place."""
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                operation = item[method]
                groups.setdefault((operation.get("tags") or ["Other"])[0], []).append((method, path, operation))
    schemas = document.get("components", {}).get("schemas", {})
    ordered = sorted(groups.items(), key=lambda group: group[0] in LAST)
    usual = _usual([operation for calls in groups.values() for *_, operation in calls])
    links = "".join(_links(name, calls) for name, calls in ordered)
    sections = "".join(_section(name, calls, schemas, usual) for name, calls in ordered)
    info = document["info"]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}"><link rel=icon href="data:,">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>"
        f"<script src='{asset('reference.js')}' defer></script></head><body><div class=page>"
        f"<nav aria-label=Calls>{links}</nav><main><h1>{escape(info['title'])} API</h1>"
        f"<p>{escape(info.get('description', ''))}</p>"
        f"<p class=soft>Version {escape(info['version'])} · <a href='schema/openapi.json'>OpenAPI document</a>. In the "
        "examples, <code>$BASE</code> is this gateway's address and <code>$KEY</code> an API key.</p>"
        f"<p class=soft>Nearly every call may be refused with {', '.join(usual) or 'nothing'}.</p>"
        "<form hidden><label class=wide>API key to try calls with; it stays in this page<input name=key type=password "
        f"autocomplete=off spellcheck=false></label></form>{sections}</main></div></body></html>"
    )


def _links(name: str, calls: list[tuple[str, str, dict[str, Any]]]) -> str:
    rows = "".join(
        f"<a href=#{_anchor(method, path)}><span class='verb {method}'>{method.upper()}</span>"
        f"<span>{escape(path)}</span></a>"
        for method, path, _ in calls
    )
    return f"<h2>{escape(name)}</h2>{rows}"


def _section(
    name: str, calls: list[tuple[str, str, dict[str, Any]]], schemas: dict[str, Any], usual: Collection[str]
) -> str:
    articles = "".join(_article(method, path, operation, schemas, usual) for method, path, operation in calls)
    return f"<section><h2>{escape(name)}</h2>{articles}</section>"


def _article(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any], usual: Collection[str]) -> str:
    scope = operation.get("x-scope")
    badge = f"<span class=scope>{escape(scope)}</span>" if scope else "<span class=scope>no key</span>"
    text = escape(operation.get("description") or operation.get("summary") or "")
    heading = f"<h3><span class='verb {method}'>{method.upper()}</span> {escape(path)}{badge}</h3>"
    parts = [f"<article id={_anchor(method, path)}>{heading}<p>{text}"]
    parts.append(f"<pre>{escape(_curl(method, path, operation, schemas), quote=False)}</pre>")
    for place, caption in _PLACES.items():
        found = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == place]
        rows = [(each["name"], _kind(_resolve(each.get("schema", {}), schemas)), _needed(each)) for each in found]
        # What every call takes is said once, at the beginning.
        parts.append(_table(caption, [row for row in rows if row[0] != "X-Request-ID"]))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(_table(f"Body ({media})", _body_rows(content.get("schema", {}), schemas)))
    parts += [
        _table(f"Answer {', '.join(statuses)}", list(rows)) for rows, statuses in _answers(operation, schemas).items()
    ]
    codes = [code for code in _codes(operation) if code not in usual]
    if codes:
        parts.append(f"<p class=soft>Also refused with {', '.join(codes)}.")
    return "".join(parts) + "</article>"


def _body_rows(schema: dict[str, Any], schemas: dict[str, Any]) -> list[_Row]:
    """The fields of a body; of one that may be of several kinds, what each kind is."""
    options = [_resolve(option, schemas) for option in _resolve(schema, schemas).get("anyOf", ())]
    return [("one of", "", each.get("description", "")) for each in options] or list(_fields(schema, schemas))


def _answers(operation: dict[str, Any], schemas: dict[str, Any]) -> dict[tuple[_Row, ...], list[str]]:
    """What a call answers when all is well, each shape with its statuses."""
    found: dict[tuple[_Row, ...], list[str]] = {}
    for status, answer in sorted(operation.get("responses", {}).items()):
        if status.startswith("2"):
            for content in answer.get("content", {}).values():
                rows = _fields(content.get("schema", {}), schemas)
                # That it went well is what the status says; that there is data, the rows of it.
                found.setdefault(tuple((*row[:2], "") for row in rows if row[0] != "success"), []).append(status)
    return found


def _codes(operation: dict[str, Any]) -> list[str]:
    """Every refusal of a call with its status: a description of an answer begins each with its error code."""
    return [
        f"{escape(status)} <code>{escape(code)}</code>"
        for status, answer in operation.get("responses", {}).items()
        if not status.startswith("2")
        for code in dict.fromkeys(part for part in answer.get("description", "").split("`")[1::2] if part.isupper())
    ]


def _usual(operations: list[dict[str, Any]]) -> list[str]:
    """The refusals that most calls have: said once."""
    times = Counter(code for operation in operations for code in _codes(operation))
    return sorted(code for code, count in times.items() if count > len(operations) / 2)


def _curl(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The call as a line for a shell."""
    words = ["curl -sS"]
    if method != "get":
        words.append(f"-X {method.upper()}")
    words.append(f'"$BASE{path}"')
    if operation.get("security") != []:
        words.append('-H "X-API-Key: $KEY"')
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "header" and parameter.get("required"):
            said = f"{parameter['name']}: {parameter.get('example', '')}"
            words.append(f"-H {shlex.quote(said)}")
    body = body_example(operation, schemas)
    if body is not None:
        words += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"]
    return " ".join(words)


def body_example(operation: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A body that the call takes; None for one without."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    for said in content.get("examples", {}).values():
        return said["value"]
    return example(content.get("schema", {}), schemas)


def example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """Something that fits a schema: its own example, else what it has to have."""
    schema = _resolve(schema, schemas)
    for named in ("examples", "enum"):
        if schema.get(named):
            return schema[named][0]
    for named in ("const", "default"):
        if named in schema:
            return schema[named]
    if "properties" in schema:
        wanted = schema.get("required", ())
        return {name: example(part, schemas) for name, part in schema["properties"].items() if name in wanted}
    kind = schema.get("type")
    if kind == "array":
        return [example(schema.get("items", {}), schemas)]
    plain: dict[str, Any] = {"integer": schema.get("minimum", 1), "boolean": False, "object": {}}
    return plain.get(str(kind), "")


def _table(caption: str, rows: list[_Row]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(name)}<td>{escape(kind)}" + (f"<td>{escape(text)}" if text else "")
        for name, kind, text in rows
    )
    return f"<div class=rows><table><caption>{escape(caption)}{body}</table></div>"


def _fields(schema: dict[str, Any], schemas: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[_Row]:
    """Each field of an object with its type, those of objects inside it by their path."""
    schema = _resolve(schema, schemas)
    required = set(schema.get("required", ()))
    for name, part in schema.get("properties", {}).items():
        inner = _resolve(part, schemas)
        said = ("required" if name in required and depth == 0 else "", inner.get("description", ""))
        yield f"{prefix}{name}", _kind(inner), ": ".join(filter(None, said))
        if depth < 3:
            if inner.get("properties"):
                yield from _fields(inner, schemas, f"{prefix}{name}.", depth + 1)
            elif inner.get("type") == "array":
                yield from _fields(inner.get("items", {}), schemas, f"{prefix}{name}[].", depth + 1)


def _resolve(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    while True:
        if "$ref" in schema:
            schema = schemas.get(schema["$ref"].rpartition("/")[2], {})
            continue
        options = [option for option in schema.get("oneOf", schema.get("anyOf", ())) if option.get("type") != "null"]
        if len(options) != 1:
            return schema
        schema = options[0]


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(str(word) for word in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        options: list[dict[str, Any]] = schema["anyOf"]
        return " or ".join(dict.fromkeys(filter(None, [_kind(option) for option in options])))
    kind: str | list[str] = schema.get("type", "")
    kinds = [kind] if isinstance(kind, str) else [one for one in kind if one != "null"]
    form = schema.get("format")
    return " or ".join(kinds) + (f" ({form})" if form else "")


def _needed(parameter: dict[str, Any]) -> str:
    needed = "required" if parameter.get("required") and parameter["in"] != "path" else ""
    return ": ".join(filter(None, (needed, parameter.get("description", ""))))


def _anchor(method: str, path: str) -> str:
    return f"{method}{path}".replace("/", "-").replace("{", "").replace("}", "")
