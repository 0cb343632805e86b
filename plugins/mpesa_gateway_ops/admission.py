"""Who may see an operator's page: the cookie, the check that our own page asks, and what others are answered."""

from typing import Any, cast
from urllib.parse import urlsplit

from litestar import Request, Response
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from valkey.exceptions import ConnectionError as ValkeyConnectionError
from valkey.exceptions import ValkeyError

from mpesa_gateway.app import ASKED_PATH, Gateway
from mpesa_gateway.errors import Refused, ServiceUnavailable
from mpesa_gateway.http.errors import failure
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.errors import FromElsewhere, NotSignedIn
from mpesa_gateway_ops.pages import answer, headers, moved, refusal
from mpesa_gateway_ops.same_site import is_same_site
from mpesa_gateway_ops.sessions import Session, Sessions

COOKIE = "mpesa_gateway_ops"

POLLED = "ops_polled"
"""``ops_polled=True`` in a route's decorator: a script asks by itself, which keeps no session alive."""

Connection = ASGIConnection[Any, Any, Any, Any]


def home(connection: Connection) -> str:
    """The way from this page to /ops: relative, so that it is right under any mount path and behind any proxy."""
    return "../" * (asked_path(connection).count("/") - 1) + "ops"


def asked_path(connection: Connection) -> str:
    """The path below any mount path, with its last slash if it has one."""
    return str(cast("dict[str, Any]", connection.scope)[ASKED_PATH])


def cookie_of(connection: Connection) -> Secret:
    """What the session's cookie holds, empty without one."""
    return Secret(connection.cookies.get(COOKIE, ""))


def session_of(connection: Connection) -> Session:
    """The session that was let in."""
    session: Session = connection.state.ops_session
    return session


async def from_our_own_page(connection: Connection, _: BaseRouteHandler) -> None:
    """Refuse what another site's page makes an operator's browser send. Raises FromElsewhere."""
    gateway: Gateway = connection.app.state.gateway
    own = {connection.headers.get("host", ""), urlsplit(gateway.config.public_url).netloc}
    if connection.scope.get("method") not in {"GET", "HEAD", "OPTIONS"} and not is_same_site(connection.headers, own):
        raise FromElsewhere("this was not asked for on one of our own pages: open /ops and try again there")


async def signed_in(connection: Connection, handler: BaseRouteHandler) -> None:
    """Let in who has a session. Raises NotSignedIn, and FromElsewhere."""
    await from_our_own_page(connection, handler)
    gateway: Gateway = connection.app.state.gateway
    session = await gateway.services.get(Sessions).find(cookie_of(connection), is_used=not handler.opt.get(POLLED))
    if session is None:
        raise NotSignedIn("sign in at /ops/login")
    connection.state.ops_session = session


async def checked_form(request: Request[Any, Any, Any]) -> dict[str, str]:
    """The fields of a form of this session. Raises FromElsewhere for one without its token."""
    fields = await form_of(request)
    if not session_of(request).has_form_token(fields.get("form_token", "")):
        raise FromElsewhere("this form belongs to another session: open the page again")
    return fields


async def form_of(request: Request[Any, Any, Any]) -> dict[str, str]:
    """The fields of a form; files are no fields."""
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


def _answer_refused(request: Request[Any, Any, Any], refused: Refused) -> Response[Any]:
    if "text/html" not in request.headers.get("accept", ""):
        wait = {"Retry-After": str(refused.retry_after)} if refused.retry_after is not None else {}
        return failure(refused.problems, refused.status, headers() | wait)
    if isinstance(refused, NotSignedIn):
        return moved(f"{home(request)}/login")
    return answer(refusal(home(request), refused.message), status=refused.status)


def _answer_without_queue(request: Request[Any, Any, Any], _: ValkeyError) -> Response[Any]:
    message = "the queue (Valkey) does not answer: payments go on, and what is owed is done once it is back"
    return _answer_refused(request, ServiceUnavailable(message, retry_after=5))


ANSWERS: dict[int | type[Exception], Any] = {
    Refused: _answer_refused,
    ValkeyError: _answer_without_queue,
    # Named by itself, since the application names it too.
    ValkeyConnectionError: _answer_without_queue,
}
"""The exception handlers of every route under /ops."""
