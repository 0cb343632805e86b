"""The audit log lets its beginning go and stays provable: what goes is announced, and a checkpoint is left behind."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.retention import Retention
from mpesa_gateway.security.audit import BrokenChain
from tests.constraints import refusals

pytestmark = pytest.mark.as_owner

THEN = datetime(2015, 1, 1, tzinfo=UTC)
OF_THEN = "UPDATE audit_entry SET recorded_at = '2015-01-01T00:00:00Z'"


@pytest.fixture
async def gateway(values: dict[str, Any]) -> AsyncGenerator[Gateway]:
    """A gateway with a log of ten old entries, and two of today."""
    values = {name: values[name] for name in values if name != "simulator"}
    values |= {"plugins": [], "worker": {"in_process": False}, "retention": {"pause": 0}}
    clock = SetClock(THEN)
    async with Gateway(GatewayConfig.from_values(values), clock=clock).running() as gateway:
        await gateway.db.execute(_WIPE)
        for number in range(10):
            await gateway.audit.record("old", merchant_id=None, actor="test", detail={"number": number})
        await behind_the_triggers(gateway, "UPDATE audit_entry SET recorded_at = at")
        clock.advance(timedelta(days=3000))
        for number in range(2):
            await gateway.audit.record("new", merchant_id=None, actor="test", detail={"number": number})
        yield gateway


_WIPE = "SET session_replication_role = replica; DELETE FROM audit_entry; RESET session_replication_role"
"""What the start has written, so that the numbers are ours."""


async def numbers(gateway: Gateway) -> list[int]:
    """The entries that are there."""
    return [row["number"] for row in await gateway.db.fetch("SELECT number FROM audit_entry ORDER BY number")]


async def behind_the_triggers(gateway: Gateway, *statements: str) -> None:
    """What somebody could do who may do anything in Postgres."""
    async with gateway.db.transaction():
        for statement in ("SET LOCAL session_replication_role = replica", *statements):
            await gateway.db.execute(statement)


async def test_a_number_in_a_persons_note_is_masked_because_nothing_is_ever_erased_here(gateway: Gateway) -> None:
    detail = {"note": "She called from 0711000001", "each": ["+254711000001", {"to": "254711000001"}], "days": 3}
    await gateway.audit.record("noted", merchant_id=None, actor="test", detail=detail)
    (entry,) = (await gateway.audit.page(1, None, "noted", None)).rows
    assert entry.detail == {
        "note": "She called from 07****001",
        "each": ["2547****001", {"to": "2547****001"}],
        "days": 3,
    }
    assert await gateway.audit.verify() == 13


async def test_what_is_old_goes_in_batches_and_the_rest_is_still_proved(gateway: Gateway) -> None:
    for number in range(10, 1010):
        await gateway.audit.record("old", merchant_id=None, actor="test", detail={"number": number})
    await behind_the_triggers(gateway, OF_THEN)
    for number in range(2):
        await gateway.audit.record("new", merchant_id=None, actor="test", detail={"number": number})
    assert await gateway.audit.verify() == 1014
    waited: list[int] = []

    async def sleep(_: float) -> None:
        # In the middle of it the chain holds as well.
        waited.append(await gateway.audit.verify())

    counts = await Retention(gateway, sleep).delete_expired()
    assert (counts["audit entries"], waited) == (1012, [515, 15, 3])
    assert await numbers(gateway) == [1013, 1014, 1015]
    (entry,) = (await gateway.audit.page(10, None, "audit.cut", None)).rows
    assert (entry.actor, entry.detail["through"], entry.detail["days"]) == ("retention", 1012, 2557)
    # Nothing more is old: nothing is announced, nothing goes.
    assert (await Retention(gateway, sleep).delete_expired())["audit entries"] == 0
    assert await numbers(gateway) == [1013, 1014, 1015]


async def test_only_an_unbroken_beginning_goes(gateway: Gateway) -> None:
    await behind_the_triggers(gateway, "UPDATE audit_entry SET recorded_at = now() WHERE number = 4")
    await gateway.audit.announce_cut()
    assert await gateway.audit.cut() == 3
    assert (await numbers(gateway))[0] == 4


async def test_what_was_announced_by_a_shorter_retention_is_not_cut_by_a_longer_one(gateway: Gateway) -> None:
    await gateway.audit.announce_cut()
    await gateway.db.execute("UPDATE audit_policy SET keep_days = 36500")
    assert await gateway.audit.cut() == 0
    await gateway.db.execute("UPDATE audit_policy SET keep_days = 0")
    assert await gateway.audit.cut() == 0
    assert len(await numbers(gateway)) == 13
    await gateway.db.execute("UPDATE audit_policy SET keep_days = 2557")
    assert (await Retention(gateway).delete_expired())["audit entries"] == 10
    assert await gateway.audit.verify() == 3
    assert len((await gateway.audit.page(10, None, "audit.cut", None)).rows) == 1


async def test_a_log_of_which_all_was_cut_goes_on_where_it_was(gateway: Gateway) -> None:
    await behind_the_triggers(gateway, OF_THEN)
    await gateway.audit.announce_cut()
    await behind_the_triggers(gateway, OF_THEN)
    await gateway.audit.announce_cut()
    assert await gateway.audit.cut() == 13
    assert await numbers(gateway) == [14]
    await gateway.audit.record("new", merchant_id=None, actor="test")
    assert await gateway.audit.verify() == 2


async def test_retention_without_a_policy_cuts_nothing_of_the_log_and_ends(gateway: Gateway) -> None:
    await gateway.db.execute("DELETE FROM audit_policy")
    assert await gateway.audit.keep_days() is None
    assert "audit entries" not in await Retention(gateway).delete_expired()
    assert (await numbers(gateway))[0] == 1
    assert await gateway.audit.verify() == 12


async def test_nothing_goes_that_was_not_announced(gateway: Gateway) -> None:
    assert await gateway.audit.cut() == 0
    assert len(await numbers(gateway)) == 12


_MOVED = """
UPDATE audit_checkpoint SET number = 11, digest = previous_digest FROM audit_entry WHERE audit_entry.number = 12
"""


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["DELETE FROM audit_entry WHERE number = 11"], "entry 11 was changed or removed"),
        (["UPDATE audit_entry SET detail = '{}' WHERE number = 12"], "entry 12 was changed or removed"),
        (
            ["DELETE FROM audit_entry WHERE number = 11", _MOVED],
            "up to 11 are missing, and no entry announces",
        ),
        (["UPDATE audit_checkpoint SET digest = sha256('a')"], "entry 10 is not the one"),
        (["DELETE FROM audit_checkpoint"], "entry 1 was changed or removed"),
        (["DELETE FROM audit_entry WHERE action = 'audit.cut'"], "up to 10 are missing, and no entry announces"),
    ],
)
async def test_what_is_missing_otherwise_shows(gateway: Gateway, statements: list[str], says: str) -> None:
    await Retention(gateway).delete_expired()
    await behind_the_triggers(gateway, *statements)
    with pytest.raises(BrokenChain, match=says):
        await gateway.audit.verify()


async def test_a_changed_entry_shows_while_it_waits_to_go(gateway: Gateway) -> None:
    await gateway.audit.announce_cut()
    rechained = (
        "UPDATE audit_entry SET digest = sha256('a') WHERE number = 10",
        "UPDATE audit_entry SET previous_digest = sha256('a') WHERE number = 11",
    )
    await behind_the_triggers(gateway, *rechained)
    with pytest.raises(BrokenChain, match="entry 10 was changed"):
        await gateway.audit.verify()


async def test_only_the_function_lets_go(gateway: Gateway) -> None:
    await gateway.audit.announce_cut()
    await gateway.audit.cut()
    announced = """
    INSERT INTO audit_entry (number, entry_id, at, actor, action, detail, previous_digest, digest)
    SELECT 14, 'aud_14', '2015-01-01', 'x', 'audit.cut', '{"through": 12}', digest, digest FROM audit_entry LIMIT 1
    """
    cases = {
        "audit_entry_append_only": ["UPDATE audit_entry SET actor = 'nobody'"],
        "audit_entry_not_deleted": ["DELETE FROM audit_entry WHERE number < 12", "DELETE FROM audit_entry"],
        "audit_entry_comes": [announced],
        "audit_entry_never_emptied": ["TRUNCATE audit_entry"],
        "audit_checkpoint_not_written": [
            "UPDATE audit_checkpoint SET number = 9",
            "DELETE FROM audit_checkpoint",
            "INSERT INTO audit_checkpoint (is_the_only_one, number, digest) VALUES (false, 9, sha256('a'))",
        ],
        "audit_checkpoint_never_emptied": ["TRUNCATE audit_checkpoint"],
    }
    assert await refusals(gateway.db, cases) == {}
