"""The search on every page: what somebody has in hand leads to the page about it."""

from mpesa_gateway.errors import NotFound
from mpesa_gateway.ops_contract import Action, Page, PageRequest, Redirect, Rendered, Role
from mpesa_gateway_ops.page_registry import PageRegistry

_LONGEST = 200


async def nothing_found(_: PageRequest) -> Rendered:
    """The page of a search that led nowhere, or was not one."""
    return Rendered("nothing_found.html")


async def find(visit: PageRequest) -> Redirect:
    """Go where the text leads. Raises NotFound."""
    text = visit.text("text")[:_LONGEST]
    path = await visit.gateway.port(PageRegistry).find(visit, text) if text else ""
    if path is None:
        raise NotFound("no enabled plugin knows what that could be")
    return Redirect(path)


PAGE = Page("find", "Find", nothing_found)
FIND = Action("find", "find", find, role=Role.VIEWER)
