"""A browser without a screen: keeps cookies by path, follows redirects, parses pages, fills in and sends forms."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from typing import Any, Self
from urllib.parse import urljoin

import niquests
from pyotp.totp import TOTP

from mpesa_gateway.secret import Secret
from mpesa_gateway_ops.access import DEVICE_COOKIE

PASSWORD = Secret("a long enough password")

_INLINE = {"a", "b", "code", "small", "strong", "em", "data", "time", "span", "svg", "use", "i"}
_VOID = {"meta", "link", "input", "img", "br", "hr", "use", "path", "circle", "line", "rect"}


@dataclass
class Form:
    """A form of a page: its address, method, and prefilled fields."""

    action: str
    method: str
    fields: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    choices: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


class _Reader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.links: list[str] = []
        self.forms: list[Form] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.untidy: list[str] = []
        self._form: Form | None = None
        self._select: str | None = None
        self._textarea: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._part(tag)
        found = {name: value or "" for name, value in attrs}
        if len(found) != len(attrs):
            self.untidy.append(f"<{tag}> has an attribute twice")
        if tag not in _VOID:
            self.open.append(tag)
        for name in ("href", "src", "hx-get"):
            link = found.get(name)
            if link and not link.startswith(("data:", "#")):
                self.links.append(urljoin(self.url, link))
        if tag == "form":
            self._form = Form(urljoin(self.url, found.get("action", "")), found.get("method", "get"))
            self.forms.append(self._form)
        if self._form is not None:
            self._read_field(self._form, tag, found)

    def _read_field(self, form: Form, tag: str, found: Mapping[str, str]) -> None:
        name = found.get("name", "")
        if tag in {"input", "button"} and name:
            if found.get("type") in {"checkbox", "radio"}:
                form.choices.setdefault(name, []).append(found.get("value", "on"))
                if "checked" not in found:
                    return
            form.fields.setdefault(name, []).append(found.get("value", "on" if "type" in found else ""))
        elif tag == "select":
            self._select = name
        elif tag == "option" and self._select:
            form.choices.setdefault(self._select, []).append(found.get("value", ""))
            if "selected" in found or self._select not in form.fields:
                form.fields[self._select] = [found.get("value", "")]
        elif tag == "textarea":
            self._textarea = name
            form.fields[name] = [""]

    def _part(self, tag: str) -> None:
        if tag not in _INLINE:
            self.words.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._part(tag)
        if not self.open or self.open.pop() != tag:
            self.untidy.append(f"</{tag}> closes something else")
        if tag == "form":
            self._form = None
        elif tag == "select":
            self._select = None
        elif tag == "textarea":
            self._textarea = None

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if self._textarea is not None and self._form is not None:
            self._form.fields[self._textarea] = [data]
        self.words.append(data)


@dataclass(frozen=True)
class Page:
    """A page as a browser shows it."""

    status: int
    url: str
    headers: Mapping[str, str]
    text: str

    @cached_property
    def _read(self) -> _Reader:
        reader = _Reader(self.url)
        reader.feed(self.text)
        reader.close()
        return reader

    @property
    def words(self) -> str:
        """The visible text, with single spaces."""
        return " ".join("".join(self._read.words).split())

    @property
    def links(self) -> list[str]:
        """The addresses of the page's links and files."""
        return self._read.links

    @property
    def forms(self) -> list[Form]:
        return self._read.forms

    @property
    def unbalanced_tags(self) -> list[str]:
        """The unbalanced tags that a validator would report first."""
        return [*self._read.untidy, *(f"<{tag}> stays open" for tag in self._read.open)]

    def form(self, ending: str) -> Form:
        """Return the first POST form whose address has this ending."""
        found = [form for form in self.forms if form.action.endswith(ending) and form.method == "post"]
        assert found, f"no form leads to …{ending}: {[form.action for form in self.forms]}"
        return found[0]

    def has_form(self, ending: str) -> bool:
        """Return True if a form has such an address."""
        return any(form.action.endswith(ending) and form.method == "post" for form in self.forms)

    def link(self, ending: str) -> str:
        """Return the first link with this ending."""
        found = [link for link in self.links if link.endswith(ending)]
        assert found, f"no link ends with {ending}: {self.links}"
        return found[0]

    def field(self, name: str) -> str:
        """Return the value of the first field with this name, in any form."""
        found = [form.fields[name][0] for form in self.forms if name in form.fields]
        assert found, self.text
        return found[0]


