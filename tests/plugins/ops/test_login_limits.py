"""Protects operators' passwords: guesses are limited by address and account, without locking out the operator."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.call_slots import Slot, use_slot
from mpesa_gateway.clock import SetClock
from mpesa_gateway.errors import ServiceUnavailable, TooManyFailures
from mpesa_gateway.http.known_callers import KnownCallerCheck
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.secret import Secret
from mpesa_gateway.testing.serving import running_gateway
from mpesa_gateway_ops import login_limits, people
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.people import People
from mpesa_gateway_ops.sessions import Sessions
from tests.browsing import PASSWORD, Browser

WRONG = Secret("not the password at all")


@dataclass(frozen=True)
class OpsGateway:
    """A gateway with two operators."""

    gateway: Gateway
    url: str
    clock: SetClock

    async def guess(
        self,
        name: str = "amina",
        address: str = "203.0.113.1",
        *,
        password: Secret = WRONG,
        device: Secret | None = None,
    ) -> str:
        """Returns "in", or the class of the error of a login."""
        try:
            await self.gateway.services.get(People).sign_in(_email(name), password, address, device or Secret(""))
        except (WrongPassword, TooManyFailures, ServiceUnavailable) as refused:
            return type(refused).__name__
        return "in"

    async def device(self, name: str = "amina") -> Secret:
        """Returns the device cookie of a browser after a login."""
        signed_in = await self.gateway.services.get(People).sign_in(_email(name), PASSWORD, "198.51.100.1")
        return signed_in.device


def _email(name: str) -> str:
    """Return the address of a name, with the name's space at the end."""
    return f"{name.rstrip()}@shop.example{name[len(name.rstrip()) :]}"


@asynccontextmanager
async def running_ops(values: dict[str, Any], **changes: Any) -> AsyncGenerator[OpsGateway]:
    """A gateway with the ops plugin only and two operators."""
    values.pop("simulator", None)
    values |= {"plugins": ["ops"], "worker": {"in_process": False}}
    values["limits"] = {"auth_failures": 3, "account_failures": 6} | changes.pop("limits", {})
    clock = SetClock(datetime.now(UTC))
    async with running_gateway(values | changes, clock=clock) as (gateway, base):
        for name in ("amina", "baraka"):
            await gateway.services.get(People).create(f"{name}@shop.example", PASSWORD, role=Role.ADMIN, actor="test")
        yield OpsGateway(gateway, f"{base}/ops", clock)


