"""Fixtures for all tests: a served gateway with every plugin, a shop that calls it, and a webhook receiver."""

import gc
import os
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import structlog
from argon2 import PasswordHasher
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from valkey.asyncio.connection import AbstractConnection

from mpesa_gateway.app import Gateway
from mpesa_gateway.db import forms
from mpesa_gateway.testing.fixtures import ServedGateway
from mpesa_gateway.testing.receiver import Receiver
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, gateway_values
from mpesa_gateway_ops import passwords
from tests.daraja import Daraja, scripted_daraja
from tests.owner import as_owner

pytest_plugins = ["mpesa_gateway.testing.fixtures"]

# The suite uses the same examples in each run, so that a failure comes from the change under test. `just model` and
# `just explore` use others. No deadline: nothing is measured here, and the machine may be busy.
hypothesis_settings.register_profile(
    "suite",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("MPESA_GATEWAY_TEST_EXAMPLES"),
)
hypothesis_settings.load_profile("suite")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of worker processes: two per core, and none for tests named on the command line.

    A test waits for about as long as it computes: three processes leave a quarter of two cores idle. Each process has a
    Postgres and a Valkey of its own. ``-n`` overrides this.
    """
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return 2 * max(1, os.cpu_count() or 2)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage collection during the test: after a whole run of tests, one takes a third of a second."""
    gc.disable()
    yield
    gc.enable()


FOLDERS = ("journeys", "model", "docs", "plugins", "kernel", "house")
"""The test folders in their order: slow files first, so that all processes end at about the same time."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the whole suite by FOLDERS. Tests named on the command line keep their order."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS or "PYTEST_XDIST_WORKER" in os.environ:
        root = config.rootpath / "tests"
        items.sort(key=lambda item: _place(item.path.relative_to(root).parts[0]) if root in item.path.parents else -1)


def _place(folder: str) -> int:
    return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the runs of all paths against each other: `just deadlocks`."""
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, ())]
    played = [dict(one.user_properties)["played"] for one in reports if "played" in dict(one.user_properties)]
    if not played:
        return
    paths: Counter[str] = Counter()
    for one in played:
        paths.update(one["paths"])
    terminalreporter.write_line(
        f"{sum(one['rounds'] for one in played)} rounds, {paths.total()} runs of {len(paths)} paths "
        f"(each {min(paths.values())} to {max(paths.values())} times), "
        f"{sum(one['deadlocks'] for one in played)} deadlocks"
    )


@dataclass(frozen=True)
class Harness:
    """A running gateway, a shop with its API client, and the shop's webhook receiver."""

    gateway: Gateway
    base: str
    api: Api
    receiver: Receiver

    async def delivered(self, count: int) -> list[str]:
        """Return the received event types, sorted, once ``count`` have arrived and no event or callback is pending."""
        await self.receiver.wait_for(count)

        async def owes_nothing() -> bool:
            return not await self.gateway.db.fetchval(_OWED, self.gateway.clock.now() + timedelta(seconds=5))

        await eventually(owes_nothing)
        return sorted(one.headers["x-event-type"] for one in self.receiver.received)


_OWED = """
SELECT EXISTS (SELECT FROM event_task WHERE done_at IS NULL)
    OR EXISTS (SELECT FROM sim_callback WHERE due_at <= $1)
    OR EXISTS (SELECT FROM sim_result WHERE due_at <= $1)
    OR EXISTS (SELECT FROM callback WHERE verdict = 'waiting' AND due_at <= $1)
    OR EXISTS (SELECT FROM event LEFT JOIN delivery USING (event_id)
               WHERE is_public AND coalesce(delivery.status, 'pending') = 'pending')
"""
"""True while an event, a webhook, or a callback of the next seconds is pending."""


def pytest_configure() -> None:
    """Keep the bytecode of commands that tests start: otherwise each compiles all of our modules.

    Connections to Valkey do not send the library's name: that saves two of the four commands that begin each
    connection, and a gateway opens forty.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    defaults = AbstractConnection.__init__.__kwdefaults__
    assert {"lib_name", "lib_version"} <= set(defaults or {})
    AbstractConnection.__init__.__kwdefaults__ = (defaults or {}) | {"lib_name": None, "lib_version": None}


def pytest_collection_finish() -> None:
    """Exclude imported objects from every later garbage collection: they live until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def real_hasher() -> Iterator[PasswordHasher]:
    """Make operators' password hashes cheap: a page test hashes half a dozen. Returns the hasher of the product."""
    real = passwords._hasher  # pyright: ignore[reportPrivateUsage] - what the tests replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        yield real


@pytest.fixture(autouse=True, scope="session")
def real_learnt_after() -> Iterator[int]:
    """Store forms of bodies with their first body, so that tests read short bodies. Returns the product's number."""
    real = forms.LEARNT_AFTER
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "LEARNT_AFTER", 1)
        yield real


@pytest.fixture(autouse=True)
def logging_left_alone() -> Generator[None]:
    """No test configures logging as our processes do: loggers cache it, and later tests would receive no log events."""
    yield
    assert not structlog.get_config()["cache_logger_on_first_use"]


@pytest.fixture(autouse=True)
def locks_in_order(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With MPESA_GATEWAY_TEST_LOCKS=1, a test fails if one of its transactions locks rows out of order."""
    if not os.environ.get("MPESA_GATEWAY_TEST_LOCKS"):
        yield
        return
    from tests.locks import Recorder  # noqa: PLC0415 - only the tests of locks need the parser

    recorder, start = Recorder(), Gateway.start

    async def start_and_follow(gateway: Gateway, **options: Any) -> None:
        await start(gateway, **options)
        async with as_owner(gateway) as owner:
            await recorder.install(owner)

    monkeypatch.setattr(Gateway, "start", start_and_follow)
    recorder.follow(monkeypatch)
    yield
    assert list(recorder.wrong) == []


@pytest.fixture
def values(database_url: str, valkey_url: str) -> dict[str, Any]:
    """Return settings for a gateway of this test's own."""
    return gateway_values(database_url, valkey_url)


@pytest.fixture
async def daraja() -> AsyncGenerator[Daraja]:
    """Yield a Daraja scripted by the test."""
    async with scripted_daraja() as found:
        yield found


@pytest.fixture
def gateway_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the gateway fixtures."""
    return values


@pytest.fixture
def harness(served: ServedGateway, shop_api: Api, webhook_receiver: Receiver) -> Harness:
    """Return a running gateway with a shop and a webhook receiver."""
    return Harness(served.gateway, served.base, shop_api, webhook_receiver)


@pytest.fixture
async def initiated(harness: Harness) -> None:
    """Store the shop's credentials with an initiator and a nominated number, for refunds and reconciliation."""
    assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
