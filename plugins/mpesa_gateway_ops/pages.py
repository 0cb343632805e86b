"""The operators' pages as HTML: no script, one style sheet inside, nothing from another place, light and dark."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import msgspec
from litestar import Response
from saq import Job

from mpesa_gateway.http.health import Part
from mpesa_gateway_ops.sessions import Session

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2421; --soft: #5c6b65; --line: #dfe6e2; --paper: #fff; --tint: #f4f8f6;
  --green: #087a3f; --on-green: #fff; --red: #ad2a2a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edea; --soft: #9aa9a2; --line: #2c3632; --paper: #121715;
  --tint: #1a211e; --green: #4cc38a; --on-green: #0c1410; --red: #f08a8a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
header { border-bottom: 1px solid var(--line) }
header > div { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem 1.4rem; padding: .7rem 1.2rem }
header > div, main { max-width: 62rem; margin: 0 auto }
header strong { margin-right: auto } header form { display: flex; align-items: center; gap: .7rem }
nav { display: flex; gap: 1.1rem } nav a { text-decoration: none; padding: .25rem 0 }
nav a[aria-current] { color: var(--ink); font-weight: 600; box-shadow: 0 2px var(--green) }
main { padding: 1.6rem 1.2rem 4rem }
h1 { margin: 0 0 1rem; font-size: 1.5rem } h2 { margin: 2.2rem 0 .7rem; font-size: 1.1rem }
a { color: var(--green) } p { margin: .4rem 0 1rem } .soft { color: var(--soft) }
.wrong { color: var(--red) } .well { color: var(--green) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 0 }
.tiles div { padding: .8rem 1rem; background: var(--tint); border: 1px solid var(--line); border-radius: .5rem }
.tiles dt { color: var(--soft); font-size: .85rem } .tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600 }
.tiles dd a { color: inherit }
.parts { margin: 0; padding: 0; list-style: none }
.parts li { display: grid; grid-template-columns: 7rem 4.5rem minmax(0, 1fr); gap: .8rem; padding: .45rem 0;
  border-top: 1px solid var(--line) }
.parts li:first-child { border-top: 0 }
article { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .2rem 1rem; margin: 0 0 .9rem;
  padding: .9rem 1rem; background: var(--tint); border: 1px solid var(--line); border-radius: .5rem }
article h2 { margin: 0; font: 600 1rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
article form { grid-row: 1 / span 2; grid-column: 2 } article p { margin: 0; font-size: .88rem }
code, .error { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere }
article .error { grid-column: 1 / -1; color: var(--red); margin-top: .3rem }
button { font: inherit; padding: .35rem .9rem; border: 1px solid var(--green); border-radius: .4rem; cursor: pointer;
  background: var(--green); color: var(--on-green) }
header button { background: none; color: inherit; border-color: var(--line) }
.pages { display: flex; justify-content: space-between }
.narrow { max-width: 22rem; margin: 12vh auto 0; padding: 0 1.2rem }
.narrow label { display: block; margin: 0 0 .9rem; color: var(--soft); font-size: .9rem }
.narrow input { display: block; width: 100%; margin-top: .2rem; padding: .5rem .7rem; font: inherit;
  color: var(--ink); background: var(--tint); border: 1px solid var(--line); border-radius: .4rem }
.narrow button { width: 100%; padding: .55rem } :focus-visible { outline: 2px solid var(--green); outline-offset: 2px }
@media (max-width: 34rem) { .parts li { grid-template-columns: 6rem 4rem minmax(0, 1fr) }
  article { grid-template-columns: minmax(0, 1fr) }
  article form { grid-row: auto; grid-column: 1; order: 1; margin-top: .6rem }
  header strong { order: -2 } header form { order: -1 } nav { width: 100% } }
"""


