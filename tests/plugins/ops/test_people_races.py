"""Protects people under races: one owner stays, a link and a code work once."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pyotp
import pytest
from pyotp.totp import TOTP

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.errors import ApiError, Conflict, InvalidFields, TooManyFailures
from mpesa_gateway.permissions import MerchantRole, Role
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.serving import running_gateway
from mpesa_gateway_ops.errors import InvalidInvitation, NotAllowed
from mpesa_gateway_ops.invitations import Invitations
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People, Person
from mpesa_gateway_ops.second_factors import SecondFactors, matching_step
from mpesa_gateway_ops.sessions import Sessions
from tests.browsing import PASSWORD

ADDRESS = "203.0.113.7"


@pytest.fixture
def clock() -> SetClock:
    return SetClock(datetime.now(UTC))


@pytest.fixture
async def gateway(values: dict[str, Any], clock: SetClock) -> AsyncGenerator[Gateway]:
    """A gateway with the ops plugin only."""
    values.pop("simulator", None)
    values |= {"plugins": ["ops"], "worker": {"in_process": False}}
    values["limits"] = {"auth_failures": 200, "account_failures": 200}
    async with running_gateway(values, clock=clock) as (gateway, _):
        yield gateway


async def members(gateway: Gateway, *roles: MerchantRole) -> tuple[str, list[Person]]:
    """Create a merchant with a member of each role."""
    merchant = await gateway.merchants.create("Duka", actor="test")
    persons: list[Person] = []
    for number, role in enumerate(roles):
        person = await gateway.port(People).create(f"{role}{number}@duka.example", PASSWORD, role=None, actor="test")
        await gateway.port(Memberships).add(merchant.merchant_id, person.person_id, role, actor="test")
        persons.append(person)
    return merchant.merchant_id, persons


async def outcomes(*work: Any) -> list[str]:
    """Run all at once; return "done" or the class of the error, sorted."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for each in found:
        assert not isinstance(each, Exception) or isinstance(each, ApiError), repr(each)
    return sorted("done" if not isinstance(each, Exception) else type(each).__name__ for each in found)


# -- owners -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["remove", "demote", "deactivate"])
async def test_two_owners_ending_each_other_at_once_leave_one(gateway: Gateway, act: str) -> None:
    memberships = gateway.port(Memberships)

    def end(merchant_id: str, one: Person, by: Person) -> Any:
        actor = f"person:{by.person_id}"
        if act == "remove":
            return memberships.remove(merchant_id, one.person_id, actor=actor)
        if act == "demote":
            return memberships.set_role(merchant_id, one.person_id, MerchantRole.VIEWER, actor=actor)
        return memberships.deactivate(one.person_id, actor=actor)

    for _ in range(10):
        merchant_id, (first, second) = await members(gateway, MerchantRole.OWNER, MerchantRole.OWNER)
        found = await outcomes(end(merchant_id, first, second), end(merchant_id, second, first))
        assert found in (["Conflict", "done"], ["NotAllowed", "done"]), found
        owners = [one for one in await memberships.list(merchant_id) if one.role is MerchantRole.OWNER]
        assert len(owners) == 1
        await gateway.db.execute("UPDATE person SET email = person_id::text || '@gone.example'")


async def test_last_owner_cannot_leave_be_removed_demoted_or_deactivated(gateway: Gateway) -> None:
    memberships = gateway.port(Memberships)
    merchant_id, (owner, _) = await members(gateway, MerchantRole.OWNER, MerchantRole.MANAGER)
    for actor in (f"person:{owner.person_id}", "cli:root"):
        with pytest.raises(Conflict, match="last owner"):
            await memberships.remove(merchant_id, owner.person_id, actor=actor)
        with pytest.raises(Conflict, match="last owner"):
            await memberships.set_role(merchant_id, owner.person_id, MerchantRole.MANAGER, actor=actor)
        with pytest.raises(Conflict, match="only owner of Duka"):
            await memberships.deactivate(owner.person_id, actor=actor)
    for sql in (
        "DELETE FROM membership WHERE role = 'owner'",
        "UPDATE membership SET role = 'viewer' WHERE role = 'owner'",
    ):
        with pytest.raises(asyncpg.RestrictViolationError, match="the last owner of a merchant stays"):
            await gateway.db.execute(sql)


async def test_removed_owner_cannot_act_on_members(gateway: Gateway) -> None:
    memberships = gateway.port(Memberships)
    merchant_id, (owner, gone) = await members(gateway, MerchantRole.OWNER, MerchantRole.OWNER)
    invitations = gateway.port(Invitations)
    kept = await invitations.invite(
        "again@duka.example", actor=f"person:{gone.person_id}", merchant_id=merchant_id, role=MerchantRole.OWNER
    )
    await memberships.remove(merchant_id, gone.person_id, actor=f"person:{owner.person_id}")
    with pytest.raises(NotAllowed):
        await memberships.set_role(merchant_id, owner.person_id, MerchantRole.VIEWER, actor=f"person:{gone.person_id}")
    # The link that the removed owner kept is void.
    with pytest.raises(NotAllowed):
        await invitations.accept(kept, name="", password=PASSWORD, address=ADDRESS)
    assert [one.email for one in await memberships.list(merchant_id)] == [owner.email]


