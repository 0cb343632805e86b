"""The layout of every page: banner, menu, search and the panels of other plugins."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from litestar import Response
from markupsafe import Markup, escape

from mpesa_gateway.daraja.provider_text import provider_text
from mpesa_gateway.http import templating
from mpesa_gateway.http.templating import Connection
from mpesa_gateway.ops_contract import Page, PageRequest, Panel, Rendered, TimelineEntry
from mpesa_gateway.permissions import Permission
from mpesa_gateway.phone import NUMBER_IN_TEXT, Msisdn, mask_phones, masked_number, normal_phone
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.runtime import Runtime
from mpesa_gateway_ops.access import CODE_FIELD, env_of
from mpesa_gateway_ops.flash import FlashMessage
from mpesa_gateway_ops.page_registry import PageRegistry, RegisteredPage, group_menu, run_safely
from mpesa_gateway_ops.people import names_of
from mpesa_gateway_ops.sessions import Session

_OWN = "mpesa_gateway_ops"

_REFUSED = {403: "Not allowed", 404: "Not found"}
"""Titles of refusals by status."""

_OF_EVERY_FORM = frozenset({"form_token", "form_env", CODE_FIELD})
"""Fields that a kept form gets anew."""

_DRAWINGS_AND_BODIES = re.compile("(<svg.*?</svg>|<pre.*?</pre>)", re.DOTALL)

_IDS = re.compile(r"(?<![0-9A-Za-z_])([a-z]{3}_[0-9a-z]{26})(?![0-9A-Za-z_])")


class Layout:
    """Renders pages."""

    def __init__(self, runtime: Runtime, registry: PageRegistry) -> None:
        self._runtime = runtime
        self._registry = registry
        packages = {
            plugin.name: plugin.pages.templates for plugin in runtime.contributed(Plugin) if plugin.pages.templates
        }
        self._templates = templating.environment({"": _OWN} | packages)

    async def page(
        self,
        connection: Connection,
        session: Session,
        visit: PageRequest,
        found: RegisteredPage[Page],
        *,
        note: FlashMessage | None = None,
        status: int = 200,
    ) -> Response[Any]:
        """Render a page with its panels. Raises what the page raises."""
        page = found.it
        shown = await page.show(visit)
        if isinstance(shown, Response):
            return shown
        own: dict[str, Any] = {"title": shown.title or page.title, "note": note, "problems": visit.problems}
        values = self._values(connection, session, visit, page) | own
        if page.place:
            about = next(iter(visit.values.values()), "")
            values["panels"], values["moments"] = await asyncio.gather(
                self._panels(visit, page.place, about, values), self._moments(page.place, about)
            )
            values["actors"] = await names_of(self._runtime.db, {each.by for each in values["moments"] if each.by})
        return templating.answer(_as_seen(visit, self._render(found.plugin, shown, values)), status=status)

    def refusal(self, connection: Connection, session: Session | None, message: str, status: int) -> Response[str]:
        """Render a refusal, in the layout if signed in."""
        title = _REFUSED.get(status, "Not done" if status < 500 else "Not now")
        texts = {"title": title, "message": message}
        if session is None:
            return self.alone(connection, "refusal_alone.html", texts, status=status)
        return self._framed(connection, session, "refusal.html", texts, status)

    def step_up(
        self, connection: Connection, session: Session, form: Mapping[str, Sequence[str]], problem: str, status: int
    ) -> Response[str]:
        """Ask for a code, and keep the fields of the form that needs it."""
        kept = [(name, text) for name, texts in form.items() for text in texts if name not in _OF_EVERY_FORM]
        values = {"title": "Confirm", "kept": kept, "problem": problem, "here": connection.url.path}
        return self._framed(connection, session, "step_up.html", values, status)

    def _framed(
        self, connection: Connection, session: Session, template: str, own: Mapping[str, Any], status: int
    ) -> Response[str]:
        within = None if session.host_role else session.chosen
        visit = PageRequest(
            gateway=self._runtime,
            visitor=session.visitor(within),
            values={},
            env=env_of(connection),
            merchant_id=within,
        )
        values = self._values(connection, session, visit, None)
        text = self._templates.get_template(template).render(values | dict(own))
        return templating.answer(_as_seen(visit, text), status=status)

    def alone(
        self,
        connection: Connection,
        template: str,
        values: Mapping[str, Any],
        *,
        status: int = 200,
        more: Mapping[str, str] | None = None,
    ) -> Response[str]:
        own = {"root": templating.root(connection), "asset": templating.asset}
        return templating.answer(
            self._templates.get_template(template).render(own | dict(values)), status=status, more=more
        )

    def _values(
        self, connection: Connection, session: Session, visit: PageRequest, page: Page | None
    ) -> dict[str, Any]:
        root, now = templating.root(connection), self._runtime.clock.now()
        visitor = visit.visitor
        reached = session.visitor(session.chosen)
        menu = [(entry, other) for entry, other in self._registry.menu if reached.may(other.needs)]

        def url(path: str = "") -> str:
            return f"{root}ops/{quote(path, safe='/?&=:~%#')}" if path else f"{root}ops"

        def may(permission: str) -> bool:
            return visitor.may(Permission(permission))

        def when(moment: datetime | None, absent: str = templating.ABSENT) -> Markup:
            return templating.when(moment, now, absent)

        def ident(object_id: str | None, label: str | None = None) -> Markup:
            if not object_id:
                return escape(templating.ABSENT)
            path = self._registry.path_of(object_id)
            shown = Markup("<code>{}</code>").format(object_id) if label is None else label
            return (
                Markup("{}").format(shown) if path is None else Markup('<a href="{}">{}</a>').format(url(path), shown)
            )

        def brief(object_id: str | None) -> Markup:
            if not object_id or not _IDS.fullmatch(object_id):
                return ident(object_id)
            short = Markup('<code title="{}">{}…{}</code>').format(object_id, object_id[:4], object_id[-6:])
            return ident(object_id, short)

        def linked(text: str) -> Markup:
            parts = _IDS.split(mask_phones(text))
            return Markup("").join(brief(part) if index % 2 else part for index, part in enumerate(parts))

        def phone(number: str | None) -> str:
            if number is None:
                return templating.ABSENT
            shown = normal_phone(number)
            return shown if visitor.may(Permission.NUMBERS) or not shown.isdigit() else Msisdn(shown).masked

        def typed(text: str | None) -> str:
            """A payer may type a number with spaces, which ``mask_phones`` leaves."""
            return (text or "") if visitor.may(Permission.NUMBERS) else provider_text(text or "")

        return {
            "root": root,
            "asset": templating.asset,
            "url": url,
            "ident": ident,
            "brief": brief,
            "linked": linked,
            "phone": phone,
            "typed": typed,
            "mask": mask_phones,
            "when": when,
            "now": now,
            "visitor": visitor,
            "may": may,
            # A form acts in the env that it was shown in, even if another tab has switched.
            "token": Markup(
                '<input type="hidden" name="form_token" value="{}"><input type="hidden" name="form_env" value="{}">'
            ).format(session.form_token, visit.env),
            "is_ours": session.is_ours,
            "own_merchants": {} if session.host_role else session.merchant_names,
            "own_merchant": session.chosen if visit.merchant_id is None else visit.merchant_id,
            "menu": group_menu(menu),
            "is_live": visit.env == "live",
            "env": visit.env,
            # Only lists exist in both envs.
            "switch_to": page.path if page is not None and "{" not in page.path else "",
            "page": page,
            "note": None,
            "problems": (),
            "label_of": _label_of,
            "form": visit.form,
        }

    async def _panels(self, visit: PageRequest, place: str, about: str, values: Mapping[str, Any]) -> list[Markup]:
        chosen = [
            (plugin, panel)
            for plugin, panel in self._registry.panels
            if panel.place == place and visit.visitor.may(panel.needs)
        ]
        return [
            panel
            for panel in await asyncio.gather(
                *(self._panel(visit, plugin, each, about, values) for plugin, each in chosen)
            )
            if panel
        ]

    async def _panel(
        self, visit: PageRequest, plugin: str, panel: Panel, about: str, values: Mapping[str, Any]
    ) -> Markup | None:
        async def draw() -> Markup:
            shown = await panel.show(visit, about)
            return Markup("") if shown is None else Markup(self._render(plugin, shown, values))  # noqa: S704 - a template's

        drawn = await run_safely(draw())
        if drawn is None:
            return Markup(self._templates.get_template("panel_failed.html").render(dict(values), plugin=plugin))  # noqa: S704
        return drawn or None

    async def _moments(self, place: str, about: str) -> list[TimelineEntry]:
        readers = [trace.read(self._runtime, about) for trace in self._registry.traces if trace.place == place]
        found = await asyncio.gather(*map(run_safely, readers))
        return sorted((moment for part in found if part is not None for moment in part), key=lambda moment: moment.at)

    def _render(self, plugin: str, shown: Rendered, values: Mapping[str, Any]) -> str:
        template = self._templates.get_template(f"{plugin}/{shown.template}")
        return template.render(dict(values) | dict(shown.values))


def words_of(field: str) -> str:
    """Return the words of a field's name without its path: "Till number" for ``mpesa.till_number``."""
    return field.rpartition(".")[2].replace("_", " ").capitalize()


def _label_of(field: str, page: str) -> Markup:
    """Return a field's label on a page without a remark in parentheses. Defaults to the field's name in words."""
    name = field.rpartition(".")[2]
    found = re.search(rf'<label>([^<(]+)[^<]*<\w+ name="{re.escape(name)}"', page)
    return Markup(found[1].strip()) if found else escape(words_of(name))  # noqa: S704 - a template's


def _as_seen(visit: PageRequest, text: str) -> str:
    """Mask every payer's number without the permission ``numbers``: handles and metadata contain numbers too."""
    if visit.visitor.may(Permission.NUMBERS):
        return text
    return "".join(map(_masked, _DRAWINGS_AND_BODIES.split(text)))


def _masked(part: str) -> str:
    """Bodies have numbers that a payer typed without their prefix."""
    if part.startswith("<svg"):
        return part
    masked = mask_phones(part)
    return NUMBER_IN_TEXT.sub(masked_number, masked) if part.startswith("<pre") else masked
