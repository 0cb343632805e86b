"""Size and duration of the operator pages on a full database."""

import re
import secrets
import statistics
import time
from typing import Any

import niquests

from bench.speed.seed import Shop, connect
from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.ops_contract import Role
from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.people import People
from mpesa_gateway_payments.stats import PaymentStatsReader

_ROUNDS = 9

_SOME_PAYMENT = """
SELECT payment_id, receipt, reference FROM payment
WHERE merchant_id = $1 AND receipt IS NOT NULL ORDER BY payment_id LIMIT 1 OFFSET 1000
"""


async def look(values: dict[str, Any], url: str, shop: Shop, base: str) -> list[dict[str, Any]]:
    """Return milliseconds (median, maximum) and kilobytes of the menu's pages, filtered lists, and a payment's page.

    ``values`` are the settings of the gateway that is served at ``base``, ``url`` its database's address.
    """
    email, password = f"bench-{secrets.token_hex(4)}@shop.example", Secret(secrets.token_hex(16))
    async with Gateway(GatewayConfig.from_values(values)).running() as gateway:
        await gateway.services.get(People).create(email, password, role=Role.ADMIN, actor="cli:bench")
        await gateway.services.get(PaymentStatsReader).count()
    connection = await connect(url, "mpesa")
    known = await connection.fetchrow(_SOME_PAYMENT, shop.merchant_id)
    await connection.close()
    async with niquests.AsyncSession() as session:
        session.trust_env = False
        fields = {"email": email, "password": password.reveal()}
        signed = await session.post(f"{base}/ops/login", data=fields, headers={"Origin": base})
        if signed.status_code != 200:
            raise RuntimeError(f"signing in was answered {signed.status_code}")
        paths = [f"/ops/{path}".rstrip("/") for path in _menu(signed.text or "")]
        paths += [
            f"/ops/payments/{known['payment_id']}",
            "/ops/payments?status=failed",
            "/ops/payments?min_amount=100000",
            f"/ops/payments?search={known['receipt']}",
            f"/ops/payments?reference={known['reference']}",
            f"/ops/merchants/{shop.merchant_id}",
        ]
        return [await _measured(session, base, path) for path in dict.fromkeys(paths)]


def _menu(page: str) -> list[str]:
    """Return the targets of the menu, relative to the pages' base."""
    menu = re.search(r"<nav[^>]*>(.*?)</nav>", page, re.DOTALL)
    if menu is None:
        raise RuntimeError("the page has no menu")
    return [link.rpartition("ops")[2].strip("/") for link in re.findall(r'href="([^"]*)"', menu[1])]


async def _measured(session: niquests.AsyncSession, base: str, path: str) -> dict[str, Any]:
    times: list[float] = []
    size = 0
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        page = await session.get(base + path)
        times.append((time.perf_counter() - began) * 1000)
        if page.status_code != 200:
            raise RuntimeError(f"{path} was answered {page.status_code}")
        size = len(page.content or b"")
    return {
        "page": re.sub(r"(pay|mer)_[0-9a-z]+", r"{\1}", path),
        "ms": round(statistics.median(times), 1),
        "most_ms": round(max(times), 1),
        "kb": round(size / 1000, 1),
    }
