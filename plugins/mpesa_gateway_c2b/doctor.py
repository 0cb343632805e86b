"""Checks of C2B: the registration, and confirmations that do not arrive."""

from collections.abc import AsyncIterator
from datetime import timedelta

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, note, ok, problem, warning
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_c2b import tables
from mpesa_gateway_c2b.explanations import meaning_of, state_of
from mpesa_gateway_c2b.registration import KIND, problem_of
from mpesa_gateway_callbacks.api import Callbacks

_RECENT = timedelta(hours=24)


async def check_registrations(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    """Check the registrations of a merchant, and whether Pull shows money that no confirmation reported."""
    merchant_id, env = context.require_merchant.merchant_id, context.env
    rows = await gateway.db.fetch(tables.OF_MERCHANT, merchant_id, env)
    refusal = problem_of(gateway.url("/"), env)
    if refusal is not None and (rows or env == "live"):
        make = note if not rows else problem if env == "live" else warning
        yield make("c2b.address", refusal, "change public_url before you register a shortcode for C2B")
    for row in rows:
        number, state = row["number"], state_of(row, context.now)
        last = await gateway.port(Callbacks).last_received(KIND, row["receiver_id"])
        live = " --live" if env == "live" else ""
        register = f"register again with `mpesa-gateway c2b register {number} --merchant {merchant_id}{live}`, or with "
        register += f"POST /v1/merchant/shortcodes/{number}/c2b; see docs/c2b.md"
        text = f"C2B of {number}: {meaning_of(state, row, number, last)}"
        if state in {"unknown", "refused"}:
            yield (problem if env == "live" else warning)("c2b.registered", text, register)
            continue
        if state == "already_registered" and last is None:
            yield warning("c2b.registered", text, register)
            continue
        yield ok("c2b.registered", text) if state == "registered" else note("c2b.registered", text)
        rows_missed = await gateway.db.fetch(tables.COUNT_UNCONFIRMED, context.now - _RECENT, row["receiver_id"])
        for missed in (each["count"] for each in rows_missed):
            yield warning(
                "c2b.confirmations",
                f"Pull alone saw {missed} unallocated payments to {number} in the last 24 hours: Safaricom sends "
                "a confirmation once, and none arrived",
                "check that callbacks reach the gateway (the allowlist, the proxy, its log of refused callbacks)",
            )


CHECKS = (Check("C2B", check_registrations, of_each_merchant=True),)
