"""The API's reference as one page: every call with what it takes, what it answers, and a form to try it with.

There are many calls, and the page is to stay under 100 KB: end tags that HTML lets out are left out, what is the same
for several answers is said once, and what only a script can use is made by the script.
"""

from collections.abc import Collection
from html import escape
from typing import Any

from mpesa_gateway.http.html import asset
from mpesa_gateway.http.outline import (
    PLACES,
    Call,
    Row,
    answers,
    body_rows,
    codes,
    curl,
    grouped,
    parameter_rows,
    usual,
)

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What the page may load: an API key is typed into it."""

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
    schemas = document.get("components", {}).get("schemas", {})
    groups = grouped(document)
    refusals = usual([operation for calls in groups.values() for *_, operation in calls])
    links = "".join(_links(name, calls) for name, calls in groups.items())
    sections = "".join(_section(name, calls, schemas, refusals) for name, calls in groups.items())
    info = document["info"]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}"><link rel=icon href="data:,">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>"
        f"<script src='{asset('reference.js')}' defer></script></head><body><div class=page>"
        f"<nav aria-label=Calls>{links}</nav><main><h1>{escape(info['title'])} API</h1>"
        f"<p>{escape(info.get('description', ''))}</p>"
        f"<p class=soft>Version {escape(info['version'])} · <a href='schema/openapi.json'>OpenAPI document</a>. In the "
        "examples, <code>$BASE</code> is this gateway's address and <code>$KEY</code> an API key.</p>"
        f"<p class=soft>Nearly every call may be refused with {', '.join(map(_refusal, refusals)) or 'nothing'}.</p>"
        "<form hidden><label class=wide>API key to try calls with; it stays in this page<input name=key type=password "
        f"autocomplete=off spellcheck=false></label></form>{sections}</main></div></body></html>"
    )


def _links(name: str, calls: list[Call]) -> str:
    rows = "".join(
        f"<a href=#{_anchor(method, path)}><span class='verb {method}'>{method.upper()}</span>"
        f"<span>{escape(path)}</span></a>"
        for method, path, _ in calls
    )
    return f"<h2>{escape(name)}</h2>{rows}"


def _section(name: str, calls: list[Call], schemas: dict[str, Any], often: Collection[tuple[str, str]]) -> str:
    articles = "".join(_article(method, path, operation, schemas, often) for method, path, operation in calls)
    return f"<section><h2>{escape(name)}</h2>{articles}</section>"


def _article(
    method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any], often: Collection[tuple[str, str]]
) -> str:
    scope = operation.get("x-scope")
    badge = f"<span class=scope>{escape(scope)}</span>" if scope else "<span class=scope>no key</span>"
    text = escape(operation.get("description") or operation.get("summary") or "")
    heading = f"<h3><span class='verb {method}'>{method.upper()}</span> {escape(path)}{badge}</h3>"
    parts = [f"<article id={_anchor(method, path)}>{heading}<p>{text}"]
    parts.append(f"<pre>{escape(curl(method, path, operation, schemas), quote=False)}</pre>")
    for place, caption in PLACES.items():
        parts.append(_table(caption, parameter_rows(operation, place, schemas)))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(_table(f"Body ({media})", body_rows(content.get("schema", {}), schemas)))
    parts += [
        _table(f"Answer {', '.join(statuses)}", list(rows)) for rows, statuses in answers(operation, schemas).items()
    ]
    others = [_refusal(each) for each in codes(operation) if each not in often]
    if others:
        parts.append(f"<p class=soft>Also refused with {', '.join(others)}.")
    return "".join(parts) + "</article>"


def _table(caption: str, rows: list[Row]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(name)}<td>{escape(kind)}" + (f"<td>{escape(text)}" if text else "")
        for name, kind, text in rows
    )
    return f"<div class=rows><table><caption>{escape(caption)}{body}</table></div>"


def _refusal(refusal: tuple[str, str]) -> str:
    status, code = refusal
    return f"{escape(status)} <code>{escape(code)}</code>"


def _anchor(method: str, path: str) -> str:
    return f"{method}{path}".replace("/", "-").replace("{", "").replace("}", "")
