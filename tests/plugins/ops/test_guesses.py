"""Guessing passwords: bounded by address and by account, whatever is away, without shutting the operator out."""

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
from mpesa_gateway_ops import login_limits, operators
from mpesa_gateway_ops.errors import WrongPassword
from mpesa_gateway_ops.operators import Operators
from mpesa_gateway_ops.sessions import Sessions
from tests.browsing import PASSWORD, Browser

WRONG = Secret("not the password at all")


@dataclass(frozen=True)
class Pages:
    """A gateway with two operators."""

    gateway: Gateway
    ops: str
    clock: SetClock

    async def guess(
        self,
        name: str = "amina",
        address: str = "203.0.113.1",
        *,
        password: Secret = WRONG,
        device: Secret | None = None,
    ) -> str:
        """What comes of a login: "in", or the name of the refusal."""
        try:
            await self.gateway.services.get(Operators).sign_in(name, password, address, device or Secret(""))
        except (WrongPassword, TooManyFailures, ServiceUnavailable) as refused:
            return type(refused).__name__
        return "in"

    async def device(self, name: str = "amina") -> Secret:
        """The device cookie of a browser that has signed in."""
        signed_in = await self.gateway.services.get(Operators).sign_in(name, PASSWORD, "198.51.100.1")
        return signed_in.device


@asynccontextmanager
async def pages(values: dict[str, Any], **changes: Any) -> AsyncGenerator[Pages]:
    """A running gateway with nothing but what the pages need."""
    values.pop("simulator", None)
    values |= {"plugins": ["ops"], "worker": {"in_process": False}}
    values["limits"] = {"auth_failures": 3, "account_failures": 6} | changes.pop("limits", {})
    clock = SetClock(datetime.now(UTC))
    async with running_gateway(values | changes, clock=clock) as (gateway, base):
        for name in ("amina", "baraka"):
            await gateway.services.get(Operators).create(name, PASSWORD, role=Role.ADMIN, actor="test")
        yield Pages(gateway, f"{base}/ops", clock)


async def test_guesses_at_one_account_from_many_addresses_are_limited_and_say_nothing(values: dict[str, Any]) -> None:
    async with pages(values) as home:
        for name in ("amina", "nobody"):
            found = [await home.guess(name, f"203.0.113.{host}") for host in range(10)]
            assert found == ["WrongPassword"] * 6 + ["TooManyFailures"] * 4, name
        # Neither is the right password judged, nor is another account's guessing counted.
        assert await home.guess("amina", "198.51.100.9", password=PASSWORD) == "TooManyFailures"
        assert await home.guess("baraka", "198.51.100.9", password=PASSWORD) == "in"


async def test_the_spelling_of_a_name_is_no_other_account(values: dict[str, Any]) -> None:
    async with pages(values) as home:
        names = ("amina", "Amina", " AMINA ", "amina\t", "aMina", "amina", "AMINA")
        found = [await home.guess(name, f"203.0.113.{host}") for host, name in enumerate(names)]
        assert found == ["WrongPassword"] * 6 + ["TooManyFailures"]


