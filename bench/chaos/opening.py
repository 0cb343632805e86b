"""How a run begins and ends: a merchant that is ready to sell, and the wait until nothing is under way any more."""

import asyncio
import random
import time
from collections.abc import Callable

import niquests

from bench.chaos.faults import Chaos
from bench.chaos.merchant import Endpoint
from bench.chaos.site import Site
from bench.chaos.verify import LEFT_TO_A_PERSON, LINES_LEFT_TO_A_PERSON, STILL_OPEN
from mpesa_gateway.app import Gateway
from mpesa_gateway.security.scopes import ADMIN
from mpesa_gateway.standalone.sample_credentials import CREDENTIALS

_ACTOR = "cli:chaos"

_TILL = {"shortcode": "600638", "till_number": "5123456"}
SHOPS: dict[str, dict[str, str]] = {"Paybill": {}, "Neighbour": {}, "Till": _TILL}
"""The merchants that sell, and what each has otherwise: two share the sandbox's paybill, and one has a till."""


async def open_shop(
    gateway: Gateway,
    site: Site,
    endpoint: Endpoint,
    http: niquests.AsyncSession,
    rng: random.Random,
    say: Callable[[str], None],
) -> Chaos:
    """Merchants that are ready to sell, and all that the faults need."""
    shops = [await _open_one(gateway, site, endpoint, http, name, fields) for name, fields in SHOPS.items()]
    _, operator_key = await gateway.api_keys.create(
        shops[0][0], name="operator", scopes=[ADMIN], env="sandbox", actor=_ACTOR
    )
    return Chaos(
        site=site,
        endpoint=endpoint,
        rng=rng,
        http=http,
        merchant_ids=tuple(merchant_id for merchant_id, _ in shops),
        shortcode_ids=tuple(row[0] for row in await gateway.db.fetch("SELECT shortcode_id FROM shortcode")),
        api_keys=tuple(key for _, key in shops),
        operator_key=operator_key.reveal(),
        crons=tuple(name for name, job in gateway.jobs_by_name.items() if job.cron is not None),
        say=say,
    )


async def _open_one(
    gateway: Gateway,
    site: Site,
    endpoint: Endpoint,
    http: niquests.AsyncSession,
    name: str,
    fields: dict[str, str],
) -> tuple[str, str]:
    """A new merchant, ready to sell: its id and its API key."""
    merchant = await gateway.merchants.create(name, actor=_ACTOR)
    _, key = await gateway.api_keys.create(
        merchant.merchant_id, name="chaos", scopes=gateway.scopes.of_merchants, env="sandbox", actor=_ACTOR
    )
    credentials = CREDENTIALS | {"mpesa": CREDENTIALS["mpesa"] | fields | {"consumer_key": f"key-of-{name}"}}
    for method, path, body in (
        ("PUT", "/v1/merchant/providers", credentials),
        ("PUT", "/v1/merchant/webhook", {"webhook_url": endpoint.url}),
        ("POST", "/v1/payments/mpesa/pull/register", None),
    ):
        answer = await http.request(method, site.base + path, json=body, headers={"X-API-Key": key.reveal()})
        data = answer.json().get("data")
        if data is None:
            raise RuntimeError(f"{method} {path}: {answer.text}")
        if "webhook_secret" in data:
            endpoint.secrets.append(data["webhook_secret"])
    return merchant.merchant_id, key.reveal()


async def settle(gateway: Gateway, chaos: Chaos, patience: float) -> bool:
    """Reconcile and wait until nothing is under way any more; gives whether that came within ``patience`` seconds."""
    await chaos.control("PATCH", "/knobs", {"chaos": 0})
    until = time.monotonic() + patience
    while time.monotonic() < until:
        left = await gateway.db.fetchval(STILL_OPEN)
        chaos.say(f"settling: {left} left")
        if left == 0:
            return True
        await chaos.ask("POST", "/v1/payments/mpesa/reconcile", {})
        await _decide(gateway, chaos)
        await asyncio.sleep(2)
    return False


async def _decide(gateway: Gateway, chaos: Chaos) -> None:
    """Play the people who look at M-Pesa's portal: they end refunds without an answer, and assign ambiguous lines."""
    for row in await gateway.db.fetch(LINES_LEFT_TO_A_PERSON):
        merchant = chaos.merchant_ids.index(row["merchant_id"])
        path = f"/v1/payments/mpesa/statement-lines/{row['line_id']}/assign"
        await chaos.ask("POST", path, {"payment_id": row["payment_id"]}, merchant=merchant)
    for row in await gateway.db.fetch(LEFT_TO_A_PERSON):
        body = {
            "outcome": "completed" if row["went_back"] else "failed",
            "confirm": row["refund_id"],
            "note": "seen on the portal",
        }
        await chaos.ask("POST", f"/v1/admin/refunds/{row['refund_id']}/resolve", body, as_operator=True)
