"""Checks of callback settings and recent callbacks."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

from mpesa_gateway.check_result import Check, CheckContext, CheckResult, Level, note, ok, warning
from mpesa_gateway.client_ip import is_private, is_within, read_address, read_networks
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.ids import Ids
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_callbacks import tables
from mpesa_gateway_callbacks.settings import SAFARICOM, CallbacksSettings
from mpesa_gateway_callbacks.tables import CallbackRow

_RECENT = timedelta(days=7)
_WIDE = 65_536


async def check_callbacks(gateway: Runtime, context: CheckContext) -> AsyncIterator[CheckResult]:
    for result in _settings(gateway.settings(CallbacksSettings), context):
        yield result
    since = context.now - _RECENT
    yield await _sources(gateway, since)
    refused = await gateway.db.fetch(tables.RECENT_REFUSALS, Ids.least("ref", since))
    if refused:
        reasons = ", ".join(f"{row['count']} for their {row['reason']}" for row in refused)
        yield note(
            "callbacks.refused",
            f"refused in the last 7 days: {reasons}",
            "/ops/callbacks/refused and GET /v1/admin/callbacks/refused show each with its sender and content",
        )
    waiting = await gateway.db.run(
        CallbackRow.count().where(
            CallbackRow.verdict == "waiting",
            CallbackRow.due_at.is_not_null(),
            CallbackRow.received_at < context.now - timedelta(hours=1),
        )
    )
    if waiting:
        yield warning(
            "callbacks.waiting",
            f"{waiting} callbacks have waited for more than an hour for an unknown payment",
            "/ops/callbacks?verdict=waiting and GET /v1/admin/callbacks?verdict=waiting show them; a restored "
            "database may lack their payments",
        )


async def _sources(gateway: Runtime, since: datetime) -> CheckResult:
    # A simulator on this machine is not a proxy.
    is_simulated = gateway.config.daraja.sandbox_url.rstrip("/") != DarajaConfig().sandbox_url
    rows = await gateway.db.fetch(tables.RECENT_SOURCES, Ids.least("cbk", since), is_simulated, Ids.least("ref", since))
    sources = [row["source"] for row in rows]
    inside = [source for source in sources if (found := read_address(source)) is not None and is_private(found)]
    # Only a proxy that sets X-Forwarded-For may be trusted: behind any other, the clients can set it.
    proxies = [row["source"] for row in rows if row["was_forwarded"] and row["source"] in inside]
    if inside:
        return warning(
            "callbacks.sources",
            f"callbacks of the last 7 days appear to come from {_some(inside)}, which is inside: most likely a proxy "
            "of your own, which hides the real senders",
            (
                f'add "{proxies[0]}", which names others in X-Forwarded-For, to security.trusted_proxies;'
                if proxies
                else "if that is a proxy of yours, let it set X-Forwarded-For before you trust it;"
            )
            + " /ops/callbacks/refused and GET /v1/admin/callbacks/refused show the senders that the gateway sees",
        )
    if sources:
        return ok("callbacks.sources", f"callbacks of the last 7 days came from {_some(sources)}")
    return note("callbacks.sources", "no callback has come from Safaricom in the last 7 days")


def _settings(settings: CallbacksSettings, context: CheckContext) -> Iterator[CheckResult]:
    networks = read_networks(settings.allowlist, "callbacks.allowlist")
    missing = [text for text in SAFARICOM if (found := read_address(text)) is None or not is_within(found, networks)]
    if settings.enforce_allowlist == "never":
        yield CheckResult(
            name="callbacks.allowlist",
            level=context.if_live,
            text="callbacks are accepted from any address: only their token proves the sender",
            fix='set callbacks.enforce_allowlist to "live"',
        )
    elif missing:
        yield warning(
            "callbacks.allowlist",
            f"{len(missing)} of the addresses that Safaricom is known to call from are not on it, such as {missing[0]}",
            "add them to callbacks.allowlist, or remove that setting: the default has them",
        )
    elif sum(network.num_addresses for network in networks) > _WIDE:
        yield warning(
            "callbacks.allowlist",
            "the allowlist is so wide that it rejects hardly any address",
            "remove callbacks.allowlist from the settings: the default has Safaricom's addresses",
        )
    else:
        scope = "live ones and ones without a token" if settings.enforce_allowlist == "live" else "all"
        yield ok("callbacks.allowlist", f"callbacks ({scope}) are accepted from Safaricom's addresses only")
    if settings.signature == "required":
        text = "only signed callbacks are accepted, and Daraja is not known to sign any"
        yield CheckResult(
            name="callbacks.signature",
            level=Level.WARNING,
            text=text,
            fix='set callbacks.signature to "if_present", unless you have seen signatures arrive',
        )
    elif settings.signature == "off":
        text = "signatures are not checked: a callback with a wrong one is accepted"
        yield warning("callbacks.signature", text, 'set callbacks.signature to "if_present"')
    else:
        yield ok("callbacks.signature", "a callback with a wrong signature is refused")


def _some(sources: list[str]) -> str:
    return ", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")


CHECKS = (Check("Callbacks", check_callbacks),)
