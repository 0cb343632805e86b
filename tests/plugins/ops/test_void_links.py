"""Links of invitations and password resets: a later decision about the person voids the earlier links."""

from mpesa_gateway.ops_contract import MerchantRole, Role
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.invitations import Invitations
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People
from mpesa_gateway_ops.tables import InvitationRow
from tests.browsing import PASSWORD, Browser
from tests.plugins.ops.conftest import OpsSite


async def test_password_reset_voids_the_earlier_link_of_the_same_person(ops_site: OpsSite) -> None:
    people, invitations = ops_site.gateway.port(People), ops_site.gateway.port(Invitations)
    person = await people.find("viola@shop.example")
    first = await invitations.reset_password(person, actor="test")
    second = await invitations.reset_password(person, actor="test")
    async with Browser(ops_site.url) as browser:
        used = await browser.send(f"/join/{second.reveal()}", {"password": "my own new password"})
        assert "Done" in used.words, used.words
        stolen = await browser.send(f"/join/{first.reveal()}", {"password": "of somebody else!"})
        assert stolen.status in {404, 409, 410}, stolen.words
        assert (await browser.sign_in("viola")).status == 401


async def test_invitation_of_the_host_replaces_the_earlier_one(ops_site: OpsSite) -> None:
    people, invitations = ops_site.gateway.port(People), ops_site.gateway.port(Invitations)
    admin = await people.find("amina@shop.example")
    actor = f"person:{admin.person_id}"
    wrong = await invitations.invite("new@host.example", actor=actor, role=Role.ADMIN)
    right = await invitations.invite("new@host.example", actor=actor, role=Role.VIEWER)
    async with Browser(ops_site.url) as browser:
        await browser.send(f"/join/{right.reveal()}", {"password": PASSWORD.reveal(), "name": "New"})
        assert (await people.find("new@host.example")).role is Role.VIEWER
        await browser.send(f"/join/{wrong.reveal()}", {"password": PASSWORD.reveal()})
    assert (await people.find("new@host.example")).role is Role.VIEWER


async def test_removal_of_a_member_voids_an_unused_invitation(ops_site: OpsSite) -> None:
    """A member was invited again while a member; the link brings the person back after the removal."""
    people, invitations = ops_site.gateway.port(People), ops_site.gateway.port(Invitations)
    memberships = ops_site.gateway.port(Memberships)
    person = await people.create("left@shop.example", PASSWORD, role=None, actor="test")
    owner = await people.create("boss@shop.example", PASSWORD, role=None, actor="test")
    await memberships.add(ops_site.merchant_id, owner.person_id, MerchantRole.OWNER, actor="test")
    await memberships.add(ops_site.merchant_id, person.person_id, MerchantRole.CASHIER, actor="test")
    link = await invitations.invite(
        "left@shop.example",
        actor=f"person:{owner.person_id}",
        merchant_id=ops_site.merchant_id,
        role=MerchantRole.MANAGER,
    )
    await memberships.remove(ops_site.merchant_id, person.person_id, actor=f"person:{owner.person_id}")
    async with Browser(ops_site.url) as browser:
        await browser.send(f"/join/{link.reveal()}", {"password": PASSWORD.reveal()})
    assert await memberships.role_of(ops_site.merchant_id, person.person_id) is None


async def _links(site: OpsSite, email: str) -> int:
    count: int = await site.gateway.db.run(InvitationRow.count().where(InvitationRow.email == email))
    return count


async def test_changed_password_voids_reset_links(ops_site: OpsSite) -> None:
    people, invitations = ops_site.gateway.port(People), ops_site.gateway.port(Invitations)
    person = await people.find("viola@shop.example")
    new = Secret("another good password")
    await invitations.reset_password(person, actor="test")
    await people.set_password(person.email, new, actor="test")
    assert await _links(ops_site, person.email) == 0
    await invitations.reset_password(person, actor="test")
    await people.change_password(person.person_id, new, PASSWORD, address="127.0.0.1", session="")
    assert await _links(ops_site, person.email) == 0


async def test_deactivation_voids_all_links_of_the_person(ops_site: OpsSite) -> None:
    people, invitations = ops_site.gateway.port(People), ops_site.gateway.port(Invitations)
    person = await people.find("viola@shop.example")
    await invitations.reset_password(person, actor="test")
    await invitations.invite(person.email, actor="test", role=Role.ADMIN)
    await invitations.invite(person.email, actor="test", merchant_id=ops_site.merchant_id, role=MerchantRole.OWNER)
    assert await _links(ops_site, person.email) == 3
    await ops_site.gateway.port(Memberships).deactivate(person.person_id, actor="test")
    assert await _links(ops_site, person.email) == 0


async def test_role_of_the_host_voids_its_open_invitations_and_keeps_those_of_merchants(ops_site: OpsSite) -> None:
    people, invitations = ops_site.gateway.port(People), ops_site.gateway.port(Invitations)
    person = await people.find("viola@shop.example")
    await invitations.invite(person.email, actor="test", role=Role.ADMIN)
    await invitations.invite(person.email, actor="test", merchant_id=ops_site.merchant_id, role=MerchantRole.OWNER)
    await people.set_role(person.email, None, actor="test")
    assert await _links(ops_site, person.email) == 1
