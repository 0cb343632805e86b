"""The search on every page, which leads to the page of an id or text."""

from mpesa_gateway.errors import require_found
from mpesa_gateway.ops_contract import Action, Page, PageRequest, Permission, Redirect, Rendered
from mpesa_gateway_ops.page_registry import PageRegistry

_LONGEST = 200


async def nothing_found(_: PageRequest) -> Rendered:
    return Rendered("nothing_found.html")


async def find(visit: PageRequest) -> Redirect:
    """Redirect to the page of the text. Raises NotFound."""
    text = visit.text("text")[:_LONGEST]
    path = require_found(
        await visit.gateway.port(PageRegistry).find(visit, text) if text else "",
        "no enabled plugin recognises this text",
    )
    return Redirect(path)


PAGE = Page("find", "Find", nothing_found, Permission.VIEW)
FIND = Action("find", "find", find, Permission.VIEW)
