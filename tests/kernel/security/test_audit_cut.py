"""Protects the cut of the audit log: it is announced, leaves a checkpoint, and the rest stays provable."""

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
    """Yield a gateway with a log of ten old entries, and two of today."""
    values = {name: values[name] for name in values if name != "simulator"}
    values |= {"plugins": [], "worker": {"in_process": False}, "retention": {"pause": 0}}
    clock = SetClock(THEN)
    async with Gateway(GatewayConfig.from_values(values), clock=clock).running() as gateway:
        await gateway.db.execute(_WIPE)
        for number in range(10):
            await gateway.audit.record("old", merchant_id=None, actor="test", detail={"number": number})
        await without_triggers(gateway, "UPDATE audit_entry SET recorded_at = at")
        clock.advance(timedelta(days=3000))
        for number in range(2):
            await gateway.audit.record("new", merchant_id=None, actor="test", detail={"number": number})
        yield gateway


_WIPE = "SET session_replication_role = replica; DELETE FROM audit_entry; RESET session_replication_role"
"""Deletes the entries of the start, so that numbers begin with the test's."""


async def numbers(gateway: Gateway) -> list[int]:
    """Return the numbers of the stored entries."""
    return [row["number"] for row in await gateway.db.fetch("SELECT number FROM audit_entry ORDER BY number")]


async def without_triggers(gateway: Gateway, *statements: str) -> None:
    """Run statements without triggers, as a superuser could."""
    async with gateway.db.transaction():
        for statement in ("SET LOCAL session_replication_role = replica", *statements):
            await gateway.db.execute(statement)


async def test_audit_record_masks_phone_numbers_because_entries_are_never_erased(gateway: Gateway) -> None:
    detail = {"note": "She called from 0711000001", "each": ["+254711000001", {"to": "254711000001"}], "days": 3}
    await gateway.audit.record("noted", merchant_id=None, actor="test", detail=detail)
    (entry,) = (await gateway.audit.page(1, None, "noted", None)).rows
    assert entry.detail == {
        "note": "She called from 07****001",
        "each": ["2547****001", {"to": "2547****001"}],
        "days": 3,
    }
    assert await gateway.audit.verify() == 13


async def test_audit_cut_runs_in_batches_and_the_rest_stays_provable(gateway: Gateway) -> None:
    for number in range(10, 1010):
        await gateway.audit.record("old", merchant_id=None, actor="test", detail={"number": number})
    await without_triggers(gateway, OF_THEN)
    for number in range(2):
        await gateway.audit.record("new", merchant_id=None, actor="test", detail={"number": number})
    assert await gateway.audit.verify() == 1014
    waited: list[int] = []

    async def sleep(_: float) -> None:
        # Between two batches the chain is unbroken.
        waited.append(await gateway.audit.verify())

    counts = await Retention(gateway, sleep).delete_expired()
    assert (counts["audit entries"], waited) == (1012, [515, 15, 3])
    assert await numbers(gateway) == [1013, 1014, 1015]
    (entry,) = (await gateway.audit.page(10, None, "audit.cut", None)).rows
    assert (entry.actor, entry.detail["through"], entry.detail["days"]) == ("retention", 1012, 2557)
    # No other entry is old: nothing is announced, nothing is deleted.
    assert (await Retention(gateway, sleep).delete_expired())["audit entries"] == 0
    assert await numbers(gateway) == [1013, 1014, 1015]


async def test_audit_cut_deletes_only_an_unbroken_beginning(gateway: Gateway) -> None:
    await without_triggers(gateway, "UPDATE audit_entry SET recorded_at = now() WHERE number = 4")
    await gateway.audit.announce_cut()
    assert await gateway.audit.cut() == 3
    assert (await numbers(gateway))[0] == 4


async def test_audit_cut_announced_by_a_shorter_retention_waits_for_the_longer_one(gateway: Gateway) -> None:
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


async def test_audit_log_after_a_cut_of_all_entries_continues(gateway: Gateway) -> None:
    await without_triggers(gateway, OF_THEN)
    await gateway.audit.announce_cut()
    await without_triggers(gateway, OF_THEN)
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


async def test_audit_cut_without_an_announcement_deletes_nothing(gateway: Gateway) -> None:
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
        (["UPDATE audit_checkpoint SET digest = sha256('a')"], "entry 10 is not the last one of the announced cut"),
        (["DELETE FROM audit_checkpoint"], "entry 1 was changed or removed"),
        (["DELETE FROM audit_entry WHERE action = 'audit.cut'"], "up to 10 are missing, and no entry announces"),
    ],
)
async def test_audit_verify_finds_entries_missing_without_a_cut(
    gateway: Gateway, statements: list[str], says: str
) -> None:
    await Retention(gateway).delete_expired()
    await without_triggers(gateway, *statements)
    with pytest.raises(BrokenChain, match=says):
        await gateway.audit.verify()


async def test_audit_verify_finds_a_changed_entry_that_waits_for_the_cut(gateway: Gateway) -> None:
    await gateway.audit.announce_cut()
    rechained = (
        "UPDATE audit_entry SET digest = sha256('a') WHERE number = 10",
        "UPDATE audit_entry SET previous_digest = sha256('a') WHERE number = 11",
    )
    await without_triggers(gateway, *rechained)
    with pytest.raises(BrokenChain, match="entry 10 was changed"):
        await gateway.audit.verify()


async def test_audit_entries_are_deleted_only_by_the_cut_function(gateway: Gateway) -> None:
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
