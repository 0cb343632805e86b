"""HTML pages from templates, with common labels, icons and times."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, cast
from urllib.parse import quote

import jinja2
from litestar import Response, get
from litestar.connection import ASGIConnection
from litestar.params import FromPath
from markupsafe import Markup, escape

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.errors import NotFound
from mpesa_gateway.http import charts
from mpesa_gateway.local_time import UNTIL, format_local, parse_local

Connection = ASGIConnection[Any, Any, Any, Any]

REQUESTED_PATH = "mpesa_gateway_path"
"""Scope key of the path below any mount path; Litestar strips the last slash."""

_REFUSED = re.compile(r"q\s*=\s*0(?:\.0*)?")

WHOLE_SITE = "mpesa_gateway_whole_site"
"""Key of the ASGI scope: False below a host's mount path."""

_STATIC = "mpesa_gateway.http"
_MEDIA = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
_GZIP = ".gz"

ABSENT = "—"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Own files only, no inline script or style."""


@dataclass(frozen=True)
class State:
    """A tone (colour) and an icon."""

    tone: str
    icon: str


_GOOD, _BAD, _WAIT = State("good", "check"), State("bad", "cross"), State("wait", "clock")
_BACK, _WARN, _MUTE = State("back", "back"), State("warn", "warn"), State("mute", "minus")

_WORDS: tuple[tuple[State, tuple[str, ...]], ...] = (
    (
        _GOOD,
        (
            *("completed", "delivered", "applied", "healthy", "active", "recovered", "already known", "verified"),
            *("settled", "done", "complete", "valid", "registered", "answered", "receipt received", "resolved"),
        ),
    ),
    (
        _BAD,
        ("failed", "dead", "refused", "broken", "mismatched", "expired", "aborted", "contradicted"),
    ),
    (
        _WAIT,
        (
            *("pending", "running", "waiting", "queued", "sending", "asked", "requested", "sent", "confirming"),
            *("accepted", "scheduled", "new", "verifying"),
        ),
    ),
    (_BACK, ("reversed", "partially reversed", "refund asked")),
    (
        _WARN,
        (
            *("attention", "ambiguous", "not found", "unmatched", "paused", "failing", "unknown", "not sent"),
            *("timed out", "unconfirmed", "refund failed", "expiring", "unanswered", "held", "missing"),
            "not delivered",
        ),
    ),
)

STATES: dict[str, State] = {word: found for found, words in _WORDS for word in words}
"""Other words are muted."""


def state(word: str, label: str | None = None) -> Markup:
    """Return text with icon and colour."""
    text = word.replace("_", " ")
    found = STATES.get(text, _MUTE)
    return Markup('<b data-tone="{}"><svg aria-hidden="true"><use href="#i-{}"/></svg>{}</b>').format(
        found.tone, found.icon, label or text
    )


def when(moment: datetime | None, now: datetime, absent: str = ABSENT) -> Markup:
    """Return a time in East Africa Time, with UTC as its title.

    The year is omitted within 180 days.
    """
    if moment is None:
        return escape(absent)
    shown = format_local(moment, "near" if abs((now - moment).days) < 180 else "far")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        rfc3339(moment), f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC", shown
    )


def local(text: str, name: str = "") -> str:
    """Return the value of a ``datetime-local`` field; text that is no time is unchanged."""
    try:
        return format_local(parse_local(text, is_end=name == UNTIL), "field") if text else ""
    except (ValueError, OverflowError):
        return text


def kes(amount: str | float | None) -> Markup:
    if amount is None:
        return escape(ABSENT)
    text = str(amount)
    whole = text.removesuffix(".00")
    shown = f"{int(whole):,}" if re.fullmatch(r"-?[0-9]+", whole) else text
    return Markup('<data value="{}">KES&nbsp;{}</data>').format(text, shown)


def number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def environment(packages: Mapping[str, str]) -> jinja2.Environment:
    """Return an environment with these packages' templates, prefixed by name.

    Undefined values raise; output is escaped.
    """
    own = packages.get("", "")
    loaders: list[jinja2.BaseLoader] = [jinja2.PackageLoader(_STATIC)]
    if own:
        loaders.insert(0, jinja2.PackageLoader(own))
    loaders.append(jinja2.PrefixLoader({name: jinja2.PackageLoader(of) for name, of in packages.items() if name}))
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    words: dict[str, Any] = made.globals  # pyright: ignore[reportAssignmentType] - Jinja infers it from its own defaults
    words.update(state=state, kes=kes, local=local, number=number, columns=charts.columns)
    return made


def requested_path(connection: Connection) -> str:
    """Return the path below any mount path, with its trailing slash."""
    return str(cast("dict[str, Any]", connection.scope)[REQUESTED_PATH])


def root(connection: Connection) -> str:
    """Return the relative path to the gateway's root, which works behind any proxy."""
    return "../" * (requested_path(connection).count("/") - 1)


class Assets:
    """Files in a package's ``static`` folder, cached for a year under their digest."""

    def __init__(self, package: str, place: str) -> None:
        """``place`` is a path below the root, such as ``web``."""
        self._package = package
        self._place = place
        self._digests: dict[str, str] = {}

    def path(self, name: str) -> str:
        digest = self._digests.get(name)
        if digest is None:
            digest = self._digests[name] = hashlib.sha256(self._read(name)).hexdigest()[:16]
        return f"{self._place}/{digest}/{name}"

    def answer(self, digest: str, name: str) -> Response[bytes]:
        """Raises NotFound."""
        media = next((media for ending, media in _MEDIA.items() if name.removesuffix(_GZIP).endswith(ending)), None)
        known = {entry.name for entry in files(self._package).joinpath("static").iterdir()}
        if media is None or name not in known or self.path(name) != f"{self._place}/{digest}/{name}":
            raise NotFound("there is no such file in this release: load the page again")
        kept = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        if name.endswith(_GZIP):
            kept["Content-Encoding"] = "gzip"
        return Response(self._read(name), media_type=media, headers=kept)

    def _read(self, name: str) -> bytes:
        return files(self._package).joinpath("static", name).read_bytes()


_OWN_ASSETS = Assets(_STATIC, "web")


def asset(name: str) -> str:
    """Return a kernel file's path below the root."""
    return _OWN_ASSETS.path(name)


@get("/web/{digest:str}/{name:str}", public=True, include_in_schema=False)
async def serve_asset(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    return _OWN_ASSETS.answer(digest, name)


def headers(policy: str = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'") -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def answer(html: str, *, status: int = 200, more: Mapping[str, str] | None = None) -> Response[str]:
    return Response(html, status_code=status, media_type="text/html", headers=headers(POLICY) | dict(more or {}))


def accepts_html(accept: str) -> bool:
    """Return whether an ``Accept`` header names ``text/html``, and not with ``q=0``."""
    for part in accept.lower().split(","):
        media, *parameters = (each.strip() for each in part.split(";"))
        if media == "text/html":
            return not any(_REFUSED.fullmatch(each) for each in parameters)
    return False


def redirect(url: str, *, more: Mapping[str, str] | None = None) -> Response[str]:
    """Return a 303 redirect; invalid characters are encoded."""
    location = quote(url, safe="/:?#[]@!$&'()*+,;=%-._~", errors="surrogatepass")
    return Response(
        "", status_code=303, media_type="text/plain", headers=headers() | {"Location": location, **(more or {})}
    )


routes = (serve_asset,)