# -- invitations ------------------------------------------------------------------------------------------------------


async def test_invitation_used_twice_at_once_makes_one_person(gateway: Gateway) -> None:
    merchant_id, _ = await members(gateway, MerchantRole.OWNER)
    invitations = gateway.port(Invitations)
    for number in range(5):
        email = f"new{number}@duka.example"
        token = await invitations.invite(email, actor="test", merchant_id=merchant_id, role=MerchantRole.CASHIER)
        found = await outcomes(
            *(invitations.accept(token, name="", password=PASSWORD, address=ADDRESS) for _ in range(3))
        )
        assert found.count("done") == 1, found
        assert {*found} <= {"done", "InvalidInvitation", "Conflict"}
        with pytest.raises(InvalidInvitation, match="was used"):
            await invitations.accept(token, name="", password=PASSWORD, address=ADDRESS)
        assert [one.email for one in await gateway.port(Memberships).list(merchant_id)].count(email) == 1


async def test_invitation_expires_and_is_replaced_by_a_later_one(gateway: Gateway, clock: SetClock) -> None:
    merchant_id, _ = await members(gateway, MerchantRole.OWNER)
    invitations = gateway.port(Invitations)

    async def invite() -> Secret:
        return await invitations.invite(
            "New@Duka.example", actor="test", merchant_id=merchant_id, role=MerchantRole.VIEWER
        )

    first, second = await invite(), await invite()
    with pytest.raises(InvalidInvitation):
        await invitations.find(first)
    assert (await invitations.find(second)).email == "new@duka.example"
    clock.advance(timedelta(hours=72))
    with pytest.raises(InvalidInvitation):
        await invitations.accept(second, name="", password=PASSWORD, address=ADDRESS)


async def test_invitation_of_a_known_address_takes_its_password(gateway: Gateway) -> None:
    merchant_id, _ = await members(gateway, MerchantRole.OWNER)
    people, invitations = gateway.port(People), gateway.port(Invitations)
    known = await people.create("known@duka.example", PASSWORD, role=None, actor="test")
    token = await invitations.invite(known.email, actor="test", merchant_id=merchant_id, role=MerchantRole.VIEWER)
    with pytest.raises(InvalidFields, match="password"):
        await invitations.accept(token, name="", password=Secret("another password"), address=ADDRESS)
    assert await invitations.accept(token, name="", password=PASSWORD, address=ADDRESS) == known.email
    assert await gateway.port(Memberships).role_of(merchant_id, known.person_id) is MerchantRole.VIEWER


async def test_password_reset_ends_all_sessions_and_works_once(gateway: Gateway) -> None:
    people, sessions, invitations = gateway.port(People), gateway.port(Sessions), gateway.port(Invitations)
    person = await people.create("amina@duka.example", PASSWORD, role=Role.VIEWER, actor="test")
    session = (await people.sign_in(person.email, PASSWORD, ADDRESS)).session
    token = await invitations.reset_password(person, actor="test")
    await invitations.accept(token, name="", password=Secret("a newer password"), address=ADDRESS)
    assert await sessions.find(session, is_used=True) is None
    with pytest.raises(InvalidInvitation):
        await invitations.accept(token, name="", password=PASSWORD, address=ADDRESS)
    assert await people.knows_password(person.email, Secret("a newer password"), ADDRESS)


# -- second factor ----------------------------------------------------------------------------------------------------


async def enrolled(
    gateway: Gateway, clock: SetClock, email: str = "amina@duka.example", typed: str = "{}{}"
) -> tuple[Person, TOTP, list[str]]:
    """Create a person of the host with a second factor."""
    people, factors = gateway.port(People), gateway.port(SecondFactors)
    person = await people.create(email, PASSWORD, role=Role.ADMIN, actor="test")
    session = (await people.sign_in(email, PASSWORD, ADDRESS)).session
    await factors.offer(person.person_id)
    address = await factors.offered(person.person_id)
    assert address is not None
    totp = pyotp.parse_uri(address)
    assert isinstance(totp, TOTP)
    opened = await gateway.port(Sessions).find(session, is_used=False)
    assert opened is not None
    code = typed.format(totp.at(clock.now())[:3], totp.at(clock.now())[3:])
    codes = await factors.confirm(person.person_id, code, session=opened.owner)
    clock.advance(timedelta(minutes=2))
    return person, totp, codes


@pytest.mark.parametrize("typed", ["{} {}", " {}{} ", "{}-{}", "{}\u00a0{}"])
async def test_code_typed_as_apps_show_it_is_accepted_at_set_up_and_sign_in(
    gateway: Gateway, clock: SetClock, typed: str
) -> None:
    person, totp, _ = await enrolled(gateway, clock, typed=typed)
    code = totp.at(clock.now())
    assert await gateway.port(SecondFactors).verify(person.person_id, typed.format(code[:3], code[3:]), ADDRESS)


