"""Access to the operators' pages: session cookie or host login, form tokens and permissions."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.errors import InvalidFields, NotFound, UnsupportedMediaType
from mpesa_gateway.http.csrf import is_same_site
from mpesa_gateway.http.templating import root
from mpesa_gateway.ops_contract import Visitor
from mpesa_gateway.permissions import GRANTS, Permission, Role, host_permissions, is_of_merchant
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.errors import CrossSiteRequest, NotAllowed, NotSignedIn, SecondFactorMissing, SecondFactorPending
from mpesa_gateway_ops.page_registry import PageRegistry, RegisteredPage
from mpesa_gateway_ops.people import People
from mpesa_gateway_ops.sessions import Session, Sessions

COOKIE = "mpesa_gateway_ops"
DEVICE_COOKIE = "mpesa_gateway_ops_device"
"""Marks a browser that has signed in before."""

ENV_COOKIE = "mpesa_gateway_ops_env"

CODE_FIELD = "second_factor_code"
"""The field of a form that confirms an action."""

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


def visitor_of(connection: Connection) -> Visitor:
    """The visitor as the last check of a permission admitted it."""
    visitor: Visitor = connection.state.ops_visitor
    return visitor


async def signed_in(connection: Connection, handler: BaseRouteHandler) -> None:
    """Admit one of the host's people; a change needs the permission ``operate`` and the form token.

    Raises NotSignedIn, NotAllowed, SecondFactorMissing and CrossSiteRequest.
    """
    await require_same_origin(connection, handler)
    session = await admit(connection, is_used=not handler.opt.get(POLLED))
    is_change = connection.scope.get("method") not in _SAFE
    require_permission(connection, session, Permission.OPERATE if is_change else Permission.GATEWAY, None)
    if is_change and not session.has_form_token(connection.headers.get("X-Form-Token", "")):
        raise CrossSiteRequest("this page belongs to another session: open it again")


async def admit(connection: Connection, *, is_used: bool) -> Session:
    """Return the session of the cookie or of the host's login. Raises NotSignedIn."""
    gateway: Runtime = connection.app.state.gateway
    sessions = gateway.port(Sessions)
    session: Session | None = None
    host_login = gateway.port(People).host_login
    if host_login is None:
        session = await sessions.find(cookie_of(connection), is_used=is_used)
        if session is None and await sessions.find_unverified(cookie_of(connection)) is not None:
            raise SecondFactorPending("enter a code of your authenticator app at /ops/login-code")
    elif (operator := await host_login(connection.scope)) is not None:
        session = sessions.of_host(operator)
    if session is None:
        raise NotSignedIn("sign in at /ops/login")
    connection.state.ops_env = await _chosen_env(connection, gateway)
    connection.state.ops_session = session
    connection.state.ops_visitor = session.visitor()
    return session


async def admit_to(connection: Connection, session: Session, found: RegisteredPage[Any]) -> str | None:
    """Return the merchant that limits the request; None for the host's people.

    The visitor has the permissions for exactly this merchant, so a membership gives none for another merchant's money.
    Raises NotAllowed, SecondFactorMissing, and NotFound for an object of another merchant.
    """
    gateway: Runtime = connection.app.state.gateway
    needs = found.it.needs
    if is_of_merchant(needs) and found.values and session.memberships:
        within = await _own_merchant(gateway, session, found)
    else:
        within = None if needs in host_permissions(session.host_role) else session.chosen
    require_permission(connection, session, needs, within)
    return within


async def _own_merchant(gateway: Runtime, session: Session, found: RegisteredPage[Any]) -> str | None:
    """Return the object's merchant if the person is a member of it; None for the host's people.

    For a member, the object of another merchant and one that does not exist are answered alike: raises NotFound.
    """
    try:
        owner = await gateway.port(PageRegistry).owner_of(found)
    except NotFound:
        if session.host_role is not None:
            raise
        owner = None
    if owner in session.memberships:
        return owner
    if session.host_role is None:
        raise NotFound("there is no such page")
    return None


def require_permission(connection: Connection, session: Session, needs: Permission, merchant_id: str | None) -> None:
    """Raise NotAllowed, and SecondFactorMissing if only the second factor is missing."""
    visitor = session.visitor(merchant_id)
    connection.state.ops_visitor = visitor
    if visitor.may(needs):
        return
    if needs in session.granted(merchant_id):
        raise SecondFactorMissing("set up a second factor under /ops/account first: your role requires one for this")
    if not GRANTS[needs].members and not session.host_role:
        raise NotAllowed("this page is for the people who run the gateway: ask an admin of the host")
    # Some role names belong to the host and to merchants: the message names only roles that the person can have.
    hosts = [role for role in Role if needs in host_permissions(role)][:1] if session.host_role else []
    wanted = " or ".join(dict.fromkeys([*hosts, *sorted(GRANTS[needs].members)])) or "another role"
    raise NotAllowed(f"this takes the role {wanted}, and yours is {visitor.role}: ask an admin or an owner")


async def _chosen_env(connection: Connection, gateway: Runtime) -> Env:
    """From the address, then the cookie; by default live if a merchant is live."""
    for text in (connection.query_params.get("env"), connection.cookies.get(ENV_COOKIE)):
        for env in ENVS:
            if text == env:
                return env
    return "live" if await gateway.merchants.any_live() else "sandbox"


Form = dict[str, list[str]]


async def read_checked_form(request: Request[Any, Any, Any]) -> Form:
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
