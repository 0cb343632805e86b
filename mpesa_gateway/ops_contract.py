"""Operators' pages of a plugin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlencode

import msgspec

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import FieldChecks, InvalidFields, Problem, check_fields
from mpesa_gateway.http.validation import is_moment, read_query
from mpesa_gateway.local_time import parse_local
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.security.scopes import Caller

if TYPE_CHECKING:
    from litestar import Response


Q = TypeVar("Q", bound=msgspec.Struct)

_OFFERED = 200


class Role(StrEnum):
    """View; act on payments and webhooks; change merchants, keys and secrets."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def may(self, needed: Role) -> bool:
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(needed)


@dataclass(frozen=True)
class FirstOperator:
    """Contribution of the plugin that signs operators in.

    ``create`` takes a name and the actor; returns the password, or None if an operator exists.
    """

    create: Callable[[Runtime, str, str], Awaitable[Secret | None]]


class WrongEnvironment(Exception):
    """The object is of the other env."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.env: Env = env


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """``actor`` is the name in the audit log."""

    name: str
    role: Role
    actor: str


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """A request for a page or an action.

    ``values`` are from the path.
    """

    gateway: Runtime
    visitor: Visitor
    values: Mapping[str, str]
    query: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    form: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    problems: tuple[Problem, ...] = ()
    env: Env = "sandbox"

    def require(self, env: Env) -> None:
        """Raise WrongEnvironment if the object is of another env."""
        if env != self.env:
            raise WrongEnvironment(env)

    def read_query(self, kind: type[Q]) -> Q:
        """Decode the query; times without zone are East Africa Time. Raises InvalidFields."""
        query, checks = dict(self.query), FieldChecks()
        for each in msgspec.structs.fields(kind):
            texts = query.get(each.encode_name, ())
            if is_moment(each.type) and len(texts) == 1 and texts[0]:
                moment = checks.take(each.encode_name, parse_local, texts[0])
                query[each.encode_name] = [rfc3339(moment)] if moment else []
        try:
            found = read_query({name: texts for name, texts in query.items() if texts}, kind)
        except InvalidFields as refused:
            raise InvalidFields([*checks.problems, *refused.problems]) from None
        checks.settle()
        return found

    def kept_query(self, *without: str) -> str:
        return urlencode(
            [(name, text) for name, texts in self.query.items() if name not in without for text in texts if text]
        )

    def pager(self, path: str, next_cursor: str | None) -> dict[str, Any]:
        here = self.kept_query("cursor")
        return {
            "list_path": path,
            "here": here,
            "here_is_older": any(self.query.get("cursor", ())),
            "next": next_cursor and "&".join(part for part in (here, urlencode({"cursor": next_cursor})) if part),
        }

    async def merchant_names(self, rows: Sequence[Row] = ()) -> dict[str, Any]:
        merchants = self.gateway.merchants
        chosen = self.query.get("merchant", ())
        return {
            "merchants": [
                each for each in (await merchants.page(_OFFERED)).rows if each.is_active or each.merchant_id in chosen
            ],
            "names": await merchants.names([row["merchant_id"] for row in rows]),
        }

    def text(self, name: str) -> str:
        return next(iter(self.form.get(name, ())), "").strip()

    def moments(self, *names: str) -> dict[str, datetime]:
        """Return the filled times of the form, typed in East Africa Time. Raises InvalidFields."""
        with check_fields() as checks:
            found = {name: checks.take(name, parse_local, self.text(name)) for name in names if self.text(name)}
        return {name: moment for name, moment in found.items() if moment is not None}

    def caller(self, merchant: Merchant, env: Env) -> Caller:
        """``env`` defaults to the selected one."""
        return Caller(merchant.merchant_id, "", frozenset(), env, by=self.visitor.actor)


@dataclass(frozen=True)
class Rendered:
    """A template with its values."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    title: str | None = None


@dataclass(frozen=True)
class Redirect:
    """The next page, relative to the pages' address.

    ``secret`` is shown once and stored sealed until then.
    """

    to: str
    note: str = ""
    secret: Secret | None = None
    is_warning: bool = False


@dataclass(frozen=True)
class Menu:
    """``key`` follows ``g`` as a shortcut."""

    label: str
    order: int
    group: str = ""
    key: str = ""


Show: TypeAlias = "Callable[[PageRequest], Awaitable[Rendered | Response[Any]]]"


@dataclass(frozen=True)
class Page:
    """A page for operators with at least ``role``.

    ``names`` is the id prefix (``pay``) that links here. Panels of the same ``place`` are shown on it. A ``part`` does
    not extend the session.
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
    """A POST, recorded in the audit log under ``name``.

    Errors are shown on the page at the same path, or else at ``back``.
    """

    path: str
    name: str
    do: Callable[[PageRequest], Awaitable[Redirect]]
    role: Role = Role.OPERATOR
    back: str = ""


@dataclass(frozen=True)
class Panel:
    """A part of other plugins' pages with this ``place``. ``show`` takes the page's id."""

    place: str
    show: Callable[[PageRequest, str], Awaitable[Rendered | None]]
    order: int = 100


@dataclass(frozen=True, kw_only=True)
class TimelineEntry:
    """One line of a timeline.

    ``body`` holds no secrets; ``about`` is an id to link to.
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
    """Entries for pages with this ``place``."""

    place: str
    read: Callable[[Runtime, str], Awaitable[Sequence[TimelineEntry]]]


@dataclass(frozen=True, kw_only=True)
class AttentionItem:
    """A problem that needs an operator. ``state`` is ``failed`` if money or trust is at risk, else ``attention``."""

    text: str
    to: str
    state: str = "attention"


@dataclass(frozen=True, kw_only=True)
class SetupState:
    """``text`` is the fact, or the effect of the missing step. ``action`` labels the button to ``to``.

    ``is_post``: ``to`` is an action instead of a page. Its form sends ``from=setup``.
    """

    is_done: bool
    text: str
    action: str = ""
    to: str = ""
    is_post: bool = False


@dataclass(frozen=True, kw_only=True)
class SetupStep:
    """A step from a new merchant to its first payment in one env.

    ``read`` uses Postgres only. ``proves`` names steps that cannot be missing once this one is done.
    """

    name: str
    title: str
    order: int
    read: Callable[[Runtime, str, Env], Awaitable[SetupState]]
    proves: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pages:
    """Pages of one plugin. ``templates`` is a package.

    ``finder`` returns the page of a search text, such as a receipt. ``concerns`` include problems without env.
    """

    templates: str = ""
    pages: tuple[Page, ...] = ()
    acts: tuple[Action, ...] = ()
    panels: tuple[Panel, ...] = ()
    traces: tuple[TimelineSource, ...] = ()
    concerns: tuple[Callable[[Runtime, Env], Awaitable[Sequence[AttentionItem]]], ...] = ()
    finder: Callable[[PageRequest, str], Awaitable[str | None]] | None = None
    setup: tuple[SetupStep, ...] = ()


NO_PAGES = Pages()