async def test_code_is_accepted_once_also_at_once(gateway: Gateway, clock: SetClock) -> None:
    factors = gateway.port(SecondFactors)
    person, totp, _ = await enrolled(gateway, clock)
    code = totp.at(clock.now())
    found = await asyncio.gather(*(factors.verify(person.person_id, code, ADDRESS) for _ in range(8)))
    assert found.count(True) == 1
    # An earlier code within the drift is void after a later one.
    assert not await factors.verify(person.person_id, totp.at(clock.now() - timedelta(seconds=30)), ADDRESS)
    clock.advance(timedelta(seconds=30))
    assert await factors.verify(person.person_id, totp.at(clock.now()), ADDRESS)


@pytest.mark.parametrize(("seconds", "is_accepted"), [(-60, False), (-30, True), (0, True), (30, True), (60, False)])
def test_code_of_a_clock_that_is_one_step_wrong_is_accepted(seconds: int, is_accepted: bool) -> None:
    now, secret = datetime(2026, 11, 30, 12, 0, 10, tzinfo=UTC), pyotp.random_base32()
    code = TOTP(secret).at(now + timedelta(seconds=seconds))
    step = matching_step(secret, code, now)
    assert step == (int(now.timestamp()) + seconds) // 30 if is_accepted else step is None


async def test_recovery_code_is_accepted_once_also_at_once(gateway: Gateway, clock: SetClock) -> None:
    factors = gateway.port(SecondFactors)
    person, _, codes = await enrolled(gateway, clock)
    assert len({*codes}) == 10
    found = await asyncio.gather(*(factors.verify(person.person_id, codes[0], ADDRESS) for _ in range(5)))
    assert found.count(True) == 1
    assert await factors.verify(person.person_id, codes[1].upper().replace("-", " "), ADDRESS)
    assert await factors.count_codes(person.person_id) == 8
    stored = await gateway.db.fetch("SELECT digest FROM person_recovery_code")
    assert all(code.replace("-", "").encode() not in row["digest"] for code in codes for row in stored)


async def test_twenty_wrong_codes_leave_the_recovery_codes_only(gateway: Gateway, clock: SetClock) -> None:
    factors = gateway.port(SecondFactors)
    person, totp, codes = await enrolled(gateway, clock)
    wrong = await asyncio.gather(*(factors.verify(person.person_id, "000000", ADDRESS) for _ in range(20)))
    assert wrong == [False] * 20
    assert not await factors.verify(person.person_id, totp.at(clock.now()), ADDRESS)
    assert await factors.verify(person.person_id, codes[0], ADDRESS)
    assert await factors.verify(person.person_id, totp.at(clock.now()), ADDRESS)


async def test_wrong_codes_are_limited_by_account_and_address(gateway: Gateway, clock: SetClock) -> None:
    factors = gateway.port(SecondFactors)
    person, totp, _ = await enrolled(gateway, clock)
    gateway.limits._account_failures = 5  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage] - a lower limit
    for number in range(5):
        assert not await factors.verify(person.person_id, "000000", f"203.0.113.{number}")
    with pytest.raises(TooManyFailures):
        await factors.verify(person.person_id, totp.at(clock.now()), "198.51.100.1")


async def test_session_waits_for_its_second_factor(gateway: Gateway, clock: SetClock) -> None:
    people, sessions = gateway.port(People), gateway.port(Sessions)
    person, totp, _ = await enrolled(gateway, clock)
    found = await people.sign_in(person.email, PASSWORD, ADDRESS)
    assert found.needs_code
    assert await sessions.find(found.session, is_used=True) is None
    assert await sessions.find_unverified(found.session) == person.person_id
    assert await gateway.port(SecondFactors).verify(person.person_id, totp.at(clock.now()), ADDRESS)
    renewed = await sessions.verify_waiting(found.session)
    assert renewed is not None
    session = await sessions.find(renewed, is_used=True)
    assert session is not None
    assert session.is_fresh
    clock.advance(timedelta(minutes=11))
    session = await sessions.find(renewed, is_used=True)
    assert session is not None
    assert not session.is_fresh


async def test_owner_resets_a_lost_second_factor_of_its_own_members_only(gateway: Gateway, clock: SetClock) -> None:
    factors, memberships = gateway.port(SecondFactors), gateway.port(Memberships)
    person, _, _ = await enrolled(gateway, clock)
    merchant_id, (owner, other) = await members(gateway, MerchantRole.OWNER, MerchantRole.OWNER)
    await memberships.add(merchant_id, person.person_id, MerchantRole.APPROVER, actor="test")
    actor = f"person:{owner.person_id}"
    with pytest.raises(NotAllowed, match="ask the host"):
        await factors.reset(person.person_id, actor=actor)
    await gateway.port(People).set_role(person.email, None, actor="test")
    with pytest.raises(NotAllowed):
        await factors.reset(person.person_id, actor=f"person:{person.person_id}")
    await factors.reset(person.person_id, actor=actor)
    entry = (await gateway.audit.page(1, None, "person.second_factor_reset", None)).rows[0]
    assert (entry.actor, entry.subject_id) == (actor, person.person_id)
    assert not (await gateway.port(People).find(person.person_id)).has_factor
    assert await factors.count_codes(person.person_id) == 0
    assert other.email
