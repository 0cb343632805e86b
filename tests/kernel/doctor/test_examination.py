"""Protects the doctor's run as a whole: order, merchants, and that a failing check does not stop the others."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, ok, problem
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.doctor.run import DoctorReport, examine
from mpesa_gateway.errors import NotFound
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.serving import running_gateway, shop
from tests.conftest import Harness


async def examined(gateway: Gateway, **wishes: Any) -> list[DoctorReport]:
    """Return all results."""
    return [seen async for seen in examine(gateway, **wishes)]


def problems(seen: list[DoctorReport]) -> set[str]:
    """Return the names of the problems."""
    return {one.name for one in seen if one.level is Level.PROBLEM}


@pytest.mark.usefixtures("initiated")
async def test_examine_working_gateway_has_no_problem_and_keeps_running(harness: Harness) -> None:
    made = (await harness.api.pay("254711000001", key="a")).data
    await harness.api.settled(made["id"], "completed")
    seen = await examined(harness.gateway)
    assert problems(seen) == set()
    titles = list(dict.fromkeys(one.title for one in seen))
    assert titles[:4] == ["Postgres", "Settings", "Valkey", "Workers"]
    assert titles[-1].startswith("Test shop (mer_")
    assert {one.merchant_id for one in seen if one.title == titles[-1]} == {made["merchant_id"]}
    # The examination neither stopped the gateway nor unbound its tables.
    assert harness.gateway.is_running
    assert (await harness.api.pay("254711000002", key="b")).status == 201


async def test_examine_for_live_reports_missing_live_settings(harness: Harness) -> None:
    found = problems(await examined(harness.gateway, is_live=True))
    assert {"address.https", "address.public", "certificate.live", "settings.daraja"} <= found


async def test_examine_with_a_live_merchant_checks_for_live(harness: Harness) -> None:
    other = await harness.gateway.merchants.create("Live", actor="test")
    await harness.gateway.merchants.set_envs(other.merchant_id, ["live"])
    assert "address.https" in problems(await examined(harness.gateway))


async def test_examine_covers_the_named_merchants_or_all_active_ones(harness: Harness) -> None:
    other = await harness.gateway.merchants.create("Other", actor="test")
    gone = await harness.gateway.merchants.create("Gone", actor="test")
    await harness.gateway.merchants.deactivate(gone.merchant_id, actor="test")

    def merchants(seen: list[DoctorReport]) -> list[str]:
        return list(dict.fromkeys(one.title.partition(" (")[0] for one in seen if one.merchant_id))

    assert merchants(await examined(harness.gateway)) == ["Test shop", "Other"]
    assert merchants(await examined(harness.gateway, merchant_ids=[other.merchant_id])) == ["Other"]
    assert merchants(await examined(harness.gateway, merchant_ids=[gone.merchant_id])) == ["Gone"]
    with pytest.raises(NotFound, match="mer_unknown"):
        await examined(harness.gateway, merchant_ids=["mer_unknown"])


async def test_examine_without_postgres_runs_the_checks_that_need_none(values: dict[str, Any]) -> None:
    config = GatewayConfig.from_values(values)
    nowhere = msgspec.structs.replace(config.database, url=Secret("postgresql://mpesa:secret@127.0.0.1:9/shop"))
    seen = await examined(Gateway(msgspec.structs.replace(config, database=nowhere)))
    assert problems(seen) == {"postgres.reachable"}
    assert [one.name for one in seen if one.name.startswith(("settings.r", "valkey.r", "certificate"))] == [
        "settings.readable",
        "valkey.reachable",
        "certificate.sandbox",
    ]
    assert seen[-1].name == "doctor.stopped"
    assert "secret" not in str(seen)


async def test_examine_with_missing_migrations_does_not_apply_them(values: dict[str, Any]) -> None:
    gateway = Gateway(GatewayConfig.from_values(values))
    assert problems(await examined(gateway)) == {"postgres.migrations"}
    assert problems(await examined(gateway)) == {"postgres.migrations"}


async def test_examine_without_valkey_skips_the_workers(harness: Harness) -> None:
    config = harness.gateway.config
    away = msgspec.structs.replace(config.valkey, url=Secret("valkey://127.0.0.1:9/0"))
    harness.gateway.config = msgspec.structs.replace(config, valkey=away)
    seen = await examined(harness.gateway)
    assert problems(seen) == {"valkey.reachable"}
    assert "Workers" not in {one.title for one in seen}


async def test_examine_with_another_master_key_reports_that_the_gateway_does_not_start(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"worker": {"in_process": False}}):
        pass
    values["security"] = {"master_key": generate()}
    seen = await examined(Gateway(GatewayConfig.from_values(values)))
    assert problems(seen) == {"gateway.starts"}
    assert "master key is not the one" in next(one.text for one in seen if one.name == "gateway.starts")


async def fine(_: Runtime, __: CheckContext) -> AsyncIterator[CheckResult]:
    yield ok("own.fine", "it is")


async def breaks(_: Runtime, __: CheckContext) -> AsyncIterator[CheckResult]:
    """Report one result, then fail."""
    yield problem("own.seen", "call +254708374149 about it", "ring 0708374149")
    raise LookupError("254708374149")


async def greets(_: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    """Report each merchant."""
    yield ok("own.greeting", f"hello {examination.require_merchant.name}")


OWN = Plugin(
    name="own",
    summary="A host's own.",
    checks=(Check("Own", breaks), Check("Own", fine), Check("Unseen", greets, of_each_merchant=True)),
)


async def test_examine_own_check_that_fails_stops_no_other(values: dict[str, Any]) -> None:
    async with running_gateway(values, plugins=(OWN,)) as (gateway, base), shop(gateway, base):
        seen = await examined(gateway)
    assert [one.name for one in seen if one.title == "Own"] == ["own.seen", "doctor.broke", "own.fine"]
    assert next(one.text for one in seen if one.name == "own.greeting") == "hello Test shop"
    assert not [one for one in seen if one.title == "Unseen"]
    assert "LookupError" in next(one.text for one in seen if one.name == "doctor.broke")
    assert "254708374149" not in str(seen)
    assert "0708374149" not in str(seen)


async def test_examine_check_without_a_merchant_that_reads_one_fails(values: dict[str, Any]) -> None:
    plugin = Plugin(name="own", summary="Wrong.", checks=(Check("Own", greets),))
    async with running_gateway(values, plugins=(plugin,)) as (gateway, _):
        seen = await examined(gateway)
    assert "not of_each_merchant" in next(one.text for one in seen if one.title == "Own")
