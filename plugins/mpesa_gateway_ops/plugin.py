"""The declaration of the ops plugin."""

import re

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.http.known_callers import KnownCallerCheck
from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.ops_contract import FirstOperator, Pages
from mpesa_gateway.plugin import Plugin, RetentionRule, Tables
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops import (
    audit_pages,
    event_pages,
    failed_jobs,
    merchant_pages,
    overview,
    queue_pages,
    search,
    system_pages,
    tables,
)
from mpesa_gateway_ops.access import COOKIE
from mpesa_gateway_ops.commands import operators
from mpesa_gateway_ops.doctor import CHECKS
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.provides import PROVIDES
from mpesa_gateway_ops.routes import routes
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import NoteRow, OperatorRow, SessionRow

_SESSION = re.compile(rb"(?:\A|[; ])" + COOKIE.encode() + rb"=([0-9a-f]{64})(?:;|\Z)")


def _vouches(gateway: Runtime, scope: Message, _: str) -> bool:
    cookies = (value for name, value in scope["headers"] if name == b"cookie")
    found = next(filter(None, map(_SESSION.search, cookies)), None)
    return found is not None and gateway.port(Sessions).was_open(Secret(found[1].decode()))


async def _create_first(gateway: Runtime, name: str, actor: str) -> Secret | None:
    return await gateway.port(Operators).create_first(name, actor=actor)


plugin = Plugin(
    name="ops",
    summary="Pages for operators, behind a login: everything that the other plugins have to show, and to be done.",
    settings=OpsSettings,
    id_prefixes=(IdPrefix("opr", "operator"),),
    routes=routes,
    provides=PROVIDES,
    tables=Tables(models=(OperatorRow, SessionRow, NoteRow), migrations="mpesa_gateway_ops.migrations"),
    # The audit log records sign-ins; ended sessions have no further use.
    retention=(RetentionRule("ended sessions", tables.FORGET_ENDED, days=lambda _: 1),),
    commands=(operators,),
    pages=Pages(
        templates="mpesa_gateway_ops",
        pages=(
            overview.PAGE,
            *event_pages.PAGES,
            *merchant_pages.PAGES,
            *queue_pages.PAGES,
            failed_jobs.PAGE,
            audit_pages.PAGE,
            system_pages.PAGE,
            search.PAGE,
        ),
        acts=(
            *failed_jobs.ACTS,
            search.FIND,
            audit_pages.VERIFY,
            *event_pages.ACTS,
            *merchant_pages.ACTS,
        ),
        concerns=(overview.failing_parts, event_pages.stuck),
    ),
    checks=CHECKS,
    contributes=(KnownCallerCheck(("/ops",), _vouches), FirstOperator(_create_first)),
)
