"""The declaration of the ops plugin."""

import re
from collections.abc import Iterable, Mapping

from mpesa_gateway.asgi_types import Message
from mpesa_gateway.http.known_callers import KnownCallerCheck
from mpesa_gateway.ids import IdPrefix
from mpesa_gateway.ops_contract import ActorNames, Concern, FirstOperator, MerchantRole, Pages, Permission
from mpesa_gateway.plugin import Plugin, RetentionRule, Tables
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.master_key_rotation import SealedColumn
from mpesa_gateway_ops import (
    COMMANDS,
    account_pages,
    audit_pages,
    event_pages,
    failed_jobs,
    merchant_pages,
    overview,
    people_pages,
    queue_pages,
    search,
    setup,
    system_pages,
    tables,
)
from mpesa_gateway_ops.access import COOKIE
from mpesa_gateway_ops.doctor import CHECKS
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People, names_of
from mpesa_gateway_ops.provides import PROVIDES
from mpesa_gateway_ops.routes import routes
from mpesa_gateway_ops.sessions import Sessions
from mpesa_gateway_ops.settings import OpsSettings
from mpesa_gateway_ops.tables import InvitationRow, MembershipRow, NoteRow, PersonRow, RecoveryCodeRow, SessionRow

_SESSION = re.compile(rb"(?:\A|[; ])" + COOKIE.encode() + rb"=([0-9a-f]{64})(?:;|\Z)")


def _vouches(gateway: Runtime, scope: Message, _: str) -> bool:
    cookies = (value for name, value in scope["headers"] if name == b"cookie")
    found = next(filter(None, map(_SESSION.search, cookies)), None)
    return found is not None and gateway.port(Sessions).was_open(Secret(found[1].decode()))


async def _create_first(gateway: Runtime, email: str, actor: str, merchant_id: str | None) -> Secret | None:
    people = gateway.port(People)
    async with gateway.db.transaction():
        password = await people.create_first(email, actor=actor)
        if password is not None and merchant_id is not None:
            person = await people.find(email)
            await gateway.port(Memberships).add(merchant_id, person.person_id, MerchantRole.OWNER, actor=actor)
        return password


async def _names(gateway: Runtime, actors: Iterable[str]) -> Mapping[str, str]:
    return await names_of(gateway.db, actors)


plugin = Plugin(
    name="ops",
    summary="Pages for operators, behind a login: everything that the other plugins have to show, and to be done.",
    settings=OpsSettings,
    id_prefixes=(IdPrefix("per", "person"),),
    routes=routes,
    provides=PROVIDES,
    tables=Tables(
        models=(PersonRow, MembershipRow, InvitationRow, RecoveryCodeRow, SessionRow, NoteRow),
        migrations="mpesa_gateway_ops.migrations",
        sealed=tuple(
            SealedColumn(table="person", key="person_id", column=column, aad=("'ops'", "'totp'", "person_id"))
            for column in ("totp_sealed", "totp_offered")
        ),
    ),
    # The audit log records sign-ins; ended sessions have no further use.
    retention=(
        RetentionRule("ended sessions", tables.FORGET_ENDED, days=lambda _: 1),
        RetentionRule("expired invitations", tables.FORGET_INVITATIONS, days=lambda _: 1),
    ),
    commands=COMMANDS,
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
            *account_pages.PAGES,
            *people_pages.PAGES,
        ),
        acts=(
            *failed_jobs.ACTS,
            search.FIND,
            audit_pages.VERIFY,
            *event_pages.ACTS,
            *merchant_pages.ACTS,
            *account_pages.ACTS,
            *people_pages.ACTS,
        ),
        panels=people_pages.PANELS,
        owners={"merchant_id": merchant_pages.owner_of},
        concerns=(
            Concern(overview.failing_parts, Permission.GATEWAY),
            Concern(event_pages.stuck, Permission.GATEWAY),
        ),
        setup=setup.STEPS,
    ),
    checks=CHECKS,
    contributes=(KnownCallerCheck(("/ops",), _vouches), FirstOperator(_create_first), ActorNames(_names)),
)
