"""HTTP routes of the operators' pages: login, logout, and every registered page and action."""

from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.errors import ApiError, NotFound, TooManyFailures
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.http.errors import NOTHING_HERE
from mpesa_gateway.http.templating import WHOLE_SITE, redirect, requested_path
from mpesa_gateway.ops_contract import Action, PageRequest, Redirect, WrongEnvironment
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops import queue_pages
from mpesa_gateway_ops.access import (
    COOKIE,
    DEVICE_COOKIE,
    ENV_COOKIE,
    Form,
    admit,
    cookie_of,
    env_of,
    first,
    home,
    read_checked_form,
    read_form,
    require_role,
    require_same_origin,
    session_of,
)
from mpesa_gateway_ops.error_pages import ANSWERS
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.flash import FlashMessages
from mpesa_gateway_ops.layout import Layout
from mpesa_gateway_ops.login_limits import DEVICE_LIFETIME
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.page_registry import PageRegistry, RegisteredPage
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings

_ENV_KEPT = 365 * 24 * 3600
"""Seconds."""

_LOGIN_BYTES = 8192
"""The largest body of a login form; a password has at most 1024 characters."""

_OPEN: dict[str, Any] = {
    "public": True,
    "include_in_schema": False,
    "guards": [require_same_origin],
    "exception_handlers": ANSWERS,
}


# -- login and logout --------------------------------------------------------------------------------------------------


@get("/ops/login", **_OPEN)
async def login_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    return await _login(request, gateway)


