"""Protects pages from malformed ids in their path: the answer is 404 or another client error, never 500."""

import re
from urllib.parse import quote

from mpesa_gateway.http.templating import redirect
from mpesa_gateway.ops_contract import Role
from tests.plugins.ops.conftest import OpsSite
from tests.routes import operations

MALFORMED = {
    "emoji": "%F0%9F%98%80",
    "NUL": "%00",
    "10 kB": "a" * 10_000,
    "slash": "%2F",
    "slashes": "%2F%2F..%2F",
    "a lone surrogate": "%ED%A0%80",
    "no UTF-8": "%FF%FE",
    "line ends": "%0D%0ASet-Cookie:%20a=b",
    "dots": "..%2e",
    "braces": "%7Bmerchant_id%7D",
    "a quote": "'%20OR%201=1--",
    "reversed": "%E2%80%AE",
    "percent": "%25%32%35",
    "an id with more": "mer_01jd00000000000000000000ab%0A",
    "too large a number": "9" * 400,
}


async def test_pages_and_acts_with_malformed_ids_answer_with_client_errors(ops_site: OpsSite) -> None:
    brought = [plugin.pages for plugin in ops_site.gateway.plugins]
    every = [page.path for pages in brought for page in pages.pages]
    every += [act.path for pages in brought for act in pages.acts]
    paths = sorted({path for path in every if "{" in path})
    assert len(paths) > 20
    found: list[str] = []
    async with ops_site.browser(Role.ADMIN) as browser:
        token = (await browser.open("/merchants")).field("form_token")
        for path in paths:
            for name, text in MALFORMED.items():
                filled = "/" + re.sub(r"\{\w+\}", text, path)
                page = await browser.open(filled)
                sent = await browser.send(filled, {"form_token": token}) if name in {"emoji", "NUL", "slash"} else page
                if {page.status, sent.status} - {404, 400, 405, 414, 431}:
                    found.append(f"{path}, {name}: {page.status}, {sent.status}")
        queue = [each.path for each in operations() if each.path.startswith("/ops/queue/") and each.parameters]
        for path in queue:
            for name, text in MALFORMED.items():
                page = await browser.open(re.sub(r"\{\w+\}", text, path).removeprefix("/ops"))
                if page.status >= 500:
                    found.append(f"{path}, {name}: {page.status}")
    assert found == []


def test_redirect_to_any_path_has_a_valid_location_header() -> None:
    for text in ("/ops/😀", "/ops/\r\nSet-Cookie: a=b", "/ops/\x00", "/ops/\ud800", "/ops/é?a=b&c=%20#d"):
        location = redirect(text).headers["Location"]
        assert location.isascii()
        assert location.isprintable()
        assert " " not in location
    assert redirect("/ops/a?b=%20&c=1#d").headers["Location"] == "/ops/a?b=%20&c=1#d"
    assert redirect("/ops/😀").headers["Location"] == quote("/ops/😀")
