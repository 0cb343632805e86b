"""What a plugin lets operators see and do: plain values, which the plugin that serves the operators' pages mounts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlencode

import msgspec

from mpesa_gateway.clock import EAT, rfc3339
from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import Problem
from mpesa_gateway.http.validation import read_query
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.security.scopes import Caller

if TYPE_CHECKING:
    from litestar import Response


Q = TypeVar("Q", bound=msgspec.Struct)

_OFFERED = 200
"""Merchants, the newest, that a list can be filtered by."""


class Role(StrEnum):
    """What an operator may do: look; act on payments and webhooks; change merchants, keys and secrets too."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        """Whether this role is at least the one that is needed."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(needed)


@dataclass(frozen=True)
class FirstOperator:
    """A contribution (``Plugin.contributes``) of the plugin that signs operators in.

    ``create`` takes a name and who acts. It returns the first operator's password, None where there is an operator.
    """

    create: Callable[[Runtime, str, str], Awaitable[Secret | None]]


class WrongEnvironment(Exception):
    """The page shows something of the other env: it is shown again once that one is looked at."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.env: Env = env


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who looks at a page or acts on it. ``actor`` is how the audit log names them."""

    name: str
    role: Role
    actor: str


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """One request for a page, or one act.

    ``values`` are those in the page's address, ``query`` what follows it, ``form`` the fields that were sent with an
    act; ``problems`` say what was wrong with them when a page is shown again. Operators look at one env at a time.
    """

    gateway: Runtime
    visitor: Visitor
    values: Mapping[str, str]
    query: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    form: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    problems: tuple[Problem, ...] = ()
    env: Env = "sandbox"
    """The world that is looked at, or that the form was shown in."""

    def require(self, env: Env) -> None:
        """Raise WrongEnvironment where what the page shows is of another env than the one that is looked at."""
        if env != self.env:
            raise WrongEnvironment(env)

    def read_query(self, kind: type[Q]) -> Q:
        """What follows the page's address, as a struct. Raises Invalid."""
        return read_query(self.query, kind)

    def kept_query(self, *without: str) -> str:
        """What follows the page's address, without what is empty and what is named, for a link to more of the same."""
        return urlencode(
            [(name, text) for name, texts in self.query.items() if name not in without for text in texts if text]
        )

    def pager(self, path: str, next_cursor: str | None) -> dict[str, Any]:
        """What the frame's ``pager.html`` needs: the list's path, where it goes on, and back to its beginning."""
        here = self.kept_query("cursor")
        return {
            "list_path": path,
            "here": here,
            "here_is_older": any(self.query.get("cursor", ())),
            "next": next_cursor and "&".join(part for part in (here, urlencode({"cursor": next_cursor})) if part),
        }

    async def merchant_names(self, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """The active merchants for the filter of a list (``whose.html``), and the names of those in its rows."""
        merchants = self.gateway.merchants
        chosen = self.query.get("merchant", ())
        return {
            "merchants": [
                each for each in (await merchants.page(_OFFERED)).rows if each.is_active or each.merchant_id in chosen
            ],
            "names": await merchants.names([row["merchant_id"] for row in rows]),
        }

    def text(self, name: str) -> str:
        """A field of the form without the spaces around it, empty without one."""
        return next(iter(self.form.get(name, ())), "").strip()

    def moment(self, name: str) -> str:
        """A time of the form in RFC 3339: one without a zone, as its field gives it, is East Africa Time.

        What is no time is given as it was typed, for whoever reads it to refuse.
        """
        text = self.text(name)
        try:
            moment = datetime.fromisoformat(text)
            return text if moment.tzinfo else rfc3339(moment.replace(tzinfo=EAT))
        except (ValueError, OverflowError):
            return text

    def caller(self, merchant: Merchant, env: Env) -> Caller:
        """This visitor acting for a merchant in ``env``, for services that take who calls.

        ``env`` is that of the object that is acted on, or the visit's where there is none.
        """
        return Caller(merchant.merchant_id, "", frozenset(), env, by=self.visitor.actor)


@dataclass(frozen=True)
class Rendered:
    """What a page shows: a template of the plugin's, and what it is filled with. ``title`` goes before the page's."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    title: str | None = None


@dataclass(frozen=True)
class Redirect:
    """What an act came to: the page to go on with (below the pages' own address), and what to say there.

    ``secret`` is shown there once, and kept sealed until then.
    """

    to: str
    note: str = ""
    secret: Secret | None = None
    is_warning: bool = False
    """Done, with a result that needs review: shown without the colour of success."""


@dataclass(frozen=True)
class Menu:
    """Where a page stands in the menu. A lower ``order`` comes first; groups come in the order of their first page.

    ``key`` is what to press after ``g`` to get there.
    """

    label: str
    order: int
    group: str = ""
    key: str = ""


Show: TypeAlias = "Callable[[PageRequest], Awaitable[Rendered | Response[Any]]]"


@dataclass(frozen=True)
class Page:
    """A page at ``path``, such as ``payments/{payment_id}``, for those whose role is at least ``role``.

    ``names`` is the prefix of the ids that the page is about (``pay``): wherever one is shown, it leads here. With a
    ``place``, other plugins' panels for that place are shown on it, and what they know of the first value in its path.
    A ``part`` is a piece of a page, asked for by a page that is open: it keeps no login alive.
    """

    path: str
    title: str
    show: Show
    role: Role = Role.VIEWER
    menu: Menu | None = None
    names: str = ""
    place: str = ""
    is_part: bool = False


@dataclass(frozen=True)
class Action:
    """Something to do at ``path``, by POST, for those whose role is at least ``role``; the audit log keeps who did it.

    ``name`` is what the log calls it, after the plugin's own. When it is refused, the page at the same path is shown
    again with what was wrong, or else the one at ``back``.
    """

    path: str
    name: str
    do: Callable[[PageRequest], Awaitable[Redirect]]
    role: Role = Role.OPERATOR
    back: str = ""


@dataclass(frozen=True)
class Panel:
    """A part of another plugin's page, for the ``place`` that it names; nothing where ``show`` gives None.

    The second argument is the id that the page is about, empty where it is about none.
    """

    place: str
    show: Callable[[PageRequest, str], Awaitable[Rendered | None]]
    order: int = 100


@dataclass(frozen=True, kw_only=True)
class TimelineEntry:
    """One line of a timeline: what happened when, in a word of state and a sentence.

    ``body`` is what was said, as text, with nothing secret left in it; ``about`` the id that it leads to; ``ms`` how
    long it took in milliseconds.
    """

    at: datetime
    source: str
    state: str
    text: str
    body: str = ""
    answer: str = ""
    about: str = ""
    ms: int | None = None


@dataclass(frozen=True)
class TimelineSource:
    """What a plugin knows of an object's past, for the timeline on the page of that ``place``."""

    place: str
    read: Callable[[Runtime, str], Awaitable[Sequence[TimelineEntry]]]


@dataclass(frozen=True, kw_only=True)
class AttentionItem:
    """Something that wants a person's attention: a sentence, and the page where it can be looked after.

    ``state`` is ``failed`` where money or trust is at stake, else ``attention``.
    """

    text: str
    to: str
    state: str = "attention"


@dataclass(frozen=True)
class Pages:
    """Everything that one plugin brings to the operators' pages.

    ``templates`` is the package with the folder ``templates``. A ``finder`` gives the page for what somebody has in
    hand, such as a receipt, None for what it does not know; ids find their page by themselves. ``concerns`` are
    those of one env, and those of no env.
    """

    templates: str = ""
    pages: tuple[Page, ...] = ()
    acts: tuple[Action, ...] = ()
    panels: tuple[Panel, ...] = ()
    traces: tuple[TimelineSource, ...] = ()
    concerns: tuple[Callable[[Runtime, Env], Awaitable[Sequence[AttentionItem]]], ...] = ()
    finder: Callable[[PageRequest, str], Awaitable[str | None]] | None = None


NO_PAGES = Pages()
"""What a plugin brings that has nothing to show."""
