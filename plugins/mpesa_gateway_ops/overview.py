"""The overview: attention items, health, queue counts and panels."""

from typing import Any

from valkey.exceptions import ValkeyError

from mpesa_gateway.http.health import check_parts
from mpesa_gateway.ops_contract import AttentionItem, Menu, Page, PageRequest, Permission, Rendered
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.page_registry import PageRegistry
from mpesa_gateway_ops.setup import read_checklist


async def overview(visit: PageRequest) -> Rendered:
    gateway = visit.gateway
    concerns = await gateway.port(PageRegistry).attention_items(visit)
    if visit.merchant_id is not None:
        setup = await read_checklist(visit, visit.merchant_id)
        return Rendered("overview.html", {"concerns": concerns, "has_merchant": True, "setup": setup})
    parts = await check_parts(gateway)
    merchants = await gateway.merchants.active(2)
    return Rendered(
        "overview.html",
        {
            "parts": parts,
            "has_merchant": bool(merchants),
            # With several merchants, each merchant's page has its own.
            "setup": await read_checklist(visit, merchants[0].merchant_id) if len(merchants) == 1 else None,
            "queue": await _queue_counts(gateway),
            "concerns": concerns,
        },
    )


async def _queue_counts(gateway: Runtime) -> dict[str, int] | None:
    try:
        counts = [
            _counts(dict(await queue.info()), await queue.count_failed()) for queue in gateway.jobs.queues.values()
        ]
    except ValkeyError:
        return None
    return {name: (min if name == "workers" else sum)(each[name] for each in counts) for name in counts[0]}


def _counts(info: dict[str, Any], failed: int) -> dict[str, int]:
    return {
        "waiting": info["queued"],
        "running": info["active"],
        "scheduled": info["scheduled"],
        "failed": failed,
        "workers": len(info["workers"]),
    }


async def failing_parts(visit: PageRequest) -> list[AttentionItem]:
    gateway = visit.gateway
    found = [
        AttentionItem(text=f"{name} is failing: {part.detail or 'no answer'}", to="system", state="failed")
        for name, part in (await check_parts(gateway)).items()
        if not part.ok
    ]
    try:
        failed = sum([await queue.count_failed() for queue in gateway.jobs.queues.values()])
    except ValkeyError:
        return found
    if failed:
        found.append(AttentionItem(text=f"{failed} {'job has' if failed == 1 else 'jobs have'} failed", to="failed"))
    return found


PAGE = Page("", "Overview", overview, Permission.VIEW, menu=Menu("Overview", 0, key="o"), place="overview")
