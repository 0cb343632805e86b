"""Fixtures of the operators' pages: a gateway with all plugins, a shop and operators of each role."""

import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, Api, running_gateway, shop
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, Browser, signed_in

NAMES = {Role.ADMIN: "amina", Role.OPERATOR: "otieno", Role.VIEWER: "viola"}


@dataclass(frozen=True)
class OpsSite:
    """A gateway, a shop, and browsers of its operators."""

    gateway: Gateway
    url: str
    api: Api
    receiver: Receiver
    merchant_id: str
    browser: Callable[..., AbstractAsyncContextManager[Browser]]

    async def acted(self) -> list[tuple[str, str | None]]:
        """Returns the act and its subject of each operator's act, newest first."""
        entries = (await self.gateway.audit.page(100, None, "operator.acted", None)).rows
        return [(entry.detail["act"], entry.subject_id) for entry in entries]


class _Broken:
    """Records the exceptions that a page part logs; the page itself is served without it."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def exception(self, event: str) -> None:
        self.parts.append(f"{event}: {sys.exc_info()[1]!r}")


@pytest.fixture(autouse=True)
def whole_pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails a test whose page logged a failed part. A test that expects one empties the list."""
    broken = _Broken()
    monkeypatch.setattr("mpesa_gateway_ops.page_registry.log", broken)
    yield broken.parts
    assert broken.parts == []


@pytest.fixture
async def ops_site(values: dict[str, Any]) -> AsyncGenerator[OpsSite]:
    """A gateway with all plugins, a shop with credentials and a webhook, and three operators."""
    async with (
        receiving() as receiver,
        running_gateway(values) as (gateway, base),
        shop(gateway, base, webhook_url=receiver.url) as api,
    ):
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        for role, name in NAMES.items():
            await gateway.services.get(People).create(f"{name}@shop.example", PASSWORD, role=role, actor="test")
        merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
        ops = f"{base}/ops"

        def browser(role: Role = Role.ADMIN) -> AbstractAsyncContextManager[Browser]:
            return signed_in(ops, NAMES[role])

        yield OpsSite(gateway, ops, api, receiver, merchant_id, browser)