class Browser:
    """Keeps cookies by path, as browsers do, and sends the Origin header."""

    def __init__(self, ops: str) -> None:
        self.ops = ops
        self._session = niquests.AsyncSession(retries=0)
        self._session.trust_env = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @property
    def cookies(self) -> list[Any]:
        """The session cookies, without the device cookie."""
        return [cookie for cookie in self._session.cookies if cookie.name != DEVICE_COOKIE]

    @property
    def device_cookies(self) -> list[Any]:
        """The device cookies of earlier sign-ins."""
        return [cookie for cookie in self._session.cookies if cookie.name == DEVICE_COOKIE]

    def add_cookies(self, cookies: list[Any]) -> None:
        """Store the cookies of another browser."""
        for cookie in cookies:
            self._session.cookies[cookie.name] = cookie.value

    async def open(self, path: str = "", *, accept: str = "text/html", follows: bool = True) -> Page:
        """Open a page."""
        url = path if path.startswith("http") else self.ops + path
        return _page(await self._session.get(url, headers={"Accept": accept}, allow_redirects=follows))

    async def send(
        self,
        path: str,
        fields: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        follows: bool = True,
    ) -> Page:
        """Send a form, from our own page unless ``headers`` say otherwise."""
        url = path if path.startswith("http") else self.ops + path
        origin = re.sub(r"(http://[^/]+).*", r"\1", self.ops)
        sent = {"Accept": "text/html", "Origin": origin}
        sent = {name: value for name, value in (sent | dict(headers or {})).items() if value}
        return _page(await self._session.post(url, data=dict(fields), headers=sent, allow_redirects=follows))

    async def submit(self, page: Page, ending: str, **filled: Any) -> Page:
        """Send the form of this page whose address has this ending, with these fields filled in."""
        form = page.form(ending)
        unknown = set(filled) - set(form.fields) - set(form.choices)
        assert not unknown, f"the form has no field {unknown}: {sorted(form.fields)}"
        fields = form.fields | filled
        return await self.send(form.action, fields)

    async def sign_in(self, name: str = "amina", password: Secret = PASSWORD, **options: Any) -> Page:
        """Send the login form. A name without an @ is of the shop."""
        email = name if "@" in name or not name else f"{name}@shop.example"
        return await self.send("/login", {"email": email, "password": password.reveal()}, **options)


async def set_up_factor(browser: Browser) -> list[str]:
    """Set up a second factor for the signed-in person, and return its recovery codes."""
    page = await browser.open("/account/second-factor")
    page = await browser.submit(page, "/account/second-factor/offer", password=PASSWORD.reveal())
    secret = re.search(r"<code data-copy>([A-Z2-7]{32})</code>", page.text)
    assert secret is not None, page.words
    code = TOTP(secret[1]).now()
    # Apps show a code in two halves; a shorter field would cut what a person types or pastes.
    typed = f"{code[:3]} {code[3:]}"
    longest = re.search(r'name="code"[^>]* maxlength="(\d+)"', page.text)
    assert longest is not None
    page = await browser.submit(page, "/account/second-factor/confirm", code=typed[: int(longest[1])])
    codes = re.findall(r"\b[0-9a-z]{4}-[0-9a-z]{4}-[0-9a-z]{4}\b", page.words)
    assert len(codes) == 10, page.words
    return codes


def _page(response: niquests.Response) -> Page:
    """Return the page. Raises AssertionError for one that shows a person's id where their name belongs."""
    page = Page(response.status_code or 0, str(response.url), response.headers, response.text or "")
    if "html" in (response.headers.get("content-type") or ""):
        assert "person:per_" not in page.words, f"{page.url}: {page.words}"
    return page


@asynccontextmanager
async def signed_in(ops: str, name: str = "amina") -> AsyncGenerator[Browser]:
    """Yield a browser with a signed-in operator."""
    async with Browser(ops) as browser:
        assert (await browser.sign_in(name)).status == 200
        yield browser
