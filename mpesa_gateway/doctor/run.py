"""Runs every check: the kernel's, the plugins', then each merchant's. A crash of one does not stop the others."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import structlog

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, problem
from mpesa_gateway.config import ConfigError
from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.migrator import MigrationError
from mpesa_gateway.doctor.api_keys import check_api_keys
from mpesa_gateway.doctor.master_key import check_master_key
from mpesa_gateway.doctor.postgres import check_postgres, skipped_result
from mpesa_gateway.doctor.public_address import check_public_address
from mpesa_gateway.doctor.safaricom import check_certificates, check_daraja
from mpesa_gateway.doctor.settings import check_settings
from mpesa_gateway.doctor.valkey import check_valkey
from mpesa_gateway.doctor.workers import check_workers
from mpesa_gateway.errors import require_found
from mpesa_gateway.logs import trace
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.security.scopes import Env
from mpesa_gateway.single_gateway import SecondGateway

if TYPE_CHECKING:
    from mpesa_gateway.app import Gateway

log = structlog.get_logger(__name__)

WITHOUT_DATABASE = (
    Check("Settings", check_settings),
    Check("Valkey", check_valkey),
    Check("Safaricom's certificates", check_certificates),
)

KERNEL = (
    Check("Settings", check_settings),
    Check("Valkey", check_valkey),
    Check("Workers", check_workers),
    Check("The public address", check_public_address),
    Check("Daraja", check_daraja),
    Check("Safaricom's certificates", check_certificates),
    Check("The master key", check_master_key),
    Check("API keys", check_api_keys, of_each_merchant=True),
)

_NEEDED = {"postgres.reachable", "postgres.pooler", "postgres.writable", "postgres.migrations"}
"""Problems with which the gateway cannot start."""

_PATIENCE = 60.0
"""Seconds for one check."""

_AT_ONCE = 4
"""Merchants checked concurrently; more would trigger Daraja's spike arrest."""


class DoctorReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One result with its title. ``merchant_id`` is None for the whole gateway."""

    title: str
    name: str
    level: Level
    text: str
    fix: str | None = None
    merchant_id: str | None = None


async def examine(
    gateway: "Gateway", *, is_live: bool = False, merchant_ids: Sequence[str] = ()
) -> AsyncGenerator[DoctorReport]:
    """Yield a report for each result, by the requirements of live if ``is_live`` or a merchant is live.

    Starts the gateway unless it runs; never migrates. Checks all active merchants if ``merchant_ids`` is empty. Writes
    nothing but access tokens in Valkey. Raises NotFound for an unknown merchant.
    """
    examination = CheckContext(now=gateway.clock.now(), is_live=is_live)
    db = Database(msgspec.structs.replace(gateway.config.database, pool_min=1, pool_max=2))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close, db)
        stops = ""
        async for seen in _run_check(Check("Postgres", lambda g, e: check_postgres(g, db, e)), gateway, examination):
            yield seen
            if seen.level is Level.PROBLEM and seen.name in _NEEDED:
                stops = seen.text
        if not stops:
            try:
                await gateway.start(migrate_first=False)
                stack.push_async_callback(gateway.stop)
            except Exception as fault:  # noqa: BLE001 - any error is the reason
                log.debug("start_failed", exception=trace(fault))
                yield _seen("Start", _does_not_start(fault))
                stops = "the gateway does not start"
        if stops:
            for check in WITHOUT_DATABASE:
                async for seen in _run_check(check, gateway, examination):
                    yield seen
            yield _seen("The rest", skipped_result(stops))
            return
        async for seen in _check_all(gateway, examination, merchant_ids):
            yield seen


def _does_not_start(fault: Exception) -> CheckResult:
    refused = isinstance(fault, ConfigError | MigrationError | SecondGateway)
    text = str(fault) if refused else f"{type(fault).__name__}: {fault}"
    return problem("gateway.starts", f"the gateway does not start: {text}", "fix that, and run the doctor again")


async def _check_all(
    gateway: "Gateway", examination: CheckContext, merchant_ids: Sequence[str]
) -> AsyncGenerator[DoctorReport]:
    merchants = await _chosen(gateway, merchant_ids)
    examination = CheckContext(
        now=examination.now,
        is_live=examination.is_live or await gateway.merchants.any_live(),
        merchants=tuple(merchants),
    )
    checks = [*KERNEL, *(check for plugin in gateway.plugins for check in plugin.checks)]
    broken: set[str] = set()
    for check in checks:
        # An unreachable Valkey is reported once.
        if check.of_each_merchant or (check.title == "Workers" and "valkey.reachable" in broken):
            continue
        async for seen in _run_check(check, gateway, examination):
            yield seen
            if seen.level is Level.PROBLEM:
                broken.add(seen.name)
    of_merchants = [check for check in checks if check.of_each_merchant]
    queue: Iterator[tuple[Merchant, Env]] = ((one, env) for one in merchants for env in one.envs or (one.env,))
    while batch := list(islice(queue, _AT_ONCE)):
        for found in await asyncio.gather(
            *(_check_merchant(*each, of_merchants, gateway, examination) for each in batch)
        ):
            for seen in found:
                yield seen


async def _check_merchant(
    merchant: Merchant, env: Env, checks: Sequence[Check], gateway: "Gateway", examination: CheckContext
) -> list[DoctorReport]:
    mine = CheckContext(examination.now, examination.is_live, examination.merchants, merchant, env)
    title = f"{merchant.name} ({merchant.merchant_id}, {env})"
    return [
        msgspec.structs.replace(seen, title=title, merchant_id=merchant.merchant_id)
        for check in checks
        async for seen in _run_check(check, gateway, mine)
    ]


async def _run_check(check: Check, gateway: "Gateway", examination: CheckContext) -> AsyncGenerator[DoctorReport]:
    try:
        async with asyncio.timeout(_PATIENCE):
            async for observation in check.look(gateway, examination):
                yield _seen(check.title, observation)
    except Exception as fault:  # noqa: BLE001 - one check must not stop the others
        log.debug("check_crashed", check=check.title, exception=trace(fault))
        text = f"this check failed ({type(fault).__name__}: {fault})"
        yield _seen(
            check.title, problem("doctor.broke", text, "fix the problems of Postgres and Valkey, then try again")
        )


def _seen(title: str, observation: CheckResult) -> DoctorReport:
    return DoctorReport(
        title=title,
        name=observation.name,
        level=observation.level,
        # A driver's message may contain a phone number.
        text=mask_phones(observation.text),
        fix=None if observation.fix is None else mask_phones(observation.fix),
    )


async def _chosen(gateway: "Gateway", merchant_ids: Sequence[str]) -> list[Merchant]:
    if not merchant_ids:
        return await _all_active(gateway)
    found: list[Merchant] = []
    for merchant_id in dict.fromkeys(merchant_ids):
        merchant = require_found(
            await gateway.merchants.get(merchant_id),
            f"there is no merchant {merchant_id}: see `mpesa-gateway merchants list`",
        )
        found.append(merchant)
    return found


async def _all_active(gateway: "Gateway") -> list[Merchant]:
    found: list[Merchant] = []
    async for page in gateway.merchants.all():
        found += (merchant for merchant in page if merchant.is_active)
    return list(reversed(found))


async def _close(db: Database) -> None:
    if db.is_running:
        await db.stop()