async def test_guesses_at_one_account_from_many_addresses_are_limited(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops:
        for name in ("amina", "nobody"):
            found = [await ops.guess(name, f"203.0.113.{host}") for host in range(10)]
            assert found == ["WrongPassword"] * 6 + ["TooManyFailures"] * 4, name
        # The right password is not checked either, and other accounts are not affected.
        assert await ops.guess("amina", "198.51.100.9", password=PASSWORD) == "TooManyFailures"
        assert await ops.guess("baraka", "198.51.100.9", password=PASSWORD) == "in"


async def test_guesses_with_spellings_of_a_name_count_for_one_account(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops:
        names = ("amina", "Amina", " AMINA ", "amina\t", "aMina", "amina", "AMINA")
        found = [await ops.guess(name, f"203.0.113.{host}") for host, name in enumerate(names)]
        assert found == ["WrongPassword"] * 6 + ["TooManyFailures"]


async def test_guesses_from_one_network_at_many_accounts_are_limited(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops:
        found = [await ops.guess(f"name{number}", f"2001:db8:0:1::{number}") for number in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2


async def test_guesses_without_valkey_are_limited(values: dict[str, Any]) -> None:
    async with running_ops(values, valkey={"url": "valkey://127.0.0.1:9/0"}) as ops:
        found = [await ops.guess("amina", "203.0.113.1") for _ in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2
        found = [await ops.guess("amina", f"198.51.100.{host}") for host in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2
        assert await ops.guess("baraka", "198.51.100.9", password=PASSWORD) == "in"


async def test_login_with_a_device_cookie_is_not_locked_out_by_guesses_of_others(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops:
        device = await ops.device()
        for host in range(8):
            await ops.guess("amina", f"203.0.113.{host}")
        for _ in range(5):
            await ops.guess("amina", "198.51.100.1")
        assert await ops.guess("amina", "198.51.100.1", password=PASSWORD) == "TooManyFailures"
        assert await ops.guess("amina", "198.51.100.1", password=PASSWORD, device=device) == "in"
        # Each device has its own limit.
        other = (
            await ops.gateway.services.get(People).sign_in("amina@shop.example", PASSWORD, "192.0.2.1", device)
        ).device
        found = [await ops.guess("amina", "192.0.2.7", device=device) for _ in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2
        assert await ops.guess("amina", "192.0.2.7", password=PASSWORD, device=device) == "TooManyFailures"
        assert await ops.guess("amina", "192.0.2.7", password=PASSWORD, device=other) == "in"


async def test_device_cookie_that_is_forged_expired_or_of_another_account_is_ignored(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops:
        device = await ops.device("baraka")
        until, nonce, mac = device.reveal().split(".")
        forged = (
            device.reveal(),
            "",
            "x",
            f"{int(until) + 1}.{nonce}.{mac}",
            f"{until}.{'0' * 32}.{mac}",
            f"{until}.{nonce}.{'0' * 64}",
            device.reveal() + "\n",
        )
        found = [
            await ops.guess("amina", f"203.0.113.{number}", device=Secret(text)) for number, text in enumerate(forged)
        ]
        assert found == ["WrongPassword"] * 6 + ["TooManyFailures"]
        for number in range(7):
            await ops.guess("baraka", f"198.51.100.{number}")
        assert await ops.guess("baraka", password=PASSWORD, device=device) == "in"
        ops.clock.advance(login_limits.DEVICE_LIFETIME + timedelta(seconds=1))
        for number in range(7):
            await ops.guess("baraka", f"192.0.2.{number}", device=device)
        assert await ops.guess("baraka", password=PASSWORD, device=device) == "TooManyFailures"


async def test_device_cookie_is_kept_after_signing_out(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops, Browser(ops.url) as browser:
        page = await browser.sign_in()
        assert page.status == 200
        (device,) = browser.device_cookies
        assert (device.path, device.has_nonstandard_attr("HttpOnly")) == ("/ops", True)
        for host in range(8):
            await ops.guess("amina", f"203.0.113.{host}")
        async with Browser(ops.url) as stranger:
            refused = await stranger.sign_in()
            assert (refused.status, "Too many failed attempts" in refused.text) == (429, True)
        assert (await browser.sign_in()).status == 200


async def test_image_requests_of_other_sites_do_not_count_as_guesses(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops, Browser(ops.url) as browser:
        statuses = {"/v1/audit/logs": 401, "/v1/admin/merchants": 401, "/metrics": 404, "/ops/login": 200, "/ops": 401}
        for path, status in statuses.items():
            for _ in range(4):
                found = await browser.open(ops.url.removesuffix("/ops") + path, accept="image/*")
                assert found.status == status, path
        assert (await browser.sign_in()).status == 200


async def test_voucher_accepts_session_cookies_only(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops, Browser(ops.url) as browser:
        await browser.sign_in()
        (cookie,) = browser.cookies
        sessions = ops.gateway.services.get(Sessions)
        assert sessions.was_open(Secret(cookie.value))
        assert not sessions.was_open(Secret("0" * 64))
        voucher = next(one for one in ops.gateway.contributed(KnownCallerCheck) if one.below == ("/ops",))

        def vouches(text: str) -> bool:
            return voucher.vouches(ops.gateway, {"headers": [(b"cookie", text.encode())]}, "203.0.113.1")

        assert vouches(f"a=b; mpesa_gateway_ops={cookie.value}")
        assert vouches(f"mpesa_gateway_ops={cookie.value}; mpesa_gateway_ops_env=live")
        for text in ("", "a=b", f"x_mpesa_gateway_ops={cookie.value}", f"mpesa_gateway_ops={'0' * 64}"):
            assert not vouches(text), text


async def test_password_hashing_runs_one_at_a_time_outside_request_slots_with_a_short_queue(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, over, at_once = threading.Event(), threading.Event(), list[int]()
    running = 0

    def verify(_: str | None, __: Secret) -> bool:
        nonlocal running
        running += 1
        at_once.append(running)
        started.set()
        over.wait(10)
        running -= 1
        return False

    monkeypatch.setattr(people, "verify_password", verify)
    monkeypatch.setattr(login_limits, "_PAUSE", 0.0)
    async with running_ops(values, limits={"auth_failures": 100, "account_failures": 100}) as ops:
        counter = SlotCounter()
        with use_slot(Slot(counter)):
            tasks = [asyncio.create_task(ops.guess("amina", f"2001:db8:0:{number:x}::1")) for number in range(20)]
            await asyncio.to_thread(started.wait, 10)
            done, _ = await asyncio.wait(tasks, timeout=0.1)
            # One is hashed, eight wait, eleven are refused with 503.
            assert sorted(task.result() for task in done) == ["ServiceUnavailable"] * 11
            assert counter.held == 0
            one_address = [asyncio.create_task(ops.guess("amina", "2001:db8:0:1::9")) for _ in range(2)]
            assert set(await asyncio.gather(*one_address)) == {"ServiceUnavailable"}
            over.set()
            assert {await task for task in tasks if task not in done} == {"WrongPassword"}
        assert max(at_once) == 1


async def test_guess_over_the_limit_is_refused_without_waiting(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_ops(values) as ops:
        for _ in range(3):
            await ops.guess()
        started, over = threading.Event(), threading.Event()

        def verify(_: str | None, __: Secret) -> bool:
            started.set()
            over.wait(10)
            return False

        monkeypatch.setattr(people, "verify_password", verify)
        other = asyncio.create_task(ops.guess("baraka", "198.51.100.1"))
        await asyncio.to_thread(started.wait, 10)
        async with asyncio.timeout(1):
            assert [await ops.guess() for _ in range(5)] == ["TooManyFailures"] * 5
        over.set()
        assert await other == "WrongPassword"


class SlotCounter:
    """Counts the held slots."""

    held = 1

    def release(self) -> None:
        self.held -= 1

    def reacquire(self) -> None:
        self.held += 1

    def end(self, *, is_working: bool) -> None:
        self.held -= is_working


async def test_password_hashing_runs_in_a_thread_of_low_priority(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops:
        found = await ops.gateway.services.get(People)._guesses.run(  # pyright: ignore[reportPrivateUsage] - where passwords are hashed
            lambda: (threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        assert found[0].startswith("password")
        if sys.platform == "linux":
            assert found[1] == min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + 10)


async def test_limited_logins_are_audited_once_per_address(values: dict[str, Any]) -> None:
    async with running_ops(values) as ops, Browser(ops.url) as browser:
        for _ in range(10):
            await browser.sign_in(password=WRONG)
        actions = [entry.action for entry in (await ops.gateway.audit.page(100, None, None, None)).rows]
        assert actions.count("person.sign_in_failed") == 3
        assert actions.count("person.sign_in_limited") == 1
