"""Doctor checks of reconciliation: registration for Pull, and recent runs."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, note, ok, problem, warning
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.security.sealing import UnsealError
from mpesa_gateway_credentials.api import Credentials, MpesaCredentials
from mpesa_gateway_reconciliation import tables
from mpesa_gateway_reconciliation.registration import registered_at
from mpesa_gateway_reconciliation.tables import RunRow

_LATE = timedelta(hours=1)
"""Runs start every 15 minutes."""


async def check_reconciliation(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    try:
        active = await gateway.port(Credentials).all_active(examination.require_merchant.merchant_id, examination.env)
    except UnsealError:
        return
    for credentials in active:
        if credentials.nominated_number is not None and credentials.is_owner:
            async for result in _check_shortcode(gateway, credentials, examination.now, is_one=len(active) == 1):
                yield result


async def _check_shortcode(
    gateway: Runtime, credentials: MpesaCredentials, now: datetime, *, is_one: bool
) -> AsyncIterator[CheckResult]:
    merchant_id, shortcode = credentials.merchant_id, credentials.shortcode
    since = await registered_at(gateway.db, merchant_id, credentials.env, shortcode)
    if since is None:
        make = problem if credentials.env == "live" else note
        text = f"Pull is not registered for {shortcode}: payments with a lost callback are not recovered"
        named = "" if credentials.is_default else f"?shortcode={shortcode}"
        page = f"/ops/credentials/{merchant_id}?env={credentials.env}"
        call = f"POST /v1/payments/mpesa/pull/register{named}"
        fix = f"once: the button Register at {page}, or {call} with its API key"
        yield make("reconciliation.registered", text, fix)
        return
    yield ok("reconciliation.registered", f"Pull is registered for {shortcode}, since {since:%Y-%m-%d}")
    whose = "its statement" if is_one else f"its statement of {shortcode}"
    reached = await gateway.db.fetchval(tables.REACHED, merchant_id, credentials.env, shortcode)
    if max(reached or since, since) < now - _LATE:
        rows: list[dict[str, Any]] = await gateway.db.run(
            RunRow.select(RunRow.error)
            .where(RunRow.merchant_id == merchant_id, RunRow.env == credentials.env, RunRow.shortcode == shortcode)
            .order_by(RunRow.run_id, ascending=False)
            .limit(1)
        )
        error = rows[0]["error"] if rows else None
        yield warning(
            "reconciliation.runs",
            f"{whose} has not been read since {_when(reached or since)}{f': {error}' if error else ''}",
            "see /ops/reconciliation or GET /v1/payments/mpesa/reconciliations, and check that a worker runs; "
            "M-Pesa keeps 48 hours",
        )
    elif reached is not None:
        yield ok("reconciliation.runs", f"{whose} has been read up to {_when(reached)}")


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


CHECKS = (Check("Reconciliation", check_reconciliation, of_each_merchant=True),)
