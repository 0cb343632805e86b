"""The search on every page: what somebody has in hand leads to the page about it."""

from mpesa_gateway.errors import NotFound
from mpesa_gateway.pages import Act, Done, Page, Role, Shown, Visit
from mpesa_gateway_ops.desk import Desk

_LONGEST = 200


async def nothing_found(_: Visit) -> Shown:
    """The page of a search that led nowhere, or was not one."""
    return Shown("nothing_found.html")


async def find(visit: Visit) -> Done:
    """Go where the text leads. Raises NotFound."""
    text = visit.text("text")[:_LONGEST]
    path = await visit.gateway.port(Desk).find(visit, text) if text else ""
    if path is None:
        raise NotFound("no enabled plugin knows what that could be")
    return Done(path)


PAGE = Page("find", "Find", nothing_found)
FIND = Act("find", "find", find, role=Role.VIEWER)