async def test_guesses_of_one_address_or_network_are_limited_whatever_the_account(values: dict[str, Any]) -> None:
    async with pages(values) as home:
        found = [await home.guess(f"name{number}", f"2001:db8:0:1::{number}") for number in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2


async def test_guesses_are_limited_without_valkey(values: dict[str, Any]) -> None:
    async with pages(values, valkey={"url": "valkey://127.0.0.1:9/0"}) as home:
        found = [await home.guess("amina", "203.0.113.1") for _ in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2
        found = [await home.guess("amina", f"198.51.100.{host}") for host in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2
        assert await home.guess("baraka", "198.51.100.9", password=PASSWORD) == "in"


async def test_a_device_that_signed_in_before_gets_in_whatever_strangers_guess(values: dict[str, Any]) -> None:
    async with pages(values) as home:
        device = await home.device()
        for host in range(8):
            await home.guess("amina", f"203.0.113.{host}")
        for _ in range(5):
            await home.guess("amina", "198.51.100.1")
        assert await home.guess("amina", "198.51.100.1", password=PASSWORD) == "TooManyFailures"
        assert await home.guess("amina", "198.51.100.1", password=PASSWORD, device=device) == "in"
        # It has guesses of its own, and its own end; other devices are counted by themselves.
        other = (await home.gateway.services.get(Operators).sign_in("amina", PASSWORD, "192.0.2.1", device)).device
        found = [await home.guess("amina", "192.0.2.7", device=device) for _ in range(5)]
        assert found == ["WrongPassword"] * 3 + ["TooManyFailures"] * 2
        assert await home.guess("amina", "192.0.2.7", password=PASSWORD, device=device) == "TooManyFailures"
        assert await home.guess("amina", "192.0.2.7", password=PASSWORD, device=other) == "in"


async def test_a_device_cookie_of_another_account_or_a_forged_or_old_one_is_none(values: dict[str, Any]) -> None:
    async with pages(values) as home:
        device = await home.device("baraka")
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
            await home.guess("amina", f"203.0.113.{number}", device=Secret(text)) for number, text in enumerate(forged)
        ]
        assert found == ["WrongPassword"] * 6 + ["TooManyFailures"]
        for number in range(7):
            await home.guess("baraka", f"198.51.100.{number}")
        assert await home.guess("baraka", password=PASSWORD, device=device) == "in"
        home.clock.advance(login_limits.DEVICE_LIFETIME + timedelta(seconds=1))
        for number in range(7):
            await home.guess("baraka", f"192.0.2.{number}", device=device)
        assert await home.guess("baraka", password=PASSWORD, device=device) == "TooManyFailures"


async def test_a_browser_is_known_again_after_it_signed_out(values: dict[str, Any]) -> None:
    async with pages(values) as home, Browser(home.ops) as browser:
        page = await browser.signs_in()
        assert page.status == 200
        (device,) = browser.device_cookies
        assert (device.path, device.has_nonstandard_attr("HttpOnly")) == ("/ops", True)
        for host in range(8):
            await home.guess("amina", f"203.0.113.{host}")
        async with Browser(home.ops) as stranger:
            refused = await stranger.signs_in()
            assert (refused.status, "Too many failed attempts" in refused.text) == (429, True)
        assert (await browser.signs_in()).status == 200


async def test_images_of_another_sites_page_shut_nobody_out(values: dict[str, Any]) -> None:
    async with pages(values) as home, Browser(home.ops) as browser:
        asked = {"/v1/audit/logs": 401, "/v1/admin/merchants": 401, "/metrics": 404, "/ops/login": 200, "/ops": 401}
        for path, status in asked.items():
            for _ in range(4):
                found = await browser.opens(home.ops.removesuffix("/ops") + path, accept="image/*")
                assert found.status == status, path
        assert (await browser.signs_in()).status == 200


async def test_a_signed_in_browser_is_not_slowed_with_strangers(values: dict[str, Any]) -> None:
    async with pages(values) as home, Browser(home.ops) as browser:
        await browser.signs_in()
        (cookie,) = browser.cookies
        sessions = home.gateway.services.get(Sessions)
        assert sessions.was_open(Secret(cookie.value))
        assert not sessions.was_open(Secret("0" * 64))
        voucher = next(one for one in home.gateway.contributed(KnownCallerCheck) if one.below == ("/ops",))

        def vouches(text: str) -> bool:
            return voucher.vouches(home.gateway, {"headers": [(b"cookie", text.encode())]}, "203.0.113.1")

        assert vouches(f"a=b; mpesa_gateway_ops={cookie.value}")
        assert vouches(f"mpesa_gateway_ops={cookie.value}; mpesa_gateway_ops_env=live")
        for text in ("", "a=b", f"x_mpesa_gateway_ops={cookie.value}", f"mpesa_gateway_ops={'0' * 64}"):
            assert not vouches(text), text


async def test_one_password_is_hashed_at_a_time_outside_the_places_of_calls_and_few_wait(
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

    monkeypatch.setattr(operators, "_verify", verify)
    monkeypatch.setattr(login_limits, "_PAUSE", 0.0)
    async with pages(values, limits={"auth_failures": 100, "account_failures": 100}) as home:
        slots = HeldSlots()
        with use_slot(Slot(slots)):
            tasks = [asyncio.create_task(home.guess("amina", f"2001:db8:0:{number:x}::1")) for number in range(20)]
            await asyncio.to_thread(started.wait, 10)
            done, _ = await asyncio.wait(tasks, timeout=0.1)
            # One is judged, eight wait, eleven are told to come back.
            assert sorted(task.result() for task in done) == ["ServiceUnavailable"] * 11
            assert slots.held == 0
            one_address = [asyncio.create_task(home.guess("amina", "2001:db8:0:1::9")) for _ in range(2)]
            assert set(await asyncio.gather(*one_address)) == {"ServiceUnavailable"}
            over.set()
            assert {await task for task in tasks if task not in done} == {"WrongPassword"}
        assert max(at_once) == 1


async def test_a_limited_guess_takes_no_turn(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async with pages(values) as home:
        for _ in range(3):
            await home.guess()
        started, over = threading.Event(), threading.Event()

        def verify(_: str | None, __: Secret) -> bool:
            started.set()
            over.wait(10)
            return False

        monkeypatch.setattr(operators, "_verify", verify)
        other = asyncio.create_task(home.guess("baraka", "198.51.100.1"))
        await asyncio.to_thread(started.wait, 10)
        async with asyncio.timeout(1):
            assert [await home.guess() for _ in range(5)] == ["TooManyFailures"] * 5
        over.set()
        assert await other == "WrongPassword"


class HeldSlots:
    """Counts the slots that are held."""

    held = 1

    def release(self) -> None:
        """Count one slot less."""
        self.held -= 1

    def reacquire(self) -> None:
        """Count one slot more."""
        self.held += 1

    def end(self, *, is_working: bool) -> None:
        """One has done."""
        self.held -= is_working


async def test_hashing_leaves_the_processor_to_everything_else(values: dict[str, Any]) -> None:
    async with pages(values) as home:
        found = await home.gateway.services.get(Operators)._guesses.run(  # pyright: ignore[reportPrivateUsage] - where passwords are hashed
            lambda: (threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        assert found[0].startswith("password")
        if sys.platform == "linux":
            assert found[1] > os.getpriority(os.PRIO_PROCESS, os.getpid())


async def test_what_is_limited_is_on_record_once_for_each_address(values: dict[str, Any]) -> None:
    async with pages(values) as home, Browser(home.ops) as browser:
        for _ in range(10):
            await browser.signs_in(password=WRONG)
        actions = [entry.action for entry in (await home.gateway.audit.page(100, None, None, None)).rows]
        assert actions.count("operator.sign_in_failed") == 3
        assert actions.count("operator.sign_in_limited") == 1
