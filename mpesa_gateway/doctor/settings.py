"""Settings that suit trials but not real money."""

from collections.abc import AsyncIterator

from mpesa_gateway.check_result import CheckContext, CheckResult, note, ok, warning
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime


async def check_settings(gateway: Runtime, examination: CheckContext) -> AsyncIterator[CheckResult]:
    config, usual = gateway.config, DarajaConfig()
    yield ok(
        "settings.readable",
        f"the settings can be used; enabled: {', '.join(each.name for each in gateway.contributed(Plugin))}",
    )
    if config.daraja.live_url.rstrip("/") != usual.live_url:
        yield CheckResult(
            name="settings.daraja",
            level=examination.if_live,
            text=f"live merchants' credentials are sent to {config.daraja.live_url}, which is not Safaricom",
            fix=f"remove daraja.live_url from the settings: it is {usual.live_url}",
        )
    elif config.daraja.sandbox_url.rstrip("/") != usual.sandbox_url:
        yield note(
            "settings.daraja",
            f"sandbox merchants are served by {config.daraja.sandbox_url} instead of Safaricom's sandbox; live ones by "
            "Safaricom",
        )
    else:
        yield ok("settings.daraja", "Daraja is called at Safaricom's own addresses")
    if config.logs.level == "debug":
        text = "the log is at debug, which slows everything down"
        fix = "set logs.level to info"
        yield (warning if examination.is_live else note)("settings.logs", text, fix)
    elif config.logs.level == "error":
        yield warning(
            "settings.logs",
            "the log is at error: refused callbacks and failed deliveries leave no line",
            "set it to info",
        )
    else:
        yield ok("settings.logs", f"the log is at {config.logs.level}, as {config.logs.format}")
