"""Protects plugin independence: a gateway works with every subset of plugins that their requirements allow."""

from collections.abc import Generator
from functools import cache
from itertools import combinations
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.installed_plugins import installed
from mpesa_gateway.plugin import Plugin, load
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database
from mpesa_gateway.testing.serving import Api, gateway_values, running_gateway, shop
from tests.ledger import broken_invariants

INSTALLED: dict[str, Plugin] = {plugin.name: plugin for plugin in load(tuple(installed()))}

ONLOOKERS = tuple(name for name, plugin in INSTALLED.items() if not (plugin.routes or plugin.jobs or plugin.tables))
"""Plugins that provide no port: tested alone and with all others, not in every subset."""

ALL = {name: plugin for name, plugin in INSTALLED.items() if name not in ONLOOKERS}


@cache
def allowed() -> list[tuple[str, ...]]:
    """Return every subset of plugins with its requirements met; ``ONLOOKERS`` only alone and with all others."""
    subsets = [
        names
        for size in range(len(ALL) + 1)
        for names in combinations(ALL, size)
        if all(set(ALL[name].requires) <= set(names) for name in names)
    ]
    return [*subsets, ONLOOKERS, (*ALL, *ONLOOKERS)]


Trio = tuple[tuple[str, bool], ...]
"""Three plugins, each with whether it is enabled."""


@cache
def trios(names: tuple[str, ...]) -> frozenset[Trio]:
    """Return the trios of enabled and disabled plugins that a gateway with these plugins covers."""
    return frozenset(tuple((name, name in names) for name in three) for three in combinations(ALL, 3))


@cache
def served() -> list[tuple[str, ...]]:
    """Return the subsets to serve: empty, all, onlookers, and the fewest others that cover each allowed trio.

    A fault of up to three plugins, each enabled or disabled, shows in one of them. All subsets are assembled.
    """
    chosen = [(), tuple(ALL), ONLOOKERS, (*ALL, *ONLOOKERS)]
    left = {trio for names in allowed() for trio in trios(names)} - {trio for names in chosen for trio in trios(names)}
    while left:
        best = max(allowed(), key=lambda names: len(trios(names) & left))
        chosen.append(best)
        left -= trios(best)
    return chosen


@pytest.fixture(scope="module")
def shared_url(servers: Servers) -> Generator[str]:
    """Return one database, in which each gateway has its own schema."""
    with empty_database(servers) as url:
        yield url


def test_each_kind_of_plugin_is_covered() -> None:
    assert len(allowed()) == len(set(allowed()))
    found = {frozenset(names) for names in allowed()}
    expected = ((), ALL, INSTALLED, ("credentials", "callbacks", "transactions", "payments"), ("ops",))
    assert {frozenset(names) for names in expected} <= found
    assert frozenset(("credentials", "payments")) not in found
    assert ONLOOKERS == ("traces",)


def test_plugin_trios_that_are_allowed_all_serve() -> None:
    assert set(served()) <= set(allowed())
    assert len(served()) == len(set(served())) < len(allowed()) / 3
    assert {trio for names in served() for trio in trios(names)} == {
        trio for names in allowed() for trio in trios(names)
    }


@pytest.mark.parametrize("names", allowed(), ids=lambda names: "+".join(names) or "nothing")
def test_gateway_with_a_subset_of_plugins_assembles(names: tuple[str, ...]) -> None:
    values = gateway_values("postgresql://nobody@127.0.0.1:1/none", "valkey://127.0.0.1:1/0", plugins=list(names))
    gateway = Gateway(GatewayConfig.from_values(values))
    assert {plugin.name for plugin in gateway.plugins} == set(names)
    assert {migration.owner for migration in gateway.migrations} <= {"kernel", *names}


@pytest.mark.parametrize("names", served(), ids=lambda names: "+".join(names) or "nothing")
async def test_gateway_with_a_subset_of_plugins_works(names: tuple[str, ...], shared_url: str, valkey_url: str) -> None:
    schema = f"s{allowed().index(names)}"
    values: dict[str, Any] = gateway_values(shared_url, valkey_url, plugins=list(names), worker={"in_process": False})
    values["database"]["schema"] = schema
    async with running_gateway(values) as (gateway, base):
        api = Api(base, None)
        assert (await api.call("GET", "/health/ready")).status == 200
        document = (await api.call("GET", "/schema/openapi.json")).body
        await api.close()
        assert ("/v1/payments" in document["paths"]) == ("payments" in names)
        for job in gateway.jobs_by_name.values():
            if job.cron is not None:
                await job.fn(gateway)
        assert await broken_invariants(gateway) == {}
        made = await gateway.merchants.create("Alone", actor="test")
        assert (await gateway.merchants.page(1)).rows == [made]
        if {"payments", "simulator"} <= set(names):
            async with shop(gateway, base) as client:
                paid = await client.pay("254711000001", key="left")
                assert (await client.settled(paid.data["id"]))["status"] == "completed"
