"""Who sees numbers masked finds none out by searching: an answer for the right one is that for any other."""

import re
from collections.abc import Callable
from itertools import product
from urllib.parse import quote

from mpesa_gateway.pages import Role
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_payments.desk import PaymentDesk
from tests.browsing import Browser
from tests.plugins.ops.conftest import Desk

RIGHT, WRONG = "254711000001", "254711999001"
"""Two numbers that look the same under the mask."""

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


async def _paid(desk: Desk, reference: str = "ORDER 1") -> None:
    """A payment of the right number, which stands in its key and in Daraja's handle too."""
    made = await desk.api.pay(RIGHT, 500, key=SPELLINGS["key"](RIGHT), reference=reference)
    await desk.api.settled(made.data["id"])
    await desk.gateway.db.execute(
        "UPDATE payment SET checkout_request_id = $2 WHERE payment_id = $1", made.data["id"], SPELLINGS["handle"](RIGHT)
    )


async def _answer(browser: Browser, way: str, text: str, token: str) -> tuple[int, str]:
    """What a way of asking about a text answers, without what differs from one answer to the next."""
    if way.startswith("/"):
        page = await browser.opens(way.format(quote(text)))
    else:
        act, _, field = way.partition(" ")
        page = await browser.sends(act_path(act), {"form_token": token, field: text})
    # Both numbers are echoed in the same places: what else differs is told by the list.
    shown = re.sub(r"(?:000|999)(?=\W{0,3}001)", "…", page.text)
    return page.status, re.sub(r"note=\w+|[0-9a-f]{32,}|req_\w+|data-at=\"[^\"]*\"", "", shown)


def act_path(act: str) -> str:
    """Where a form goes to."""
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


async def test_a_viewer_learns_no_number_by_any_way_of_searching(desk: Desk) -> None:
    await _paid(desk, reference=RIGHT)
    told: list[str] = []
    async with desk.browser(Role.VIEWER) as browser:
        token = (await browser.opens("/payments")).field("form_token")
        for way, name in (*product(IN_ALL_SPELLINGS, SPELLINGS), *product(WHOLE, ["whole"])):
            right = await _answer(browser, way, SPELLINGS[name](RIGHT), token)
            wrong = await _answer(browser, way, SPELLINGS[name](WRONG), token)
            assert right[0] != 500
            if right != wrong:
                told.append(f"{way}, {name}")
        assert told == []
        export = f"/payments/export?merchant={desk.merchant_id}&phone="
        assert [(await browser.opens(export + number)).status for number in (RIGHT, WRONG)] == [403, 403]


async def test_whoever_sees_whole_numbers_searches_by_them_and_not_in_an_address(desk: Desk) -> None:
    await _paid(desk)
    async with desk.browser(Role.OPERATOR) as browser:
        for name in ("search", "phone"):
            page = await browser.opens(f"/payments?{name}={RIGHT}")
            assert "does not stand in an address" in page.text
        page = await browser.opens("/payments")
        for field in ("search", "phone"):
            found = await browser.submits(page, "/payments/look", **{field: RIGHT})
            assert RIGHT not in found.url
            assert "payer=" in found.url
            assert "KES 500" in found.words
        assert ("payments.search", None) in await desk.acted()


async def test_a_viewer_searches_by_all_else_and_is_told_why_not_by_number(desk: Desk) -> None:
    await _paid(desk)
    row = await desk.gateway.db.fetchrow("SELECT payment_id, receipt, reference FROM payment")
    assert row is not None
    async with desk.browser(Role.VIEWER) as browser:
        for text in row.values():
            assert row["payment_id"] in (await browser.opens(f"/payments?search={text}")).text
        page = await browser.opens("/payments")
        found = await browser.submits(page, "/payments/look", search=RIGHT)
        assert "an operator&#39;s role is needed" in found.text
        # What an operator has sealed, a viewer can follow: it says no more than the list.
        sealed = desk.gateway.services.get(PaymentDesk).seal_payer(Msisdn(RIGHT))
        assert row["payment_id"] in (await browser.opens(f"/payments?payer={sealed}")).text


async def test_a_viewer_sees_no_whole_number_on_any_page_wherever_it_stands(desk: Desk) -> None:
    places = {
        "reference": RIGHT,
        "description": "+254711000001",
        "metadata": {"payer": RIGHT, RIGHT: "0711000001", "call": "or 0711000001!"},
    }
    made = (await desk.api.pay(RIGHT, 500, key=SPELLINGS["key"](RIGHT), **places)).data
    await desk.api.settled(made["id"])
    # Our simulator writes handles as Daraja does; this holds it to that.
    assert made["provider_ref"].endswith(RIGHT[3:])
    refund = (await desk.api.call("POST", "/v1/refunds", {"payment_id": made["id"], "reason": f"ask {RIGHT}"})).data
    await eventually(lambda: _is_refunded(desk, refund["id"]))
    async with desk.browser(Role.VIEWER) as browser:
        seen: set[str] = set()
        next_ones: list[str] = [""]
        while next_ones:
            path = next_ones.pop()
            seen.add(path)
            page = await browser.opens(path)
            assert page.status == 200, path
            assert "711000001" not in page.text, path
            next_ones += _LINKS.findall(page.text) if len(seen) < 80 else []
            next_ones = [one for one in dict.fromkeys(next_ones) if one not in seen]
    assert f"/payments/{made['id']}" in seen
    assert any(path.startswith("/callbacks/cbk_") for path in seen)
    assert any(path.startswith("/events/evt_") for path in seen)
    async with desk.browser(Role.OPERATOR) as browser:
        assert made["provider_ref"] in (await browser.opens(f"/payments/{made['id']}")).text


async def _is_refunded(desk: Desk, refund_id: str) -> bool:
    return bool((await desk.api.call("GET", f"/v1/refunds/{refund_id}")).data["status"] == "completed")


_LINKS = re.compile(r'href="(?:\.\./)*ops(/(?!live|sandbox|queue/static|logout)[^"#&]*)"')
