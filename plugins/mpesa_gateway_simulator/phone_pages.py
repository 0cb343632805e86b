"""The simulator's pages: a phone, the delays, and the log of exchanges."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import ServerSentEvent

from mpesa_gateway.clock import EAT
from mpesa_gateway.errors import ApiError, InvalidFields, Problem, UnsupportedMediaType
from mpesa_gateway.http import templating
from mpesa_gateway.http.csrf import is_same_site
from mpesa_gateway.http.errors import failure
from mpesa_gateway.http.query import read_params
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_simulator.controls import Controls
from mpesa_gateway_simulator.exchange_log import ChangeSignal, ExchangeLog
from mpesa_gateway_simulator.outcomes import BEHAVIOURS, IN_HAND, PREFIX
from mpesa_gateway_simulator.own_hosts import own_host_only
from mpesa_gateway_simulator.phones import FIRST, PIN, Phones

_ASSETS = templating.Assets("mpesa_gateway_simulator", "simulator/web")
_TEMPLATES = templating.environment({"": "mpesa_gateway_simulator"})

_SHOWN = 40
"""Lines of the log on the page."""

_STREAM = 25.0
"""Seconds that a stream of changes lasts; the browser then reconnects."""

_BEAT = 1.0
"""Seconds until a stream notices that the gateway stops."""

_STILL = 5
"""Beats without a change after which the browser reloads anyway: another process may have changed something."""

_TURNED = ("callback_delay", "late_delay", "prompt_timeout")


class _Query(msgspec.Struct, frozen=True, kw_only=True):
    phone: str = FIRST
    watch: bool = False


def _refused(request: Request[Any, Any, Any], refused: ApiError) -> Response[Any]:
    if not templating.accepts_html(request.headers.get("accept", "")):
        return failure(refused.problems, refused.status)
    values = {
        "title": "Not done",
        "problems": refused.problems,
        "root": templating.root(request),
        "asset": templating.asset,
    }
    text = _TEMPLATES.get_template("phone_refused.html").render(values)
    return templating.answer(text, status=refused.status)


_PAGE: dict[str, Any] = {
    "public": True,
    "priority": True,
    "include_in_schema": False,
    "guards": [own_host_only],
    "exception_handlers": {ApiError: _refused},
}


@get("/simulator", **_PAGE)
async def phone_page(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    return templating.answer(await _draw(request, gateway, "phone.html", ()))


@get("/simulator/part", **_PAGE)
async def phone_part(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """The parts that change: screen and log."""
    return templating.answer(await _draw(request, gateway, "phone_part.html", ()))


async def _draw(request: Request[Any, Any, Any], gateway: Runtime, template: str, problems: tuple[Problem, ...]) -> str:
    query = read_params(request, _Query)
    controls, exchanges = gateway.port(Controls), gateway.port(ExchangeLog)
    phone = await gateway.port(Phones).read_phone(query.phone)
    now = gateway.clock.now()
    root = templating.root(request)
    return _TEMPLATES.get_template(template).render(
        title="Simulated phone",
        root=root,
        asset=templating.asset,
        own=_ASSETS.path,
        here=f"{root}simulator",
        phone=phone,
        is_watched=query.watch and phone.prompt is None,
        pin=PIN,
        clock=now.astimezone(EAT),
        styles={name: behaviour.summary for name, behaviour in IN_HAND.items()},
        numbers={PREFIX + digits: behaviour.summary for digits, behaviour in BEHAVIOURS.items()},
        knobs={name: await controls.knob(name) for name in _TURNED},
        lines=list(exchanges.lines)[:_SHOWN],
        when=partial(templating.when, now=now),
        stream=urlencode({"phone": phone.number}),
        problems=problems,
    )


@get("/simulator/changes", **_PAGE)
async def changes(gateway: NamedDependency[Any]) -> ServerSentEvent:
    """Stream an event for each change."""
    return ServerSentEvent(_changes(gateway), retry_duration=1000)


async def _changes(gateway: Runtime) -> AsyncGenerator[dict[str, str]]:
    pulse, loop = gateway.port(ChangeSignal), asyncio.get_running_loop()
    until, seen, still = loop.time() + _STREAM, -1, 0
    while loop.time() < until and gateway.is_running and not gateway.is_draining:
        if pulse.count == seen and still < _STILL:
            await pulse.wait_for_change(_BEAT)
            still += 1
        else:
            seen, still = pulse.count, 0
            yield {"event": "changed", "data": str(seen)}


async def _form(request: Request[Any, Any, Any], gateway: Runtime) -> dict[str, str]:
    """Return a form's fields. Raises UnsupportedMediaType, and ApiError for another site's form."""
    own = {request.headers.get("host", ""), urlsplit(gateway.config.public_url).netloc}
    if not is_same_site(request.headers, own):
        raise ApiError("this was not asked for on one of our own pages: open /simulator and try again there")
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise UnsupportedMediaType("send a form")
    fields = {name: value.strip() for name, value in (await request.form()).items() if isinstance(value, str)}
    for name, value in fields.items():
        if "\x00" in value:
            raise InvalidFields.field_error(name, "must be text")
    return fields


def _back(request: Request[Any, Any, Any], phone: str) -> Response[str]:
    return templating.redirect(f"{templating.root(request)}simulator?{urlencode({'phone': phone})}")


@post("/simulator/touch", status_code=303, **_PAGE)
async def touch(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Enter the PIN, or cancel."""
    fields = await _form(request, gateway)
    await gateway.port(Phones).touch(
        fields.get("checkout_request_id", ""), fields.get("pin", ""), is_cancelled="cancel" in fields
    )
    return _back(request, fields.get("phone", FIRST))


@post("/simulator/pay", status_code=303, **_PAGE)
async def pay(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Pay a till or paybill without a prompt."""
    fields = await _form(request, gateway)
    number = fields.get("phone", "")
    await gateway.port(Phones).pay(
        number, fields.get("shortcode", ""), fields.get("account_number", ""), fields.get("amount", "")
    )
    return _back(request, number)


@post("/simulator/hold", status_code=303, **_PAGE)
async def hold(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Answer a phone by hand from now on; set its balance and the callback style."""
    fields = await _form(request, gateway)
    number = fields.get("phone", "")
    await gateway.port(Phones).hold(number, fields.get("style", ""), fields.get("balance", ""))
    return _back(request, number)


@post("/simulator/let-go", status_code=303, **_PAGE)
async def release(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Let the number decide again."""
    fields = await _form(request, gateway)
    await gateway.port(Phones).release(fields.get("phone", ""))
    return _back(request, fields.get("phone", FIRST))


@post("/simulator/turn", status_code=303, **_PAGE)
async def turn(request: Request[Any, Any, Any], gateway: NamedDependency[Any]) -> Response[str]:
    """Change Daraja's delays."""
    fields = await _form(request, gateway)
    turned: dict[str, float] = {}
    for name in _TURNED:
        try:
            turned[name] = float(fields.get(name, ""))
        except ValueError:
            raise InvalidFields.field_error(name, "must be a number of seconds") from None
        if not 0 <= turned[name] <= 86_400:
            raise InvalidFields.field_error(name, "must be between 0 and 86400 seconds")
    await gateway.port(Controls).set_knobs(turned)
    return _back(request, fields.get("phone", FIRST))


@get("/simulator/web/{digest:str}/{name:str}", **_PAGE)
async def file(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    return _ASSETS.answer(digest, name)


routes = (phone_page, phone_part, changes, touch, pay, hold, release, turn, file)
