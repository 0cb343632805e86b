"""The registry of all pages and actions of the enabled plugins."""

import asyncio
import re
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from mpesa_gateway.ids import Ids
from mpesa_gateway.logs import trace
from mpesa_gateway.ops_contract import Action, AttentionItem, Concern, Menu, Page, PageRequest
from mpesa_gateway.permissions import is_of_merchant
from mpesa_gateway.plugin import Plugin, PluginError
from mpesa_gateway.runtime import Runtime

log = structlog.get_logger(__name__)

T = TypeVar("T")
P = TypeVar("P", Page, Action)

_ID = re.compile(r"([a-z]{3})_[0-9a-z]{4,40}\Z", re.ASCII)
_VALUE = "[0-9A-Za-z_.:~-]{1,128}"
"""An id or a job key (`payments.query:pay_…`); other values match no page."""


@dataclass(frozen=True)
class RegisteredPage(Generic[P]):
    """A page or an action, its plugin, and the values in its address."""

    plugin: str
    it: P
    values: dict[str, str]


class PageRegistry:
    """Indexes pages and actions. Raises PluginError if two have the same address."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        brought = [(plugin.name, plugin.pages) for plugin in runtime.contributed(Plugin)]
        self._pages = _PathIndex([(name, page) for name, pages in brought for page in pages.pages])
        self._acts = _PathIndex([(name, act) for name, pages in brought for act in pages.acts])
        every = [page for _, pages in brought for page in pages.pages]
        self._paths = {page.names: page.path for page in every if page.names}
        self.menu: list[tuple[Menu, Page]] = sorted(
            ((page.menu, page) for page in every if page.menu is not None), key=lambda entry: entry[0].order
        )
        self.panels = sorted(
            ((name, panel) for name, pages in brought for panel in pages.panels), key=lambda entry: entry[1].order
        )
        self.traces = [trace for _, pages in brought for trace in pages.traces]
        self.setup = sorted((step for _, pages in brought for step in pages.setup), key=lambda step: step.order)
        self.concerns: list[Concern] = [concern for _, pages in brought for concern in pages.concerns]
        self._finders = [pages.finder for _, pages in brought if pages.finder is not None]
        self._owners = {name: owner for _, pages in brought for name, owner in pages.owners.items()}
        declared: list[Page | Action] = [*every, *(act for _, pages in brought for act in pages.acts)]
        for each in declared:
            if is_of_merchant(each.needs) and (value := _first_value(each.path)) and value not in self._owners:
                raise PluginError(
                    f"`/ops/{each.path}` is open to members of a merchant, and no plugin finds the merchant of "
                    f"`{value}`: declare it in `Pages(owners=...)`, or need a permission of the host"
                )

    def every(self) -> tuple[list[Page], list[Action]]:
        return self._pages.every, self._acts.every

    async def owner_of(self, found: RegisteredPage[P]) -> str | None:
        """Return the merchant of the object in a page's address. Raises NotFound."""
        name, value = next(iter(found.values.items()))
        return await self._owners[name](self._runtime, value)

    def page_at(self, path: str) -> RegisteredPage[Page] | None:
        return self._pages.find(path)

    def act_at(self, path: str) -> RegisteredPage[Action] | None:
        return self._acts.find(path)

    def may_use(self, visit: PageRequest, to: str, *, is_post: bool) -> bool:
        """Return True if the visitor may open this page, or run this action."""
        path = to.partition("#")[0].partition("?")[0]
        found = self.act_at(path) if is_post else self.page_at(path)
        return found is not None and visit.visitor.may(found.it.needs)

    def page_of(self, act: RegisteredPage[Action]) -> RegisteredPage[Page] | None:
        """Return the page with the action's address, which holds its form."""
        found = self._pages.like(act.it.path)
        return None if found is None else RegisteredPage(found[0], found[1], act.values)

    def path_of(self, object_id: str) -> str | None:
        """Return the path of an object's page by the id's prefix, or None."""
        found = _ID.match(object_id)
        path = self._paths.get(found[1]) if found else None
        return None if path is None else re.sub(r"\{\w+\}", object_id, path)

    async def find(self, visit: PageRequest, text: str) -> str | None:
        """Return the page for a whole id, or for a text that a plugin's finder knows."""
        path = self.path_of(text) if Ids.has_form(text, text[:3]) else None
        if path is not None:
            return path
        for finder in self._finders:
            if (path := await finder(visit, text)) is not None:
                return path
        return None

    async def attention_items(self, visit: PageRequest) -> list[AttentionItem]:
        """Return the items that the visitor may see, failures first."""
        seen = [concern for concern in self.concerns if visit.visitor.may(concern.needs)]
        found = await asyncio.gather(*(run_safely(concern.read(visit)) for concern in seen))
        items = [item for part in found if part is not None for item in part]
        return sorted(items, key=lambda item: item.state != "failed")


async def run_safely(work: Awaitable[T]) -> T | None:
    """Await and return the result, or log the error and return None, so that a failing part does not fail the page."""
    try:
        return await work
    except Exception as problem:  # noqa: BLE001 - see above
        log.error("panel_failed", exception=trace(problem))
        return None


class _PathIndex(Generic[P]):
    def __init__(self, brought: Sequence[tuple[str, P]]) -> None:
        self.every: list[P] = [it for _, it in brought]
        self._fixed: dict[str, tuple[str, P]] = {}
        self._open: list[tuple[re.Pattern[str], str, P]] = []
        self._shapes: dict[str, tuple[str, P]] = {}
        for plugin, it in brought:
            shape = _shape(it.path)
            if shape in self._shapes:
                raise PluginError(f"two plugins bring the page `/ops/{it.path}`: enable only one of them")
            self._shapes[shape] = plugin, it
            if "{" in it.path:
                pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>" + _VALUE + ")", re.escape(it.path))
                self._open.append((re.compile(pattern + r"\Z"), plugin, it))
            else:
                self._fixed[it.path] = plugin, it

    def find(self, path: str) -> RegisteredPage[P] | None:
        path = path.strip("/")
        if path in self._fixed:
            plugin, it = self._fixed[path]
            return RegisteredPage(plugin, it, {})
        for pattern, plugin, it in self._open:
            found = pattern.match(path)
            if found is not None:
                return RegisteredPage(plugin, it, found.groupdict())
        return None

    def like(self, path: str) -> tuple[str, P] | None:
        """Match a path by its shape, ignoring the names of values."""
        return self._shapes.get(_shape(path))


def _first_value(path: str) -> str:
    found = re.search(r"\{(\w+)\}", path)
    return found[1] if found else ""


def _shape(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)


def group_menu(menu: Iterable[tuple[Menu, Page]]) -> list[tuple[str, list[tuple[Menu, Page]]]]:
    """Return the menu by group, in the order of each group's first page."""
    found: dict[str, list[tuple[Menu, Page]]] = {}
    for entry, page in menu:
        found.setdefault(entry.group, []).append((entry, page))
    return list(found.items())
