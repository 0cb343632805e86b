"""HTTP routes of the operators' pages: every registered page and action."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlencode

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.errors import ApiError, NotFound
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.http.errors import NOTHING_HERE, failure
from mpesa_gateway.http.templating import WHOLE_SITE, accepts_html, redirect, requested_path
from mpesa_gateway.ops_contract import Action, PageRequest, Redirect, StepUpNeeded, WrongEnvironment
from mpesa_gateway.permissions import GRANTS
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops import queue_pages, sign_in_routes
from mpesa_gateway_ops.access import (
    CODE_FIELD,
    ENV_COOKIE,
    Form,
    admit,
    admit_to,
    env_of,
    first,
    home,
    read_checked_form,
    session_of,
    visitor_of,
)
from mpesa_gateway_ops.flash import FlashMessages
from mpesa_gateway_ops.layout import Layout, words_of
from mpesa_gateway_ops.page_registry import PageRegistry, RegisteredPage
from mpesa_gateway_ops.second_factors import SecondFactors
from mpesa_gateway_ops.sessions import Session, Sessions
from mpesa_gateway_ops.sign_in_routes import OPEN, WRONG_CODE, cookie

_ENV_KEPT = 365 * 24 * 3600
"""Seconds."""


def _form_env(request: Request[Any, Any, Any], form: Form) -> Env:
    form_env = first(form, "form_env")
    for env in ENVS:
        if form_env == env:
            return env
    return env_of(request)


@get(["/ops/sandbox", "/ops/live"], **OPEN)
async def look_at(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Switch to an env and redirect to the page ``to``, if it is one of ours."""
    await admit(request, is_used=True)
    env = request.url.path.rpartition("/")[2]
    to = request.query_params.get("to", "").strip("/")
    known = gateway.port(PageRegistry).page_at(to.partition("?")[0]) is not None
    env_cookie = cookie(gateway, env, _ENV_KEPT, name=ENV_COOKIE)
    return redirect(_below(request, to if known else ""), more={"Set-Cookie": env_cookie})


@get("/", public=True, include_in_schema=False)
async def site_root(request: Request[Any, Any, Any]) -> Response[Any]:
    """Redirect a browser to the pages where the gateway is the whole site."""
    is_browser = accepts_html(request.headers.get("accept", ""))
    vary = {"Vary": "Accept"}
    if not (is_browser and cast("dict[str, Any]", request.scope).get(WHOLE_SITE)):
        return failure(NotFound(NOTHING_HERE).problems, NotFound.status, vary)
    return redirect("ops", more=vary)


@get("/ops", **OPEN)
async def front_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[Any]:
    return await _show(request, gateway, "")


@get(["/ops/queue", "/ops/queue/queues/{queue:str}", "/ops/queue/queues/{queue:str}/jobs/{job:str}"], **OPEN)
async def queue_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[Any]:
    """SAQ's script needs the slash at the end of the first page's address."""
    path = requested_path(request).removeprefix("/ops/")
    page = await _show(request, gateway, path)
    return redirect(f"{home(request)}/queue/") if path == "queue" else page


@get("/ops/{path:path}", **OPEN)
async def any_page(
    request: Request[Any, Any, Any], path: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    return await _show(request, gateway, path)


@post("/ops/{path:path}", status_code=200, **OPEN)
async def any_action(
    request: Request[Any, Any, Any], path: FromPath[str], gateway: NamedDependency[Any]
) -> Response[Any]:
    """Run a plugin's action, recorded in the audit log first."""
    registry = gateway.port(PageRegistry)
    found = registry.act_at(path)
    session = await admit(request, is_used=True)
    if found is None:
        raise NotFound("there is no such page")
    form = await read_checked_form(request)
    merchant_id = await admit_to(request, session, found)
    visitor = visitor_of(request)
    request.scope["path_template"] = f"/ops/{found.it.path}"
    env = _form_env(request, form)
    if (code := first(form, CODE_FIELD)) and session.has_factor:
        if not await gateway.port(SecondFactors).verify(session.person_id, code, address_of(request)):
            return _step_up(request, gateway, session, form, WRONG_CODE, 403)
        await gateway.port(Sessions).verified(visitor.session_key)
        visitor = replace(visitor, is_fresh=True)
    if GRANTS[found.it.needs].is_stepped and not visitor.is_fresh:
        return _step_up(request, gateway, session, form, "", 200)
    if merchant_id is not None:
        form["merchant"] = [merchant_id]
    await gateway.audit.record(
        "operator.acted",
        merchant_id=merchant_id,
        actor=session.actor,
        subject_id=next(iter(found.values.values()), None),
        env=env,
        detail={"act": f"{found.plugin}.{found.it.name}"},
    )
    visit = PageRequest(
        gateway=gateway, visitor=visitor, values=found.values, form=form, env=env, merchant_id=merchant_id
    )
    try:
        return await _act(request, gateway, visit, found, form)
    except StepUpNeeded:
        return _step_up(request, gateway, session, form, "", 200)
    except WrongEnvironment as other:
        note = f"Not done: this is a {other.env} object, and the form was of {env}."
        back = Redirect(_filled(found.it.back, found.values), note, is_warning=True)
        return await _redirect(request, gateway, back, other.env)


async def _act(
    request: Request[Any, Any, Any], gateway: Runtime, visit: PageRequest, found: RegisteredPage[Action], form: Form
) -> Response[Any]:
    try:
        done: Redirect = await found.it.do(visit)
    except StepUpNeeded:
        raise
    except ApiError as refused:
        return await _show_again(request, gateway, visit, found, refused, form)
    return await _redirect(request, gateway, done, visit.env)


def _step_up(
    request: Request[Any, Any, Any], gateway: Runtime, session: Session, form: Form, problem: str, status: int
) -> Response[str]:
    return gateway.port(Layout).step_up(request, session, form, problem, status)


async def _show(request: Request[Any, Any, Any], gateway: Runtime, path: str) -> Response[Any]:
    registry = gateway.port(PageRegistry)
    found = registry.page_at(path)
    session = await admit(request, is_used=found is None or not found.it.is_part)
    act = registry.act_at(path)
    if act is not None and (found is None or len(found.values) > len(act.values)):
        # A reload of an action's address.
        return redirect(_below(request, _filled(act.it.back, act.values)))
    if found is None:
        raise NotFound("there is no such page")
    merchant_id = await admit_to(request, session, found)
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
    if merchant_id is not None and not found.values:
        query["merchant"] = [merchant_id]
    visit = PageRequest(
        gateway=gateway,
        visitor=visitor_of(request),
        values=found.values,
        query=query,
        env=env_of(request),
        merchant_id=merchant_id,
    )
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
    session = session_of(request)
    page = gateway.port(PageRegistry).page_of(act)
    if page is not None:
        query = {} if visit.merchant_id is None or visit.values else {"merchant": [visit.merchant_id]}
        again = replace(visit, query=query, form=form, problems=tuple(refused.problems))
        return await gateway.port(Layout).page(request, session, again, page, status=refused.status)
    text = "; ".join(
        f"{words_of(each.field)}: {each.message}" if each.field else each.message for each in refused.problems
    )
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
    *sign_in_routes.routes,
    look_at,
    front_page,
    queue_page,
    any_page,
    any_action,
    *queue_pages.routes,
)
