"""Pages of people: the members of a merchant, and the people of the host."""

from mpesa_gateway.errors import InvalidFields, NotFound
from mpesa_gateway.ops_contract import (
    Action,
    Menu,
    MerchantRole,
    Page,
    PageRequest,
    Panel,
    Permission,
    Redirect,
    Rendered,
    Role,
)
from mpesa_gateway.permissions import GRANTS, Grant
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.invitations import Invitations
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People, names_of
from mpesa_gateway_ops.second_factors import SecondFactors
from mpesa_gateway_ops.settings import OpsSettings

_LINK = "Send this link to {email}. It works once, within {hours} hours."


def _table(roles: tuple[str, ...]) -> list[tuple[str, list[bool]]]:
    def has(grant: Grant, role: str) -> bool:
        return role in grant.members

    return [
        (grant.text, [has(grant, role) for role in roles])
        for permission, grant in GRANTS.items()
        if grant.members and permission is not Permission.ACCOUNT
    ]


async def members(visit: PageRequest) -> Rendered:
    merchant = await visit.gateway.merchants.require(visit.values["merchant_id"])
    roles = tuple(role.value for role in MerchantRole)
    return Rendered(
        "people.html",
        {
            "merchant": merchant,
            "members": await visit.gateway.port(Memberships).list(merchant.merchant_id),
            "invitations": await visit.gateway.port(Invitations).of_merchant(merchant.merchant_id),
            "inviters": await _inviters(visit, merchant.merchant_id),
            "roles": roles,
            "table": _table(roles),
            "fields": {name: visit.text(name) for name in ("email", "role")},
        },
        title=f"People of {merchant.name}",
    )


async def _inviters(visit: PageRequest, merchant_id: str) -> dict[str, str]:
    found = await visit.gateway.port(Invitations).of_merchant(merchant_id)
    return await names_of(visit.gateway.db, {each.invited_by for each in found})


async def invite(visit: PageRequest) -> Redirect:
    merchant_id, email = visit.values["merchant_id"], visit.text("email").lower()
    token = await visit.gateway.port(Invitations).invite(
        email, actor=visit.visitor.actor, merchant_id=merchant_id, role=_merchant_role(visit.text("role"))
    )
    return Redirect(f"merchants/{merchant_id}/people", _text(visit, email), _link(visit, token))


async def withdraw(visit: PageRequest) -> Redirect:
    merchant_id = visit.values["merchant_id"]
    await visit.gateway.port(Invitations).withdraw(merchant_id, visit.text("email"), actor=visit.visitor.actor)
    return Redirect(f"merchants/{merchant_id}/people", "Invitation withdrawn.")


async def set_role(visit: PageRequest) -> Redirect:
    merchant_id, person_id = visit.values["merchant_id"], visit.values["person_id"]
    role = _merchant_role(visit.text("role"))
    await visit.gateway.port(Memberships).set_role(merchant_id, person_id, role, actor=visit.visitor.actor)
    return Redirect(f"merchants/{merchant_id}/people", f"Role changed to {role}.")


async def remove(visit: PageRequest) -> Redirect:
    """Remove a member; its API keys are listed next."""
    merchant_id, person_id = visit.values["merchant_id"], visit.values["person_id"]
    if visit.text("confirm") != person_id:
        raise InvalidFields.field_error("confirm", "tick the box to remove this member")
    await visit.gateway.port(Memberships).remove(merchant_id, person_id, actor=visit.visitor.actor)
    made = await visit.gateway.api_keys.of_maker(f"person:{person_id}")
    keys = [key for key in made if key.merchant_id == merchant_id]
    if not keys:
        return Redirect(f"merchants/{merchant_id}/people", "Member removed.")
    names = ", ".join(key.name for key in keys)
    text = f"Member removed. API keys that this person created and may know: {names}. Revoke them below."
    return Redirect(f"merchants/{merchant_id}", text, is_warning=True)


async def reset_factor(visit: PageRequest) -> Redirect:
    merchant_id, person_id = visit.values["merchant_id"], visit.values["person_id"]
    if await visit.gateway.port(Memberships).role_of(merchant_id, person_id) is None:
        raise NotFound("this person is no member of the merchant")
    await visit.gateway.port(SecondFactors).reset(person_id, actor=visit.visitor.actor)
    return Redirect(
        f"merchants/{merchant_id}/people", "Second factor removed. The person sets up a new one at the next sign-in."
    )


async def panel(visit: PageRequest, merchant_id: str) -> Rendered | None:
    members = await visit.gateway.port(Memberships).list(merchant_id)
    return Rendered("people_of.html", {"members": members, "merchant_id": merchant_id})


def _merchant_role(text: str) -> MerchantRole:
    try:
        return MerchantRole(text)
    except ValueError:
        raise InvalidFields.field_error("role", f"choose one of {', '.join(MerchantRole)}") from None


