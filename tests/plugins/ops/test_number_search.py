"""Protects masked numbers from search: a viewer gets the same answer for the right number as for any other."""

import re
from collections.abc import Callable
from itertools import product
from urllib.parse import quote

import pytest

from mpesa_gateway.ops_contract import Role
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_payments.operator_service import PaymentOperatorService
from tests.browsing import Browser
from tests.plugins.ops.conftest import OpsSite

RIGHT, WRONG = "254711000001", "254711999001"
"""Two numbers with the same masked form."""

SPELLINGS: dict[str, Callable[[str], str]] = {
    "whole": str,
    "plus": lambda number: f"+{number}",
    "national": lambda number: f"0{number[3:]}",
    "short": lambda number: number[3:],
    "spaced": lambda number: f" 0{number[3:6]} {number[6:9]}-{number[9:]} ",
    "parentheses": lambda number: f"({number[:3]}) {number[3:]}",
    "key": lambda number: f"order-{number}-7",
    "handle": lambda number: f"ws_CO_01122026120000123{number[3:]}",
    "lower handle": lambda number: f"ws_co_01122026120000123{number[3:]}",
    "listed": lambda number: f"{number} OR {number}",
}


async def _paid(ops_site: OpsSite, reference: str = "ORDER 1") -> None:
    """A payment of the right number, with the number in its key and in Daraja's handle."""
    made = await ops_site.api.pay(RIGHT, 500, key=SPELLINGS["key"](RIGHT), reference=reference)
    await ops_site.api.settled(made.data["id"])
    await ops_site.gateway.db.execute(
        "UPDATE payment SET checkout_request_id = $2 WHERE payment_id = $1", made.data["id"], SPELLINGS["handle"](RIGHT)
    )


async def _answer(browser: Browser, search_path: str, text: str, token: str) -> tuple[int, str]:
    """Returns status and text of a search, without nonces, ids of the request and sealed texts."""
    if search_path.startswith("/"):
        page = await browser.open(search_path.format(quote(text)))
    else:
        act, _, field = search_path.partition(" ")
        page = await browser.send(act_path(act), {"form_token": token, field: text})
    # Pages repeat the searched number; any other difference is a leak.
    shown = re.sub(r"(?:000|999)(?=\W{0,3}001)", "…", page.text)
    return page.status, re.sub(r"note=\w+|terms=[\w-]+|[0-9a-f]{32,}|req_\w+|data-at=\"[^\"]*\"", "", shown)


def act_path(act: str) -> str:
    return {"look": "/payments/look", "find": "/find"}[act]


IN_ALL_SPELLINGS = (
    "/payments?search={}",
    "/payments/newer?search={}&env=sandbox",
    "/payments?reference={}",
    "look search",
    "look reference",
    "find text",
)
WHOLE = (
    "/payments?phone={}",
    "/payments?search={}&status=completed&min_amount=500&max_amount=500",
    "/payments?search={}&since=2020-01-01T00:00:00Z&held=true",
    "/payments/newer?phone={}&env=sandbox",
    "/payments?payer={}",
    "/payments?cursor={}",
    "/payments?reference={}&status=completed",
    "/payments?count=true&search={}",
    "/payments?sort=phone&search={}",
    "/audit?subject={}",
    "look phone",
)


async def test_search_by_a_viewer_answers_the_same_for_right_and_wrong_numbers(ops_site: OpsSite) -> None:
    await _paid(ops_site, reference=RIGHT)
    leaks: list[str] = []
    async with ops_site.browser(Role.VIEWER) as browser:
        token = (await browser.open("/payments")).field("form_token")
        for search_path, name in (*product(IN_ALL_SPELLINGS, SPELLINGS), *product(WHOLE, ["whole"])):
            right = await _answer(browser, search_path, SPELLINGS[name](RIGHT), token)
            wrong = await _answer(browser, search_path, SPELLINGS[name](WRONG), token)
            assert right[0] != 500
            if right != wrong:
                leaks.append(f"{search_path}, {name}")
        assert leaks == []
        export = f"/payments/export?merchant={ops_site.merchant_id}&phone="
        assert [(await browser.open(export + number)).status for number in (RIGHT, WRONG)] == [403, 403]


INV = "INV-1041"

PARTS = ("0001", "9001", "00 0001", "2547110000", "2547119990", "254711", "NO 0711000", "NO 0711999", "No 071100000")
"""Parts of the right number and of the wrong one, as digits and as starts of references."""


