"""Pages of one's own account: password, second factor, recovery codes and sessions."""

import re

from markupsafe import Markup

from mpesa_gateway.errors import Conflict, InvalidFields, NotFound, require_found
from mpesa_gateway.ops_contract import Action, Page, PageRequest, Permission, Redirect, Rendered
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.audit import acting_from
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People, Person
from mpesa_gateway_ops.second_factors import SecondFactors, draw_qr
from mpesa_gateway_ops.sessions import Sessions

_KEY = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)


async def _me(visit: PageRequest) -> Person:
    if not visit.visitor.person_id:
        raise NotFound("the host application signs you in: there is no account here")
    return await visit.gateway.port(People).find(visit.visitor.person_id)


async def account(visit: PageRequest) -> Rendered:
    me = await _me(visit)
    return Rendered(
        "account.html",
        {
            "me": me,
            "sessions": await visit.gateway.port(Sessions).list(me.person_id),
            "this_session": visit.visitor.session_key,
            "codes_left": await visit.gateway.port(SecondFactors).count_codes(me.person_id),
            "is_required": await visit.gateway.port(Sessions).is_factor_required(),
        },
        title=me.name,
    )


async def change_password(visit: PageRequest) -> Redirect:
    me = await _me(visit)
    if visit.text("password") != visit.text("again"):
        raise InvalidFields.field_error("again", "the two new passwords differ")
    await visit.gateway.port(People).change_password(
        me.person_id,
        Secret(visit.form.get("current", [""])[0]),
        Secret(visit.form.get("password", [""])[0]),
        address=acting_from.get() or "",
        session=visit.visitor.session_key,
    )
    return Redirect("account", "Password changed. All other sessions have ended.")


async def end_session(visit: PageRequest) -> Redirect:
    me, key = await _me(visit), visit.text("session")
    sessions = visit.gateway.port(Sessions)
    if key == "others":
        await sessions.close_all_of(me.person_id, but=visit.visitor.session_key)
        return Redirect("account", "All other sessions have ended.")
    if not _KEY.match(key) or not await sessions.close_one_of(me.person_id, key):
        raise NotFound("this session has ended")
    return Redirect("account", "Session ended.")


async def second_factor(visit: PageRequest) -> Rendered:
    me = await _me(visit)
    offered = await visit.gateway.port(SecondFactors).offered(me.person_id)
    secret = re.search(r"secret=([A-Z2-7]+)", offered or "")
    return Rendered(
        "second_factor.html",
        {
            "me": me,
            "qr": Markup(draw_qr(offered)) if offered else None,  # noqa: S704 - drawn here
            "secret": secret[1] if secret else "",
            "is_required": await visit.gateway.port(Sessions).is_factor_required(),
        },
    )


async def offer_second_factor(visit: PageRequest) -> Redirect:
    """Start the set-up; the password proves that this is the person, and a recent code with a second factor."""
    me = await _me(visit)
    if me.has_factor:
        visit.require_fresh()
    password = Secret(visit.form.get("password", [""])[0])
    if not await visit.gateway.port(People).knows_password(me.email, password, acting_from.get() or ""):
        raise InvalidFields.field_error("password", "wrong")
    await visit.gateway.port(SecondFactors).offer(me.person_id)
    return Redirect("account/second-factor")


async def confirm_second_factor(visit: PageRequest) -> Redirect:
    me = await _me(visit)
    if me.has_factor:
        visit.require_fresh()
    codes = await visit.gateway.port(SecondFactors).confirm(
        me.person_id, visit.text("code"), session=visit.visitor.session_key
    )
    return _shown("Second factor set up. Each of these recovery codes replaces one code of the app, once.", codes)


async def renew_codes(visit: PageRequest) -> Redirect:
    me = await _me(visit)
    visit.require_fresh()
    codes = await visit.gateway.port(SecondFactors).renew_codes(me.person_id)
    return _shown("New recovery codes. The earlier ones are void.", codes)


def _shown(text: str, codes: list[str]) -> Redirect:
    return Redirect("account", text, Secret(" ".join(codes)))


async def choose_merchant(visit: PageRequest) -> Redirect:
    me, merchant_id = await _me(visit), visit.text("to")
    require_found(
        await visit.gateway.port(Memberships).role_of(merchant_id, me.person_id), "you are no member of this merchant"
    )
    await visit.gateway.port(Sessions).choose(visit.visitor.session_key, merchant_id)
    return Redirect("")


async def leave(visit: PageRequest) -> Redirect:
    me, merchant_id = await _me(visit), visit.text("to")
    if visit.text("confirm") != merchant_id:
        raise Conflict("tick the box: only an owner can invite you again")
    await visit.gateway.port(Memberships).remove(merchant_id, me.person_id, actor=visit.visitor.actor)
    return Redirect("account", "You have left the merchant.")


PAGES = (
    Page("account", "Account", account, Permission.ACCOUNT),
    Page("account/second-factor", "Second factor", second_factor, Permission.ACCOUNT),
)
ACTS = (
    Action("account/password", "change_password", change_password, Permission.ACCOUNT, back="account"),
    Action("account/session", "end_session", end_session, Permission.ACCOUNT, back="account"),
    Action(
        "account/second-factor/offer",
        "offer_second_factor",
        offer_second_factor,
        Permission.ACCOUNT,
        back="account/second-factor",
    ),
    Action(
        "account/second-factor/confirm",
        "confirm_second_factor",
        confirm_second_factor,
        Permission.ACCOUNT,
        back="account/second-factor",
    ),
    Action("account/codes", "renew_codes", renew_codes, Permission.ACCOUNT, back="account"),
    Action("account/merchant", "choose_merchant", choose_merchant, Permission.ACCOUNT, back="account"),
    Action("account/leave", "leave_merchant", leave, Permission.ACCOUNT, back="account"),
)