@post("/ops/login", body_bytes=_LOGIN_BYTES, **_OPEN)
async def sign_in(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    operators = gateway.port(Operators)
    if operators.host_login is not None:
        return await _login(request, gateway)
    fields = await read_form(request)
    name, password = first(fields, "name"), Secret(first(fields, "password"))
    try:
        device = Secret(request.cookies.get(DEVICE_COOKIE, ""))
        found = await operators.sign_in(name, password, address_of(request), device)
    except WrongPassword:
        problem = "The name or the password is wrong."
        return await _login(request, gateway, name=name, problem=problem, status=401)
    except TooManyFailures as refused:
        wait = refused.retry_after or 1
        problem = f"Too many failed attempts. Try again in {-(-wait // 60)} min."
        more = {"Retry-After": str(wait)}
        return await _login(request, gateway, name=name, problem=problem, status=429, more=more)
    lifetime = int(gateway.port(Sessions).lifetime.total_seconds())
    answer = redirect(home(request), more={"Set-Cookie": _cookie(gateway, found.session.reveal(), lifetime)})
    public_url: str = gateway.config.public_url
    # No Path here either: the browser sends it to /ops/login under any mount point.
    answer.set_cookie(
        DEVICE_COOKIE,
        found.device.reveal(),
        max_age=int(DEVICE_LIFETIME.total_seconds()),
        path="",
        secure=urlsplit(public_url).scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


async def _login(
    request: Request[Any, Any, Any],
    gateway: Runtime,
    *,
    name: str = "",
    problem: str | None = None,
    status: int = 200,
    more: dict[str, str] | None = None,
) -> Response[str]:
    values = {
        "title": "Sign in",
        "name": name,
        "problem": problem,
        "host_login": gateway.port(Operators).host_login is not None,
        "login_url": gateway.settings(OpsSettings).login_url,
        "is_live": await gateway.merchants.any_live(),
    }
    return gateway.port(Layout).alone(request, "login.html", values, status=status, more=more)


@post("/ops/logout", **_OPEN)
async def sign_out(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    await admit(request, is_used=False)
    await read_checked_form(request)
    await gateway.port(Sessions).close(cookie_of(request))
    return redirect(f"{home(request)}/login", more={"Set-Cookie": _cookie(gateway, "", 0)})


def _form_env(request: Request[Any, Any, Any], form: Form) -> Env:
    form_env = first(form, "form_env")
    for env in ENVS:
        if form_env == env:
            return env
    return env_of(request)


def _cookie(gateway: Runtime, value: str, seconds: int, *, name: str = COOKIE) -> str:
    """Without a Path the cookie belongs to the folder of /ops/login under any mount point."""
    is_secure = urlsplit(gateway.config.public_url).scheme == "https"
    secure = "; Secure" if is_secure else ""
    return f"{name}={value}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


@get(["/ops/sandbox", "/ops/live"], **_OPEN)
async def look_at(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Switch to an env and redirect to the page ``to``, if it is one of ours."""
    await admit(request, is_used=True)
    env = request.url.path.rpartition("/")[2]
    to = request.query_params.get("to", "").strip("/")
    known = gateway.port(PageRegistry).page_at(to.partition("?")[0]) is not None
    cookie = _cookie(gateway, env, _ENV_KEPT, name=ENV_COOKIE)
    return redirect(_below(request, to if known else ""), more={"Set-Cookie": cookie})


# -- pages and actions -------------------------------------------------------------------------------------------------


@get("/", public=True, include_in_schema=False)
async def site_root(request: Request[Any, Any, Any]) -> Response[str]:
    """Redirect a browser to the pages where the gateway is the whole site. Raises NotFound."""
    is_browser = "text/html" in request.headers.get("accept", "")
    if not (is_browser and cast("dict[str, Any]", request.scope).get(WHOLE_SITE)):
        raise NotFound(NOTHING_HERE)
    return redirect("ops")


@get("/ops", **_OPEN)
async def front_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[Any]:
    return await _show(request, gateway, "")


@get(["/ops/queue", "/ops/queue/queues/{queue:str}", "/ops/queue/queues/{queue:str}/jobs/{job:str}"], **_OPEN)
async def queue_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[Any]:
    """SAQ's script needs the slash at the end of the first page's address."""
    path = requested_path(request).removeprefix("/ops/")
    page = await _show(request, gateway, path)
    return redirect(f"{home(request)}/queue/") if path == "queue" else page


@get("/ops/{path:path}", **_OPEN)
async def any_page(
    request: Request[Any, Any, Any], path: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    return await _show(request, gateway, path)


@post("/ops/{path:path}", status_code=200, **_OPEN)
async def any_action(
    request: Request[Any, Any, Any], path: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    """Run a plugin's action, recorded in the audit log first."""
    desk = gateway.port(PageRegistry)
    found = desk.act_at(path)
    session = await admit(request, is_used=True)
    if found is None:
        raise NotFound("there is no such page")
    form = await read_checked_form(request)
    require_role(session, found.it.role)
    request.scope["path_template"] = f"/ops/{found.it.path}"
    env = _form_env(request, form)
    await gateway.audit.record(
        "operator.acted",
        merchant_id=None,
        actor=session.visitor.actor,
        subject_id=next(iter(found.values.values()), None),
        env=env,
        detail={"act": f"{found.plugin}.{found.it.name}"},
    )
    visit = PageRequest(gateway=gateway, visitor=session.visitor, values=found.values, form=form, env=env)
    try:
        done: Redirect = await found.it.do(visit)
    except ApiError as refused:
        return await _show_again(request, gateway, visit, found, refused, form)
    return await _redirect(request, gateway, done, visit.env)


async def _show(request: Request[Any, Any, Any], gateway: Runtime, path: str) -> Response[Any]:
    desk = gateway.port(PageRegistry)
    found = desk.page_at(path)
    session = await admit(request, is_used=found is None or not found.it.is_part)
    act = desk.act_at(path)
    if act is not None and (found is None or len(found.values) > len(act.values)):
        # A reload of an action's address.
        return redirect(_below(request, _filled(act.it.back, act.values)))
    if found is None:
        raise NotFound("there is no such page")
    require_role(session, found.it.role)
    request.scope["path_template"] = f"/ops/{found.it.path}".rstrip("/")
    query: dict[str, list[str]] = {}
    for name, text in request.query_params.multi_items():
        query.setdefault(name, []).append(text.replace("\x00", ""))
    asked_env = "".join(query.pop("env", []))
    note_id = "".join(query.pop("note", []))
    is_whole = not found.it.is_part and not note_id
    if is_whole and asked_env == env_of(request) != request.cookies.get(ENV_COOKIE):
        # The cookie changes too, so that the page's links keep this env.
        return redirect(_look_at(request, env_of(request), path, query))
    note = await gateway.port(FlashMessages).take(session.owner, note_id) if note_id else None
    visit = PageRequest(gateway=gateway, visitor=session.visitor, values=found.values, query=query, env=env_of(request))
    try:
        return await gateway.port(Layout).page(request, session, visit, found, note=note)
    except WrongEnvironment as other:
        return redirect(_look_at(request, other.env, path, query))


def _look_at(request: Request[Any, Any, Any], env: Env, path: str, query: Mapping[str, Sequence[str]]) -> str:
    to = path.strip("/") + (f"?{urlencode(query, doseq=True)}" if query else "")
    return _below(request, f"{env}?{urlencode({'to': to})}")


async def _redirect(request: Request[Any, Any, Any], gateway: Runtime, done: Redirect, env: Env) -> Response[Any]:
    note_id = ""
    if done.note or done.secret is not None:
        owner = session_of(request).owner
        note_id = await gateway.port(FlashMessages).store(owner, done.note, warning=done.is_warning, secret=done.secret)
    to = done.to
    if env != env_of(request):
        # Another tab has switched the env: the message belongs to this action's env.
        to += f"{'&' if '?' in to else '?'}env={env}"
    return redirect(_below(request, to, note_id))


async def _show_again(
    request: Request[Any, Any, Any],
    gateway: Runtime,
    visit: PageRequest,
    act: RegisteredPage[Action],
    refused: ApiError,
    form: Form,
) -> Response[Any]:
    """Show the form again with its problems; for a button without a form, the page that has it."""
    session = session_of(request)
    page = gateway.port(PageRegistry).page_of(act)
    if page is not None:
        problems = tuple(refused.problems)
        again = PageRequest(
            gateway=gateway, visitor=session.visitor, values=visit.values, form=form, problems=problems, env=visit.env
        )
        return await gateway.port(Layout).page(request, session, again, page, status=refused.status)
    text = str(refused)
    note_id = await gateway.port(FlashMessages).store(
        session.owner, f"Not done: {text}{'' if text.endswith('.') else '.'}", problem=True
    )
    return redirect(_below(request, _filled(act.it.back, act.values), note_id))


def _below(request: Request[Any, Any, Any], path: str, note_id: str = "") -> str:
    address = f"{home(request)}/{path}".rstrip("/")
    return f"{address}{'&' if '?' in address else '?'}note={note_id}" if note_id else address


def _filled(path: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        path = path.replace(f"{{{name}}}", value)
    return path


routes = (
    site_root,
    login_page,
    sign_in,
    sign_out,
    look_at,
    front_page,
    queue_page,
    any_page,
    any_action,
    *queue_pages.routes,
)