def source_of(text: str) -> str:
    """How a Content-Security-Policy names the one inline style or script that it lets through."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_FENCE = "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
_POLICY = f"default-src 'none'; style-src {source_of(_STYLE)}; img-src data:; {_FENCE}"


def headers(policy: str = "default-src 'none'") -> dict[str, str]:
    """What every answer under /ops carries: kept by nobody, framed by nobody, loading only what ``policy`` says."""
    return {
        "Content-Security-Policy": policy if policy == _POLICY else f"{policy}; {_FENCE}",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def answer(html: str, *, status: int = 200, more: Mapping[str, str] | None = None) -> Response[str]:
    """A page."""
    return Response(html, status_code=status, media_type="text/html", headers=headers(_POLICY) | dict(more or {}))


def moved(where: str, *, more: Mapping[str, str] | None = None) -> Response[str]:
    """See another page."""
    return Response(
        "", status_code=303, media_type="text/plain", headers=headers() | {"Location": where, **(more or {})}
    )


def login(home: str, *, name: str = "", problem: str | None = None) -> str:
    """The page that asks who is there."""
    said = f"<p class=wrong role=alert>{escape(problem)}</p>" if problem else ""
    return _document(
        "Sign in",
        f"<main class=narrow><h1>mpesa-gateway</h1>{said}<form method=post action='{home}/login'>"
        f"<label>Name<input name=name value='{escape(name)}' autocomplete=username autocapitalize=none required"
        f"{'' if name else ' autofocus'}></label>"
        "<label>Password<input name=password type=password autocomplete=current-password required"
        f"{' autofocus' if name else ''}></label>"
        "<button>Sign in</button></form></main>",
    )


def refusal(home: str, message: str) -> str:
    """The page that says why not."""
    text = escape(message[:1].upper() + message[1:])
    return _document(
        "Not done", f"<main class=narrow><h1>Not done</h1><p>{text}.</p><p><a href='{home}'>Overview</a></p></main>"
    )


def overview(home: str, session: Session, parts: Mapping[str, Part], counts: Mapping[str, int] | None) -> str:
    """How the gateway is, and what the queue does; ``counts`` is None when the queue does not answer."""
    if counts is None:
        tiles = "<p class=wrong>The queue does not answer.</p>"
    else:
        shown = {name: str(count) for name, count in counts.items()}
        shown["failed"] = f"<a href='{home}/failed'>{counts['failed']}</a>"
        tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{count}</dd></div>" for name, count in shown.items())
        tiles = f"<dl class=tiles>{tiles}</dl>"
    rows = "".join(
        f"<li><span>{escape(name)}</span>{_state(part)}<span class=soft>{escape(part.detail or '')}</span></li>"
        for name, part in parts.items()
    )
    body = (
        f"<h1>Overview</h1>{tiles}<h2>Health</h2><ul class=parts>{rows}</ul><h2>More</h2>"
        f"<p><a href='{home}/../schema'>API documentation</a> · <a href='{home}/../health/ready'>Health as JSON</a></p>"
    )
    return _inside("Overview", home, session, body)


def _state(part: Part) -> str:
    return "<span class=well>well</span>" if part.ok else "<span class=wrong>not well</span>"


def failed_jobs(home: str, session: Session, jobs: Sequence[Job], *, number: int, has_more: bool, note: str) -> str:
    """Jobs that failed, newest first."""
    said = f"<p class=well role=status>{escape(note)}</p>" if note else ""
    cards = "".join(_card(home, session, job, number) for job in jobs)
    if not jobs:
        cards = "<p class=soft>No job has failed.</p>" if number == 1 else "<p class=soft>Nothing on this page.</p>"
    newer = f"<a href='{home}/failed?page={number - 1}'>Newer</a>" if number > 1 else "<span></span>"
    older = f"<a href='{home}/failed?page={number + 1}'>Older</a>" if has_more else ""
    body = (
        "<h1>Failed jobs</h1><p class=soft>What is owed stands in Postgres and is taken up again by itself; a job that "
        "is listed here has used up its tries. Kept for a week, the newest 1,000.</p>"
        f"{said}{cards}<p class=pages>{newer}{older}</p>"
    )
    return _inside("Failed jobs", home, session, body)


def _card(home: str, session: Session, job: Job, number: int) -> str:
    kwargs = msgspec.json.encode(job.kwargs or {}, enc_hook=str).decode()
    tries = f"{job.attempts} {'try' if job.attempts == 1 else 'tries'}"
    return (
        f"<article><h2>{escape(job.function)}</h2><form method=post action='{home}/failed/retry'>{_token(session)}"
        f"<input type=hidden name=page value={number}><input type=hidden name=key value='{escape(job.key)}'>"
        f"<button>Retry</button></form>"
        f"<p>{_time(job.completed)} <span class=soft>· {job.status.value} after {tries}</span></p>"
        f"<p><code>{escape(kwargs)}</code></p><p class=error>{escape(last_line(job.error))}</p></article>"
    )


def last_line(error: str | None) -> str:
    """What a traceback comes to."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no error was told"


def _time(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"<time datetime='{moment:%Y-%m-%dT%H:%M:%SZ}'>{moment:%d %b %Y, %H:%M:%S} UTC</time>"


def _token(session: Session) -> str:
    return f"<input type=hidden name=form_token value={session.form_token}>"


def _inside(title: str, home: str, session: Session, body: str) -> str:
    """A page for somebody who is signed in."""
    links = _links(title, (("Overview", home), ("Queue", f"{home}/queues/"), ("Failed jobs", f"{home}/failed")))
    return _document(
        title,
        f"<header><div><strong>mpesa-gateway</strong><nav aria-label=Pages>{links}</nav>"
        f"<form method=post action='{home}/logout'>{_token(session)}<span class=soft>{escape(session.name)}</span>"
        f"<button>Sign out</button></form></div></header><main>{body}</main>",
    )


def _links(title: str, pages: Iterable[tuple[str, Any]]) -> str:
    return "".join(
        f"<a href='{where}'{' aria-current=page' if name == title else ''}>{escape(name)}</a>" for name, where in pages
    )


def _document(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'><meta name=robots content=noindex>"
        f"<link rel=icon href='data:,'><title>{escape(title)} · mpesa-gateway</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
