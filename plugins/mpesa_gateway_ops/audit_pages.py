"""The page of the audit log and the verification of its chain."""

import re
from datetime import datetime
from typing import cast

import msgspec

from mpesa_gateway.local_time import format_local
from mpesa_gateway.ops_contract import Action, Menu, Page, PageRequest, Permission, Redirect, Rendered
from mpesa_gateway.security.audit import BrokenChain
from mpesa_gateway_ops.people import names_of

_A_PAGE = 50
_UTC = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|\+00:00)", re.ASCII)
"""A time in a detail."""


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The filters of the audit log."""

    merchant: str | None = None
    action: str | None = None
    subject: str | None = None
    cursor: str | None = None


async def audit(visit: PageRequest) -> Rendered:
    query, gateway = visit.read_query(AuditQuery), visit.gateway
    page = await gateway.audit.page(
        _A_PAGE, query.merchant, query.action, query.cursor, subject_id=query.subject, env=visit.env
    )
    rows = [
        (entry, datetime.fromisoformat(entry.at), _detail(entry.detail, shows_addresses=visit.merchant_id is None))
        for entry in page.rows
    ]
    return Rendered(
        "audit.html",
        {
            "rows": rows,
            "query": query,
            "people": await names_of(gateway.db, {entry.actor for entry in page.rows}),
        }
        | await visit.merchant_names()
        | visit.pager("audit", page.next_cursor),
    )


def _detail(detail: dict[str, object], *, shows_addresses: bool) -> str:
    """The addresses of the host's people are not shown to members."""
    shown = (item for item in detail.items() if shows_addresses or item[0] != "from")
    return ", ".join(f"{name}: {_text(value)}" for name, value in shown)


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, cast("list[object]", value)))
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return _UTC.sub(lambda found: format_local(datetime.fromisoformat(found[0])), text)


async def verify(visit: PageRequest) -> Redirect:
    try:
        count = await visit.gateway.audit.verify()
    except BrokenChain as problem:
        return Redirect("audit", f"The log was tampered with: {problem}.")
    return Redirect("audit", f"Chain verified: {count:,} entries, none changed.")


PAGE = Page("audit", "Audit", audit, Permission.AUDIT, menu=Menu("Audit", 82, "Gateway", "a"))
VERIFY = Action("audit/verify", "verify_audit", verify, Permission.OPERATE, back="audit")
