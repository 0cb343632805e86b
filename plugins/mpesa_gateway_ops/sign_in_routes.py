"""HTTP routes of signing in: password, second factor, invitation and sign-out."""

from typing import Any
from urllib.parse import urlsplit

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from mpesa_gateway.errors import InvalidFields, NotFound, Problem, TooManyFailures
from mpesa_gateway.http.auth import address_of
from mpesa_gateway.http.templating import redirect
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.access import (
    COOKIE,
    DEVICE_COOKIE,
    admit,
    cookie_of,
    first,
    home,
    read_checked_form,
    read_form,
    require_same_origin,
)
from mpesa_gateway_ops.error_pages import ANSWERS
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.invitations import Invitation, Invitations
from mpesa_gateway_ops.layout import Layout
from mpesa_gateway_ops.login_limits import DEVICE_LIFETIME
from mpesa_gateway_ops.people import People
from mpesa_gateway_ops.second_factors import SecondFactors
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings

WRONG_CODE = "The code is wrong, or was used. Wait for the next one; its time must be right on the phone."

_LOGIN_BYTES = 8192
"""The largest body of a login form; a password has at most 1024 characters."""

OPEN: dict[str, Any] = {
    "public": True,
    "include_in_schema": False,
    "guards": [require_same_origin],
    "exception_handlers": ANSWERS,
}


@get("/ops/login", **OPEN)
async def login_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    return await _login(request, gateway)


