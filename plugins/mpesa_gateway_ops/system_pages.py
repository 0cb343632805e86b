"""The system page: health, versions, plugins and masked settings."""

import platform
from importlib.metadata import version
from typing import Any

from mpesa_gateway import toml
from mpesa_gateway.config import masked_setting
from mpesa_gateway.http.health import check_parts
from mpesa_gateway.ops_contract import Menu, Page, PageRequest, Permission, Rendered
from mpesa_gateway.plugin import Plugin
from mpesa_gateway_ops.page_registry import run_safely

_PACKAGES = ("mpesa-gateway", "litestar", "uvicorn", "asyncpg", "piccolo", "saq", "valkey", "niquests", "cryptography")


async def system(visit: PageRequest) -> Rendered:
    gateway = visit.gateway
    values: dict[str, Any] = masked_setting(gateway.config)
    values.pop("sections", None)
    values |= {
        plugin.name: masked_setting(gateway.settings(plugin.settings))
        for plugin in gateway.contributed(Plugin)
        if plugin.settings.__struct_fields__
    }
    postgres = await run_safely(gateway.db.fetchval("SHOW server_version"))
    valkey = await run_safely(gateway.valkey.info("server"))
    return Rendered(
        "system.html",
        {
            "parts": await check_parts(gateway),
            "versions": {
                **{name: version(name) for name in _PACKAGES},
                "Python": platform.python_version(),
                "Postgres": postgres or "does not answer",
                "Valkey": _valkey_version(valkey),
            },
            "plugins": gateway.contributed(Plugin),
            "settings": toml.dumps(values),
        },
    )


def _valkey_version(info: Any) -> str:
    if info is None:
        return "does not answer"
    return str(info.get("valkey_version") or info.get("redis_version") or "unknown")


PAGE = Page("system", "System", system, Permission.GATEWAY, menu=Menu("System", 83, "Gateway", "s"), place="system")
