"""Pages of events and their subscribers, with a retry of stuck events."""

from collections.abc import Sequence

import msgspec

from mpesa_gateway.db.outbox import HANDLE
from mpesa_gateway.db.outbox_admin import EventsQuery, OutboxAdmin
from mpesa_gateway.errors import Conflict
from mpesa_gateway.events import PublicEvent
from mpesa_gateway.ops_contract import Action, AttentionItem, Menu, Page, PageRequest, Permission, Redirect, Rendered
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.runtime import Runtime

_A_PAGE = 50


def _log(gateway: Runtime) -> OutboxAdmin:
    return OutboxAdmin(gateway.db, gateway.clock)


async def events(visit: PageRequest) -> Rendered:
    gateway, query = visit.gateway, visit.read_query(EventsQuery)
    page = await _log(gateway).page(visit.env, query, _A_PAGE)
    return Rendered(
        "events.html",
        {
            "rows": page.rows,
            "stuck": await _log(gateway).stuck(visit.env),
            "query": query,
            "kinds": [kind for kind in gateway.event_kinds if issubclass(gateway.event_type(kind), PublicEvent)],
        }
        | await visit.merchant_names(page.rows)
        | visit.pager("events", page.next_cursor),
    )


async def event(visit: PageRequest) -> Rendered:
    log = _log(visit.gateway)
    row = await log.get(visit.values["event_id"])
    if row["env"] is not None:
        visit.require(row["env"])
    text: str = row["body"] or row["payload"]
    return Rendered(
        "event.html",
        {
            "row": row,
            "tasks": await log.tasks(row["event_id"]),
            "body": mask_phones(bytes(msgspec.json.format(text.encode(), indent=2)).decode()),
        },
        title=row["kind"],
    )


async def wake(visit: PageRequest) -> Redirect:
    event_id, subscriber = visit.values["event_id"], visit.text("subscriber")
    if not await _log(visit.gateway).wake(event_id, subscriber):
        raise Conflict("this subscriber has already handled the event")
    await visit.gateway.jobs.enqueue(HANDLE, event_id=event_id, subscriber=subscriber)
    return Redirect(f"events/{event_id}", "Retry queued.")


async def stuck(visit: PageRequest) -> Sequence[AttentionItem]:
    """Report events that a subscriber cannot process."""
    count = len(await _log(visit.gateway).stuck(visit.env))
    if not count:
        return ()
    text = f"{count if count < 100 else '100 or more'} {'event' if count == 1 else 'events'} with a failing subscriber"
    return (AttentionItem(text=text, to="events"),)


PAGES = (
    Page("events", "Events", events, Permission.GATEWAY, menu=Menu("Events", 51, "Merchants", "e")),
    Page("events/{event_id}", "Event", event, Permission.GATEWAY, names="evt", place="event"),
)
ACTS = (Action("events/{event_id}/wake", "wake_subscriber", wake, Permission.OPERATE, back="events/{event_id}"),)
