"""Operators' pages of a plugin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlencode

import msgspec

from mpesa_gateway.clock import rfc3339
from mpesa_gateway.db.engine import Row
from mpesa_gateway.env import Env
from mpesa_gateway.errors import ApiError, Code, FieldChecks, InvalidFields, Problem, check_fields
from mpesa_gateway.http.validation import is_moment, read_query
from mpesa_gateway.local_time import UNTIL, parse_local
from mpesa_gateway.permissions import MerchantRole, Permission, Role
from mpesa_gateway.runtime import Runtime
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.merchants import Merchant
from mpesa_gateway.security.scopes import Caller

if TYPE_CHECKING:
    from litestar import Response

__all__ = [
    "NO_PAGES",
    "Action",
    "ActorNames",
    "AttentionItem",
    "Concern",
    "FirstOperator",
    "Menu",
    "MerchantRole",
    "Owner",
    "Page",
    "PageRequest",
    "Pages",
    "Panel",
    "Permission",
    "Redirect",
    "Rendered",
    "Role",
    "SetupState",
    "SetupStep",
    "Show",
    "StepUpNeeded",
    "TimelineEntry",
    "TimelineSource",
    "Visitor",
    "WrongEnvironment",
]

Q = TypeVar("Q", bound=msgspec.Struct)

_OFFERED = 200


@dataclass(frozen=True)
class FirstOperator:
    """Contribution of the plugin that signs people in.

    ``create`` takes an e-mail address, the actor and a merchant that the person owns, if any. It returns the password,
    or None if a person exists.
    """

    create: Callable[[Runtime, str, str, str | None], Awaitable[Secret | None]]


@dataclass(frozen=True)
class ActorNames:
    """Contribution of the plugin that signs people in: the names of the actors that are persons, by actor."""

    read: Callable[[Runtime, Iterable[str]], Awaitable[Mapping[str, str]]]


class WrongEnvironment(Exception):
    """The object is of the other env."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.env: Env = env


class StepUpNeeded(ApiError):
    """The action needs a recent second factor. The form is shown again, with a field for the code."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """``actor`` is the name in the audit log; ``role`` is shown.

    ``is_fresh``: the second factor is recent, or not required. ``person_id`` and ``session_key`` are empty for the
    host's own login.
    """

    name: str
    role: str
    actor: str
    permissions: frozenset[Permission]
    is_fresh: bool = True
    person_id: str = ""
    session_key: str = ""

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions


def _parser(name: str) -> Callable[[str], datetime]:
    return partial(parse_local, is_end=name == UNTIL)


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """A request for a page or an action.

    ``values`` are from the path. ``merchant_id`` limits a member's request to one merchant; the host has None. The path
    values, ``query["merchant"]`` and ``form["merchant"]`` of a member are then of this merchant.
    """

    gateway: Runtime
    visitor: Visitor
    values: Mapping[str, str]
    query: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    form: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    problems: tuple[Problem, ...] = ()
    env: Env = "sandbox"
    merchant_id: str | None = None

    def require(self, env: Env) -> None:
        """Raise WrongEnvironment if the object is of another env."""
        if env != self.env:
            raise WrongEnvironment(env)

    def require_fresh(self) -> None:
        """Raise StepUpNeeded unless the second factor is recent."""
        if not self.visitor.is_fresh:
            raise StepUpNeeded("enter a code of your authenticator app to confirm")

    def read_query(self, kind: type[Q]) -> Q:
        """Decode the query; times without zone are East Africa Time, and a date as ``until`` includes its day.

        Raises InvalidFields, and TypeError for a member's list whose filters have no ``merchant``.
        """
        if self.merchant_id is not None and not self.values and "merchant" not in kind.__struct_fields__:
            raise TypeError(f"{kind.__name__} has no filter `merchant`: this page cannot be limited to a merchant")
        query, checks = dict(self.query), FieldChecks()
        if self.merchant_id is not None and "merchant" in kind.__struct_fields__:
            query["merchant"] = [self.merchant_id]
        for each in msgspec.structs.fields(kind):
            texts = query.get(each.encode_name, ())
            if is_moment(each.type) and len(texts) == 1 and texts[0]:
                moment = checks.take(each.encode_name, _parser(each.encode_name), texts[0])
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
        if self.merchant_id is not None:
            own = await merchants.require(self.merchant_id)
            return {"merchants": [own], "names": {own.merchant_id: own.name}}
        offered = await merchants.active(_OFFERED)
        others = set(filter(None, self.query.get("merchant", ()))) - {each.merchant_id for each in offered}
        return {
            "merchants": [*offered, *[await merchants.require(each) for each in sorted(others)]],
            "names": await merchants.names([row["merchant_id"] for row in rows]),
        }

    def text(self, name: str) -> str:
        return next(iter(self.form.get(name, ())), "").strip()

    def moments(self, *names: str) -> dict[str, datetime]:
        """Return the filled times of the form, typed in East Africa Time. Raises InvalidFields."""
        with check_fields() as checks:
            found = {name: checks.take(name, _parser(name), self.text(name)) for name in names if self.text(name)}
        return {name: moment for name, moment in found.items() if moment is not None}

    async def name_of(self, actor: str) -> str:
        for names in self.gateway.contributed(ActorNames):
            if name := (await names.read(self.gateway, [actor])).get(actor):
                return name
        return actor

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


Owner: TypeAlias = "Callable[[Runtime, str], Awaitable[str | None]]"

Show: TypeAlias = "Callable[[PageRequest], Awaitable[Rendered | Response[Any]]]"


@dataclass(frozen=True)
class Page:
    """A page for people with the permission ``needs``.

    ``names`` is the id prefix (``pay``) that links here. Panels of the same ``place`` are shown on it. A ``part`` does
    not extend the session.
    """

    path: str
    title: str
    show: Show
    needs: Permission
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
    needs: Permission
    back: str = ""


@dataclass(frozen=True)
class Panel:
    """A part of other plugins' pages with this ``place``. ``show`` takes the page's id, empty on the overview."""

    place: str
    show: Callable[[PageRequest, str], Awaitable[Rendered | None]]
    needs: Permission
    order: int = 100


@dataclass(frozen=True, kw_only=True)
class TimelineEntry:
    """One line of a timeline.

    ``body`` holds no secrets; ``about`` is an id to link to; ``by`` is an actor, shown by name.
    """

    at: datetime
    source: str
    state: str
    text: str
    body: str = ""
    answer: str = ""
    about: str = ""
    by: str = ""
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


@dataclass(frozen=True)
class Concern:
    """A source of the overview's attention items. ``read`` counts one merchant's objects if the request has one."""

    read: Callable[[PageRequest], Awaitable[Sequence[AttentionItem]]]
    needs: Permission


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

    ``owners`` find the merchant of a path value, such as ``payment_id``; None if it has none, which only the host sees.
    They raise NotFound. ``finder`` returns the page of a search text, such as a receipt. ``concerns`` include problems
    without env.
    """

    templates: str = ""
    pages: tuple[Page, ...] = ()
    acts: tuple[Action, ...] = ()
    panels: tuple[Panel, ...] = ()
    traces: tuple[TimelineSource, ...] = ()
    concerns: tuple[Concern, ...] = ()
    finder: Callable[[PageRequest, str], Awaitable[str | None]] | None = None
    owners: Mapping[str, Owner] = field(default_factory=dict[str, "Owner"])
    setup: tuple[SetupStep, ...] = ()


NO_PAGES = Pages()