async def test_search_by_a_viewer_finds_no_part_of_a_number(ops_site: OpsSite) -> None:
    whole = (await ops_site.api.pay(RIGHT, 500, key="a", reference=RIGHT, metadata={"payer": RIGHT})).data["id"]
    within = (await ops_site.api.pay(RIGHT, 500, key="b", reference="N 711000001")).data["id"]
    plain = (await ops_site.api.pay(RIGHT, 500, key="c", reference="INV-1041")).data["id"]
    async with ops_site.browser(Role.VIEWER) as viewer, ops_site.browser(Role.OPERATOR) as operator:
        token = (await viewer.open("/payments")).field("form_token")
        for text in (*PARTS, "N 711000", "N 711999"):
            for page in (
                await viewer.open(f"/payments?search={quote(text)}"),
                await viewer.send("/find", {"form_token": token, "text": text}),
                await viewer.send("/payments/look", {"form_token": token, "search": text}),
            ):
                assert [one for one in (whole, within, plain) if one in page.text] == [], text
        # A reference without a number is found by its start, also by a viewer.
        assert plain in (await viewer.open("/payments?search=INV")).text
        for text, payment in (("0001", plain), ("254711", whole), ("N 711000", within)):
            assert payment in (await operator.open(f"/payments?search={quote(text)}")).text, text


@pytest.mark.parametrize(
    "reference", ["0711 000 001", "0711-000-001", "711 000 001", "0711\u2011000 001", "N 711.000001", "(0711)000001"]
)
async def test_search_by_a_viewer_finds_no_start_of_a_number_with_separators(ops_site: OpsSite, reference: str) -> None:
    paid = (await ops_site.api.pay(RIGHT, 500, key="a", reference=INV)).data["id"]
    await ops_site.gateway.db.execute("UPDATE payment SET reference = $2 WHERE payment_id = $1", paid, reference)
    async with ops_site.browser(Role.VIEWER) as viewer, ops_site.browser(Role.OPERATOR) as operator:
        for length in range(2, len(reference) + 1):
            page = await viewer.send(
                "/payments/look",
                {"form_token": (await viewer.open("/account")).field("form_token"), "search": reference[:length]},
            )
            # Without the search, the list has everything.
            is_refused = "does not show phone numbers" in page.words
            assert is_refused or paid not in page.text, reference[:length]
        for path in ("/payments", f"/payments/{paid}"):
            assert not re.search(r"711\W*000\W*001", (await viewer.open(path)).text), path
            assert reference in (await operator.open(path)).text.replace("&#39;", "'"), path


async def test_search_by_number_of_an_operator_puts_no_number_in_the_url(ops_site: OpsSite) -> None:
    await _paid(ops_site)
    async with ops_site.browser(Role.OPERATOR) as browser:
        for name in ("search", "phone"):
            page = await browser.open(f"/payments?{name}={RIGHT}")
            assert "are not allowed in a URL" in page.text
        page = await browser.open("/payments")
        for field in ("search", "phone"):
            found = await browser.submit(page, "/payments/look", **{field: RIGHT})
            assert RIGHT not in found.url
            assert "payer=" in found.url
            assert "KES 500" in found.words
        assert ("payments.search", None) in await ops_site.acted()


@pytest.mark.parametrize(
    "text",
    [
        "tel 0711000001",
        "0711 000 0",
        "254711000",
        "000001",
        "0001",
        "0722000111",
        "\u0660\u0667\u0661\u0661",
        "INV 07110000",
    ],
)
async def test_search_by_a_part_of_a_number_is_sealed_in_the_url(ops_site: OpsSite, text: str) -> None:
    paid = (await ops_site.api.pay(RIGHT, 500, key="a", reference=text[:12] if text.isascii() else None)).data["id"]
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/payments")
        for path, field in (("/payments/look", "search"), ("/payments/look", "reference"), ("/find", "text")):
            found = await browser.submit(page, path, **{field: text})
            assert found.status == 200
            assert "terms=" in found.url or "payer=" in found.url
            for digits in (quote(text), re.sub(r"\D", "", text)):
                assert digits not in found.url
                assert f"={digits}" not in found.text
            if field == "reference":
                assert (f"/payments/{paid}" in found.text) == (text.isascii() and len(text) <= 12)
                assert found.field("reference") == text
    if text == "000001":
        # The sealed text shows a viewer no part of a number.
        service = ops_site.gateway.port(PaymentOperatorService)
        async with ops_site.browser(Role.VIEWER) as viewer:
            for terms in ({"search": "0001"}, {"search": RIGHT}, {"reference": RIGHT}):
                page = await viewer.open(f"/payments?terms={service.terms.seal(terms)}")
                assert "search" not in terms or paid not in page.text or "your role does not" in page.text
            assert "search again" in (await viewer.open("/payments?terms=abc")).text