@post("/ops/login", body_bytes=_LOGIN_BYTES, **OPEN)
async def sign_in(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    people = gateway.port(People)
    if people.host_login is not None:
        return await _login(request, gateway)
    fields = await read_form(request)
    email, password = first(fields, "email"), Secret(first(fields, "password"))
    try:
        device = Secret(request.cookies.get(DEVICE_COOKIE, ""))
        agent = request.headers.get("user-agent", "")
        found = await people.sign_in(email, password, address_of(request), device, agent=agent)
    except WrongPassword:
        problem = "The address or the password is wrong."
        return await _login(request, gateway, email=email, problem=problem, status=401)
    except TooManyFailures as refused:
        problem, more = _wait(refused)
        return await _login(request, gateway, email=email, problem=problem, status=429, more=more)
    sessions = gateway.port(Sessions)
    # The browser's earlier session would stay open.
    await sessions.close(cookie_of(request))
    lifetime = int(sessions.lifetime.total_seconds())
    to = f"{home(request)}/login-code" if found.needs_code else home(request)
    answer = redirect(to, more={"Set-Cookie": cookie(gateway, found.session.reveal(), lifetime)})
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


def _wait(refused: TooManyFailures) -> tuple[str, dict[str, str]]:
    wait = refused.retry_after or 1
    return f"Too many failed attempts. Try again in {-(-wait // 60)} min.", {"Retry-After": str(wait)}


async def _login(
    request: Request[Any, Any, Any],
    gateway: Runtime,
    *,
    email: str = "",
    problem: str | None = None,
    notice: str | None = None,
    status: int = 200,
    more: dict[str, str] | None = None,
) -> Response[str]:
    values = {
        "title": "Sign in",
        "email": email,
        "problem": problem,
        "notice": notice,
        "host_login": gateway.port(People).host_login is not None,
        "login_url": gateway.settings(OpsSettings).login_url,
        "is_live": await gateway.merchants.any_live(),
    }
    return gateway.port(Layout).alone(request, "login.html", values, status=status, more=more)


@get("/ops/login-code", **OPEN)
async def code_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    if await gateway.port(Sessions).find_unverified(cookie_of(request)) is None:
        return redirect(home(request))
    return await _code(request, gateway)


@post("/ops/login-code", body_bytes=_LOGIN_BYTES, **OPEN)
async def enter_code(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    sessions, token = gateway.port(Sessions), cookie_of(request)
    person_id = await sessions.find_unverified(token)
    if person_id is None:
        return redirect(home(request))
    code = first(await read_form(request), "code")
    try:
        if not await gateway.port(SecondFactors).verify(person_id, code, address_of(request)):
            return await _code(request, gateway, problem=WRONG_CODE, status=401)
    except TooManyFailures as refused:
        problem, more = _wait(refused)
        return await _code(request, gateway, problem=problem, status=429, more=more)
    renewed = await sessions.verify_waiting(token)
    if renewed is None:
        return redirect(home(request))
    await gateway.audit.record("person.signed_in", merchant_id=None, actor=f"person:{person_id}", subject_id=person_id)
    lifetime = int(sessions.lifetime.total_seconds())
    return redirect(home(request), more={"Set-Cookie": cookie(gateway, renewed.reveal(), lifetime)})


async def _code(
    request: Request[Any, Any, Any],
    gateway: Runtime,
    *,
    problem: str | None = None,
    status: int = 200,
    more: dict[str, str] | None = None,
) -> Response[str]:
    values = {"title": "Second factor", "problem": problem, "is_live": await gateway.merchants.any_live()}
    return gateway.port(Layout).alone(request, "code.html", values, status=status, more=more)


@get("/ops/join/{token:str}", **OPEN)
async def join_page(
    request: Request[Any, Any, Any], token: FromPath[str], gateway: NamedDependency[Any]
) -> Response[str]:
    return await _join(request, gateway, await _invitation(request, gateway, token))


@post("/ops/join/{token:str}", body_bytes=_LOGIN_BYTES, **OPEN)
async def join(request: Request[Any, Any, Any], token: FromPath[str], gateway: NamedDependency[Any]) -> Response[str]:
    invitation = await _invitation(request, gateway, token)
    fields = await read_form(request)
    name = " ".join(first(fields, "name").split())
    try:
        email = await gateway.port(Invitations).accept(
            Secret(token), name=name, password=Secret(first(fields, "password")), address=address_of(request)
        )
    except InvalidFields as refused:
        return await _join(request, gateway, invitation, name=name, problems=refused.problems, status=422)
    except TooManyFailures as refused:
        problem, more = _wait(refused)
        found = [Problem(code=refused.code.value, message=problem)]
        return await _join(request, gateway, invitation, name=name, problems=found, status=429, more=more)
    return await _login(request, gateway, email=email, notice="Done. Sign in with your address and password.")


async def _invitation(request: Request[Any, Any, Any], gateway: Runtime, token: str) -> Invitation:
    request.scope["path_template"] = "/ops/join/{token}"
    if gateway.port(People).host_login is not None:
        raise NotFound("the host application signs people in: there are no invitations")
    return await gateway.port(Invitations).find(Secret(token))


async def _join(
    request: Request[Any, Any, Any],
    gateway: Runtime,
    invitation: Invitation,
    *,
    name: str = "",
    problems: list[Problem] | None = None,
    status: int = 200,
    more: dict[str, str] | None = None,
) -> Response[str]:
    merchant = None if invitation.merchant_id is None else await gateway.merchants.require(invitation.merchant_id)
    values = {
        "title": "New password" if invitation.person_id else "Invitation",
        "invitation": invitation,
        "merchant": merchant,
        "name": name,
        "problems": problems or (),
        "is_live": await gateway.merchants.any_live(),
        "here": request.url.path,
    }
    return gateway.port(Layout).alone(request, "join.html", values, status=status, more=more)


@post("/ops/logout", **OPEN)
async def sign_out(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    await admit(request, is_used=False)
    await read_checked_form(request)
    await gateway.port(Sessions).close(cookie_of(request))
    return redirect(f"{home(request)}/login", more={"Set-Cookie": cookie(gateway, "", 0)})


def cookie(gateway: Runtime, value: str, seconds: int, *, name: str = COOKIE) -> str:
    """Without a Path the cookie belongs to the folder of its address, which is /ops under any mount point."""
    is_secure = urlsplit(gateway.config.public_url).scheme == "https"
    secure = "; Secure" if is_secure else ""
    return f"{name}={value}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


routes = (login_page, sign_in, code_page, enter_code, join_page, join, sign_out)