async def everyone(visit: PageRequest) -> Rendered:
    people = await visit.gateway.port(People).list()
    return Rendered(
        "host_people.html",
        {
            "rows": people,
            "roles": tuple(role.value for role in Role),
            "fields": {name: visit.text(name) for name in ("email", "role")},
        },
    )


async def invite_host(visit: PageRequest) -> Redirect:
    email = visit.text("email").lower()
    try:
        role = Role(visit.text("role"))
    except ValueError:
        raise InvalidFields.field_error("role", f"choose one of {', '.join(Role)}") from None
    token = await visit.gateway.port(Invitations).invite(email, actor=visit.visitor.actor, role=role)
    return Redirect("people", _text(visit, email), _link(visit, token))


async def person(visit: PageRequest) -> Rendered:
    found = await visit.gateway.port(People).find(visit.values["person_id"])
    return Rendered(
        "person.html",
        {"person": found, "keys": await visit.gateway.api_keys.of_maker(f"person:{found.person_id}")},
        title=found.name,
    )


async def reset_password(visit: PageRequest) -> Redirect:
    found = await visit.gateway.port(People).find(visit.values["person_id"])
    token = await visit.gateway.port(Invitations).reset_password(found, actor=visit.visitor.actor)
    return Redirect(f"people/{found.person_id}", _text(visit, found.email), _link(visit, token))


async def reset_factor_of_host(visit: PageRequest) -> Redirect:
    person_id = visit.values["person_id"]
    await visit.gateway.port(SecondFactors).reset(person_id, actor=visit.visitor.actor)
    return Redirect(f"people/{person_id}", "Second factor removed. The person sets up a new one at the next sign-in.")


async def deactivate(visit: PageRequest) -> Redirect:
    person_id = visit.values["person_id"]
    if visit.text("confirm") != person_id:
        raise InvalidFields.field_error("confirm", "tick the box: this cannot be undone")
    await visit.gateway.port(Memberships).deactivate(person_id, actor=visit.visitor.actor)
    return Redirect(f"people/{person_id}", "Removed from the gateway and from all merchants; all sessions have ended.")


async def revoke_keys(visit: PageRequest) -> Redirect:
    person_id = visit.values["person_id"]
    keys = await visit.gateway.api_keys.of_maker(f"person:{person_id}")
    for key in keys:
        await visit.gateway.api_keys.revoke(key.merchant_id, key.key_id, actor=visit.visitor.actor)
    count = len(keys)
    return Redirect(f"people/{person_id}", f"{count} API {'key' if count == 1 else 'keys'} revoked.")


def _text(visit: PageRequest, email: str) -> str:
    return _LINK.format(email=email, hours=visit.gateway.settings(OpsSettings).invitation_hours)


def _link(visit: PageRequest, token: Secret) -> Secret:
    return Secret(visit.gateway.url(f"/ops/join/{token.reveal()}"))


PAGES = (
    Page("merchants/{merchant_id}/people", "People", members, Permission.VIEW),
    Page("people", "People", everyone, Permission.GATEWAY, menu=Menu("People", 55, "Merchants", "o")),
    Page("people/{person_id}", "Person", person, Permission.GATEWAY, names="per"),
)
_BACK = "merchants/{merchant_id}/people"
_MEMBER = "merchants/{merchant_id}/people/{person_id}"
ACTS = (
    Action("merchants/{merchant_id}/people", "invite_member", invite, Permission.PEOPLE),
    Action("merchants/{merchant_id}/people/withdraw", "withdraw_invitation", withdraw, Permission.PEOPLE, back=_BACK),
    Action(f"{_MEMBER}/role", "set_member_role", set_role, Permission.PEOPLE, back=_BACK),
    Action(f"{_MEMBER}/remove", "remove_member", remove, Permission.PEOPLE, back=_BACK),
    Action(f"{_MEMBER}/reset", "reset_second_factor", reset_factor, Permission.PEOPLE, back=_BACK),
    Action("people", "invite_host_person", invite_host, Permission.ADMINISTER),
    Action(
        "people/{person_id}/password",
        "reset_password",
        reset_password,
        Permission.ADMINISTER,
        back="people/{person_id}",
    ),
    Action(
        "people/{person_id}/factor",
        "reset_factor_of_host",
        reset_factor_of_host,
        Permission.ADMINISTER,
        back="people/{person_id}",
    ),
    Action(
        "people/{person_id}/deactivate",
        "deactivate_person",
        deactivate,
        Permission.ADMINISTER,
        back="people/{person_id}",
    ),
    Action("people/{person_id}/keys", "revoke_keys_of", revoke_keys, Permission.ADMINISTER, back="people/{person_id}"),
)
PANELS = (Panel("merchant", panel, Permission.VIEW, 25),)