async def test_sealed_search_is_kept_by_filters_pages_totals_and_exports(ops_site: OpsSite) -> None:
    paid = [
        (await ops_site.api.pay(RIGHT, 500, key=f"k{number}", reference="INV-1041")).data["id"] for number in (1, 2)
    ]
    other = (await ops_site.api.pay(RIGHT, 500, key="k3", reference="BILL-7")).data["id"]
    async with ops_site.browser() as browser:
        page = await browser.submit(await browser.open("/payments"), "/payments/look", search="INV-1041")
        assert page.field("search") == "INV-1041"
        assert [one in page.text for one in (*paid, other)] == [True, True, False]
        terms = page.url.partition("?")[2]
        assert "2 payments, KES 1,000" in (await browser.open(f"/payments/total?{terms}&env=sandbox")).words
        exported = await browser.open(f"/payments/export?{terms}")
        assert [one in exported.text for one in (*paid, other)] == [True, True, False]
        assert f"payments/export?{terms}" in page.text
        narrowed = await browser.submit(page, "/payments/look", reference="BILL-7")
        assert not [one for one in (*paid, other) if one in narrowed.text]
        assert narrowed.field("search") == "INV-1041"
        cleared = await browser.submit(narrowed, "/payments/look", search="")
        assert [one in cleared.text for one in (*paid, other)] == [False, False, True]


async def test_search_by_a_viewer_works_except_by_number(ops_site: OpsSite) -> None:
    await _paid(ops_site)
    row = await ops_site.gateway.db.fetchrow("SELECT payment_id, receipt, reference FROM payment")
    assert row is not None
    async with ops_site.browser(Role.VIEWER) as browser:
        for text in row.values():
            assert row["payment_id"] in (await browser.open(f"/payments?search={text}")).text
        page = await browser.open("/payments")
        found = await browser.submit(page, "/payments/look", search=RIGHT)
        assert "your role does not show phone numbers" in found.text
        # A viewer may open an operator's sealed search: it shows no more than the list.
        sealed = ops_site.gateway.services.get(PaymentOperatorService).seal_payer(Msisdn(RIGHT))
        assert row["payment_id"] in (await browser.open(f"/payments?payer={sealed}")).text


async def test_pages_for_a_viewer_contain_no_whole_number(ops_site: OpsSite) -> None:
    places = {
        "reference": RIGHT,
        "description": "+254711000001",
        "metadata": {
            "payer": RIGHT,
            RIGHT: "0711000001",
            "call": "or 0711000001!",
            "spaced": "or 0711 000 001!",
            "bare": "711-000-001",
        },
    }
    made = (await ops_site.api.pay(RIGHT, 500, key=SPELLINGS["key"](RIGHT), **places)).data
    await ops_site.api.settled(made["id"])
    # As in Daraja, the handle ends with the payer's number.
    assert made["provider_ref"].endswith(RIGHT[3:])
    refund = (await ops_site.api.call("POST", "/v1/refunds", {"payment_id": made["id"], "reason": f"ask {RIGHT}"})).data
    await eventually(lambda: _is_refunded(ops_site, refund["id"]))
    async with ops_site.browser(Role.VIEWER) as browser:
        seen: set[str] = set()
        next_ones: list[str] = [""]
        while next_ones:
            path = next_ones.pop()
            seen.add(path)
            page = await browser.open(path)
            assert page.status == 200, path
            assert not re.search(r"711\W{0,3}000\W{0,3}001", page.text), path
            next_ones += _LINKS.findall(page.text) if len(seen) < 80 else []
            next_ones = [one for one in dict.fromkeys(next_ones) if one not in seen]
    assert f"/payments/{made['id']}" in seen
    assert any(path.startswith("/callbacks/cbk_") for path in seen)
    assert any(path.startswith("/events/evt_") for path in seen)
    async with ops_site.browser(Role.OPERATOR) as browser:
        assert made["provider_ref"] in (await browser.open(f"/payments/{made['id']}")).text


async def _is_refunded(ops_site: OpsSite, refund_id: str) -> bool:
    return bool((await ops_site.api.call("GET", f"/v1/refunds/{refund_id}")).data["status"] == "completed")


_LINKS = re.compile(r'href="(?:\.\./)*ops(/(?!live|sandbox|queue/static|logout)[^"#&]*)"')
