"""Access to the operators' pages: session cookie or host login, form tokens and roles."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.errors import InvalidFields, UnsupportedMediaType
from mpesa_gateway.http.csrf import is_same_site
from mpesa_gateway.http.templating import root
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.errors import CrossSiteRequest, NotAllowed, NotSignedIn
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.sessions import Session, Sessions

COOKIE = "mpesa_gateway_ops"
DEVICE_COOKIE = "mpesa_gateway_ops_device"
"""Marks a browser that has signed in before."""

ENV_COOKIE = "mpesa_gateway_ops_env"

POLLED = "ops_polled"
"""``ops_polled=True`` in a route's decorator: requests by a script do not extend the session."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_MOST_FIELDS = 2000
"""A form with one field for each row of a page has the most."""

Connection = ASGIConnection[Any, Any, Any, Any]


def home(connection: Connection) -> str:
    return f"{root(connection)}ops"


def cookie_of(connection: Connection) -> Secret:
    """Empty without the cookie."""
    return Secret(connection.cookies.get(COOKIE, ""))


def session_of(connection: Connection) -> Session:
    session: Session = connection.state.ops_session
    return session


def known_session(connection: Connection) -> Session | None:
    session: Session | None = getattr(connection.state, "ops_session", None)
    return session


def env_of(connection: Connection) -> Env:
    env: Env = connection.state.ops_env
    return env


def is_live(connection: Connection) -> bool:
    return env_of(connection) == "live"


async def require_same_origin(connection: Connection, _: BaseRouteHandler) -> None:
    """Reject changes that another site's page sends. Raises CrossSiteRequest."""
    gateway: Runtime = connection.app.state.gateway
    own = {connection.headers.get("host", ""), urlsplit(gateway.config.public_url).netloc}
    if connection.scope.get("method") not in _SAFE and not is_same_site(connection.headers, own):
        raise CrossSiteRequest("this was not asked for on one of our own pages: open /ops and try again there")


async def signed_in(connection: Connection, handler: BaseRouteHandler) -> None:
    """Admit a session; a change needs the role ``operator`` and the form token.

    Raises NotSignedIn, NotAllowed and CrossSiteRequest.
    """
    await require_same_origin(connection, handler)
    session = await admit(connection, is_used=not handler.opt.get(POLLED))
    if connection.scope.get("method") not in _SAFE:
        require_role(session, Role.OPERATOR)
        if not session.has_form_token(connection.headers.get("X-Form-Token", "")):
            raise CrossSiteRequest("this page belongs to another session: open it again")


async def admit(connection: Connection, *, is_used: bool) -> Session:
    """Return the session of the cookie or of the host's login. Raises NotSignedIn."""
    gateway: Runtime = connection.app.state.gateway
    sessions = gateway.port(Sessions)
    session: Session | None = None
    host_login = gateway.port(Operators).host_login
    if host_login is None:
        session = await sessions.find(cookie_of(connection), is_used=is_used)
    elif (operator := await host_login(connection.scope)) is not None:
        session = sessions.of_host(operator)
    if session is None:
        raise NotSignedIn("sign in at /ops/login")
    connection.state.ops_env = await _chosen_env(connection, gateway)
    connection.state.ops_session = session
    return session


async def _chosen_env(connection: Connection, gateway: Runtime) -> Env:
    """From the address, then the cookie; by default live if a merchant is live."""
    for text in (connection.query_params.get("env"), connection.cookies.get(ENV_COOKIE)):
        for env in ENVS:
            if text == env:
                return env
    return "live" if await gateway.merchants.any_live() else "sandbox"


def require_role(session: Session, role: Role) -> None:
    """Raise NotAllowed unless the operator has at least this role."""
    if not session.visitor.role.may(role):
        raise NotAllowed(f"this takes the role {role.value}, and yours is {session.visitor.role.value}: ask an admin")


Form = dict[str, list[str]]


async def read_checked_form(request: Request[Any, Any, Any]) -> Form:
    """Return a form's fields. Raises CrossSiteRequest without the session's token."""
    fields = await read_form(request)
    if not session_of(request).has_form_token(first(fields, "form_token")):
        raise CrossSiteRequest("this form belongs to another session: open the page again")
    return fields


async def read_form(request: Request[Any, Any, Any]) -> Form:
    """Return a form's fields, each with all its values.

    Raises UnsupportedMediaType, and InvalidFields for too many fields.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in {"", "application/x-www-form-urlencoded"}:
        raise UnsupportedMediaType("send the form as application/x-www-form-urlencoded")
    text = (await request.body()).decode("utf-8", "replace")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise InvalidFields.field_error("body", f"send at most {_MOST_FIELDS} fields") from None
    fields: Form = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value.replace("\x00", ""))
    return fields


def first(fields: Form, name: str) -> str:
    return next(iter(fields.get(name, ())), "")
