"""Protects the pages of transactions: the first of two people gets the money, and no page shows a hidden number."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import pytest

from mpesa_gateway.ops_contract import MerchantRole, Role
from mpesa_gateway.testing.serving import shop
from mpesa_gateway_ops.memberships import Memberships
from mpesa_gateway_ops.people import People
from tests.browsing import PASSWORD, Browser, Page, signed_in
from tests.loose_money import receive_at, receive_loose_at
from tests.plugins.ops.conftest import OpsSite

PAYER = "254711000001"


@pytest.fixture
async def members(ops_site: OpsSite) -> AsyncGenerator[dict[MerchantRole, Browser]]:
    """A browser of each member who works with money."""
    people, memberships = ops_site.gateway.port(People), ops_site.gateway.port(Memberships)
    async with AsyncExitStack() as stack:
        found: dict[MerchantRole, Browser] = {}
        for role in (MerchantRole.OWNER, MerchantRole.CASHIER, MerchantRole.VIEWER):
            email = f"{role}@shop.example"
            person = await people.create(email, PASSWORD, role=None, actor="test")
            await memberships.add(ops_site.merchant_id, person.person_id, role, actor="test")
            found[role] = await stack.enter_async_context(signed_in(ops_site.url, email))
        yield found


async def _loose(site: OpsSite, receipt: str = "TKM0000001", **values: object) -> str:
    return await receive_loose_at(site.gateway, receipt, **({"payer": PAYER, "payer_name": "JOHN"} | values))


async def _subjects(site: OpsSite) -> list[str | None]:
    rows = await site.gateway.db.fetch("SELECT subject_kind FROM transaction ORDER BY transaction_id")
    return [row["subject_kind"] for row in rows]


# -- the list ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"allocated": "false"}, {"TKM0000001"}),
        ({"allocated": "true"}, {"TKM0000002"}),
        ({"receipt": "tkm0000002"}, {"TKM0000002"}),
        ({"account_number": "order 7"}, {"TKM0000001"}),
        ({"phone": "0711000001"}, {"TKM0000001"}),
        ({"min_amount": "501"}, {"TKM0000002"}),
        ({"max_amount": "500", "direction": "in", "kind": "c2b", "shortcode": "174379"}, {"TKM0000001"}),
        ({"direction": "out"}, set[str]()),
        ({"until": "2020-01-01T00:00"}, set[str]()),
    ],
)
async def test_list_filter_shows_the_matching_money_and_its_sum(
    ops_site: OpsSite, fields: dict[str, str], shown: set[str]
) -> None:
    await _loose(ops_site, account_number="ORDER 7")
    other = await _loose(ops_site, "TKM0000002", payer="254722000002", amount_cents=70_050)
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/transactions/{other}/allocate")
        await browser.submit(page, f"/transactions/{other}/allocate", note="paid at the till", confirm=other)
        found = await browser.submit(await browser.open("/transactions"), "/transactions/look", **fields)
        assert found.status == 200
        assert {one for one in ("TKM0000001", "TKM0000002") if one in found.text} == shown
        assert "711000001" not in found.url
        (totalled,) = [link for link in found.links if "/transactions/total" in link]
        total = await browser.open(totalled.removeprefix(browser.ops))
        assert ("1 transaction," in total.words) is bool(shown), total.words
        (exported,) = [link for link in found.links if "/transactions/export" in link]
        rows = (await browser.open(exported.removeprefix(browser.ops))).text.splitlines()
        assert len(rows) == 1 + len(shown)


async def test_list_tells_of_money_that_came_since_it_was_drawn(ops_site: OpsSite) -> None:
    async with ops_site.browser() as browser:
        page = await browser.open("/transactions")
        (newer,) = [link.removeprefix(browser.ops) for link in page.links if "/transactions/newer" in link]
        assert (await browser.open(newer)).words.strip() == ""
        await _loose(ops_site)
        assert "1 new" in (await browser.open(newer)).words


async def test_unreadable_filter_is_named_and_the_list_still_shown(ops_site: OpsSite) -> None:
    await _loose(ops_site)
    async with ops_site.browser() as browser:
        page = await browser.open("/transactions?min_amount=cheap")
        assert ("Minimum, KES: " in page.words, "TKM0000001" in page.words) == (True, True)


@pytest.mark.parametrize("text", [PAYER, "0711000001", "0711 000 001", "+254711000001"])
@pytest.mark.parametrize("field", ["phone", "account_number"])
async def test_viewer_sees_masked_numbers_and_cannot_search_by_one(ops_site: OpsSite, field: str, text: str) -> None:
    transaction_id = await _loose(ops_site, account_number=text)
    async with ops_site.browser(Role.VIEWER) as viewer, ops_site.browser(Role.OPERATOR) as operator:
        for path in ("/transactions", f"/transactions/{transaction_id}"):
            shown, whole = await viewer.open(path), await operator.open(path)
            assert (PAYER in whole.text, PAYER in shown.text, text in shown.text) == (True, False, False), path
        token = (await viewer.open("/transactions")).field("form_token")
        refused = await viewer.send("/transactions/look", {"form_token": token, field: text})
        wrong = await viewer.send("/transactions/look", {"form_token": token, field: text.replace("000", "999", 1)})
        for page in (refused, wrong):
            assert "does not show phone numbers" in page.words
        found = await operator.submit(await operator.open("/transactions"), "/transactions/look", **{field: text})
        assert transaction_id in found.text
        # The operator's sealed search shows a viewer nothing.
        sealed = await viewer.open(found.url.removeprefix(viewer.ops))
        assert "does not show phone numbers" in sealed.words


async def test_search_by_receipt_leads_to_money_that_pays_nothing(ops_site: OpsSite) -> None:
    transaction_id = await _loose(ops_site)
    async with ops_site.browser() as browser:
        found = await browser.submit(await browser.open("/"), "/find", text="tkm0000001")
        assert found.url.endswith(f"/transactions/{transaction_id}")


async def test_list_shows_unallocated_money_first_and_the_overview_names_it(ops_site: OpsSite) -> None:
    first = await _loose(ops_site)
    await _loose(ops_site, "TKM0000002", amount_cents=70_000)
    async with ops_site.browser(Role.OPERATOR) as browser:
        overview = await browser.open("/")
        assert "2 transactions are unallocated: KES 1,200 of the last 7 days" in overview.words
        (named,) = [link.removeprefix(browser.ops) for link in overview.links if "open=true" in link]
        assert "TKM0000002" in (await browser.open(named)).words
        page = await browser.open("/transactions")
        assert "Unallocated, last 7 days" in page.words
        (totalled,) = [link.removeprefix(browser.ops) for link in page.links if "/transactions/total" in link]
        assert "2 transactions, KES 1,200" in (await browser.open(totalled)).words
        await _mark(browser, first)
        assert "1 transaction is unallocated: KES 700" in (await browser.open("/")).words
        shown = await browser.open("/transactions?open=true")
        assert ("TKM0000001" in shown.words, "TKM0000002" in shown.words) == (False, True)


async def _mark(browser: Browser, transaction_id: str) -> Page:
    act = f"/transactions/{transaction_id}/allocate"
    return await browser.submit(await browser.open(act), act, note="order 1041", confirm=transaction_id)


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ("refunded_cents = 50000", "refunded"),
        ("refunded_cents = 20000", "partly refunded"),
        ("refund_reserved_cents = 50000", "refund requested"),
    ],
)
async def test_refunded_money_is_named_and_not_offered_at_the_counter(
    ops_site: OpsSite, members: dict[MerchantRole, Browser], change: str, label: str
) -> None:
    transaction_id = await _loose(ops_site)
    cashier = members[MerchantRole.CASHIER]
    before = await cashier.open("/transactions/counter")
    assert "TKM0000001" in before.words
    await ops_site.gateway.db.execute(f"UPDATE transaction SET {change}")  # noqa: S608 - a column of the test
    assert "TKM0000001" not in (await cashier.open("/transactions/counter")).words
    assert label in (await cashier.open("/transactions")).words
    assert "unallocated:" not in (await cashier.open("/")).words
    refused = await _take(cashier, before, transaction_id, "7")
    assert (refused.status, "refund" in refused.words or "returned to its payer" in refused.words) == (409, True)
    assert await _subjects(ops_site) == [None]


@pytest.mark.as_owner
async def test_money_of_another_merchant_is_named_as_such(
    ops_site: OpsSite, members: dict[MerchantRole, Browser]
) -> None:
    base, db = ops_site.url.removesuffix("/ops"), ops_site.gateway.db
    async with shop(ops_site.gateway, base, webhook_url=ops_site.receiver.url) as second:
        payment_id = (await second.pay("254700000000", 300, key="theirs")).data["id"]
        await second.settled(payment_id, "completed")
        # Only live receivers have owners.
        await db.execute("ALTER TABLE receiver DROP CONSTRAINT receiver_sandbox_has_no_owner")
        await db.execute("UPDATE receiver SET owner_id = $1", ops_site.merchant_id)
        page = await members[MerchantRole.OWNER].open("/transactions")
        assert "another merchant's payment" in page.words
        assert payment_id not in page.text


# -- one transaction --------------------------------------------------------------------------------------------------


async def test_allocate_to_a_payment_compares_confirms_and_completes_it(ops_site: OpsSite) -> None:
    payment_id = (await ops_site.api.pay("254700000020", 500, key="a")).data["id"]
    transaction_id = await _loose(ops_site, payer="254700000020")
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/transactions/{transaction_id}")
        assert "unallocated" in page.words
        compared = await browser.open(f"/transactions/{transaction_id}/allocate?payment_id={payment_id}")
        assert ("Chosen payment" in compared.words, payment_id in compared.text) == (True, True)
        act = f"/transactions/{transaction_id}/allocate"
        unconfirmed = await browser.submit(compared, act)
        assert (unconfirmed.status, "cannot be undone" in unconfirmed.words) == (422, True)
        assert await _subjects(ops_site) == [None]
        done = await browser.submit(compared, act, confirm=transaction_id)
        assert "Allocated to the payment" in done.words
        assert payment_id in done.text
    assert await _subjects(ops_site) == ["payment"]
    assert (await ops_site.api.call("GET", f"/v1/payments/{payment_id}")).data["status"] == "completed"


async def test_allocate_to_an_unknown_payment_is_refused_on_the_page(ops_site: OpsSite) -> None:
    transaction_id, unknown = await _loose(ops_site), "pay_00000000000000000000000000"
    act = f"/transactions/{transaction_id}/allocate"
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"{act}?payment_id={unknown}")
        assert "There is no such payment" in page.words
        refused = await browser.submit(page, act, confirm=transaction_id)
        assert (refused.status, "no such payment" in refused.words) == (404, True)
    assert await _subjects(ops_site) == [None]


async def test_second_person_learns_who_was_first_and_changes_nothing(ops_site: OpsSite) -> None:
    transaction_id = await _loose(ops_site)
    act = f"/transactions/{transaction_id}/allocate"
    async with ops_site.browser(Role.OPERATOR) as first, ops_site.browser(Role.ADMIN) as second:
        mine, theirs = await first.open(act), await second.open(act)
        won = await first.submit(mine, act, note="order 1041", confirm=transaction_id)
        assert "Marked as dealt with" in won.words
        lost = await second.submit(theirs, act, note="order 1042", confirm=transaction_id)
        assert "Not done: otieno was first" in lost.words, lost.words
        assert "order 1041" in lost.words
        assert "order 1042" not in lost.words
    assert await ops_site.gateway.db.fetchval("SELECT count(*) FROM allocation") == 1


async def test_detail_shows_reports_refund_form_and_timeline(ops_site: OpsSite) -> None:
    transaction_id = await _loose(ops_site)
    await receive_at(ops_site.gateway, "TKM0000001", source="pull", payer=PAYER)
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open(f"/transactions/{transaction_id}")
        for text in (
            "C2B confirmation",
            "M-Pesa's statement",
            "Refundable",
            "transaction.received published",
            "recorded",
        ):
            assert text in page.words, text
        assert any(link.endswith(f"/transactions/{transaction_id}/refund") for link in page.links)


async def test_unpaid_payments_that_resemble_the_money_are_offered(ops_site: OpsSite) -> None:
    likely = (await ops_site.api.pay("254700000020", 500, key="a")).data["id"]
    other = (await ops_site.api.pay("254700000021", 900, key="b", reference="ORDER 7")).data["id"]
    unlike = (await ops_site.api.pay("254700000021", 901, key="c")).data["id"]
    transaction_id = await _loose(ops_site, account_number="order 7 ")
    async with ops_site.browser(Role.OPERATOR) as browser, ops_site.browser(Role.VIEWER) as viewer:
        page = await browser.open(f"/transactions/{transaction_id}")
        offered = [link.rpartition("=")[2] for link in page.links if "/allocate?payment_id=" in link]
        assert likely in offered
        assert unlike not in offered
        assert set(offered) <= {likely, other}
        assert "resemble" not in (await viewer.open(f"/transactions/{transaction_id}")).words
        await _mark(browser, transaction_id)
        assert "resemble" not in (await browser.open(f"/transactions/{transaction_id}")).words


# -- the counter ------------------------------------------------------------------------------------------------------


async def _take(browser: Browser, page: Page, transaction_id: str, order: str) -> Page:
    token = page.field("form_token")
    fields = {"form_token": token, "shortcode": "174379", "transaction_id": transaction_id, "order": order}
    return await browser.send("/transactions/counter", fields)


async def test_cashier_takes_money_for_an_order_and_the_second_one_sees_who_was_first(
    ops_site: OpsSite, members: dict[MerchantRole, Browser]
) -> None:
    transaction_id = await _loose(ops_site)
    cashier, owner = members[MerchantRole.CASHIER], members[MerchantRole.OWNER]
    mine, theirs = await cashier.open("/transactions/counter"), await owner.open("/transactions/counter")
    assert ("174379" in mine.words, "JOHN" in mine.words, PAYER in mine.text) == (True, True, False)
    nothing = await _take(cashier, mine, transaction_id, "")
    assert (nothing.status, "number of the order" in nothing.words) == (422, True)
    won = await _take(cashier, mine, transaction_id, "7")
    assert "KES 500 of TKM0000001 taken for: Order 7" in won.words, won.words
    lost = await _take(owner, theirs, transaction_id, "8")
    assert "Not done: cashier was first" in lost.words, lost.words
    assert "Order 7" in lost.words
    assert await _subjects(ops_site) == ["resolved"]
    again = await _take(cashier, mine, transaction_id, "7")
    assert "taken for: Order 7" in again.words
    assert await ops_site.gateway.db.fetchval("SELECT count(*) FROM allocation") == 1


async def test_counter_shows_no_old_allocated_or_foreign_money(
    ops_site: OpsSite, members: dict[MerchantRole, Browser]
) -> None:
    base = ops_site.url.removesuffix("/ops")
    async with shop(ops_site.gateway, base, webhook_url=ops_site.receiver.url) as second:
        other_id = (await second.call("GET", "/v1/merchant/me")).data["id"]
        foreign = await _loose(ops_site, "TKM0000009", merchant_id=other_id)
        cashier = members[MerchantRole.CASHIER]
        page = await cashier.open("/transactions/counter?shortcode=174379")
        assert "No unallocated money" in page.words
        assert foreign not in page.text
        assert foreign not in (await cashier.open("/transactions")).text
        refused = await _take(cashier, page, foreign, "7")
        assert (refused.status, "no such transaction" in refused.words) == (404, True)
        assert (await cashier.open(f"/transactions/{foreign}")).status == 404
    assert await _subjects(ops_site) == [None]


async def test_viewer_of_the_merchant_sees_money_but_cannot_take_it(
    ops_site: OpsSite, members: dict[MerchantRole, Browser]
) -> None:
    transaction_id = await _loose(ops_site)
    viewer = members[MerchantRole.VIEWER]
    page = await viewer.open(f"/transactions/{transaction_id}")
    assert (page.status, f"/transactions/{transaction_id}/allocate" in page.text) == (200, False)
    assert (await viewer.open("/transactions/counter")).status == 403
    assert (await _take(viewer, page, transaction_id, "7")).status == 403
    assert await _subjects(ops_site) == [None]


async def _changes(browser: Browser, page: Page, *shown: str, busy: bool = False) -> Page:
    (polled,) = [link.removeprefix(browser.ops) for link in page.links if "/counter/changes" in link]
    more = "".join(f"&transaction_id={one}" for one in shown) + ("&busy=true" if busy else "")
    return await browser.open(f"{polled}{more}")


async def test_counter_adds_new_money_but_waits_while_an_order_is_typed(
    ops_site: OpsSite, members: dict[MerchantRole, Browser]
) -> None:
    cashier = members[MerchantRole.CASHIER]
    page = await cashier.open("/transactions/counter")
    assert "TKM0000001" not in (await _changes(cashier, page)).words
    await _loose(ops_site)
    waiting = await _changes(cashier, page, busy=True)
    assert ("1 new" in waiting.words, "TKM0000001" in waiting.text) == (True, False)
    added = await _changes(cashier, page)
    assert ("TKM0000001" in added.words, added.text.count('name="order"')) == (True, 1)
    assert "TKM0000001" not in (await _changes(cashier, added)).words
    await _loose(ops_site, "TKM0000002")
    assert "TKM0000002" in (await _changes(cashier, added)).words


async def test_counter_names_who_took_shown_money(ops_site: OpsSite, members: dict[MerchantRole, Browser]) -> None:
    taken, left = await _loose(ops_site), await _loose(ops_site, "TKM0000002")
    cashier, owner = members[MerchantRole.CASHIER], members[MerchantRole.OWNER]
    page = await cashier.open("/transactions/counter")
    await _take(owner, await owner.open("/transactions/counter"), taken, "7")
    changed = await _changes(cashier, page, taken, left, "txn_nonsense", "pay_00000000000000000000000000")
    assert "Owner was first and took KES 500 of TKM0000001" in changed.words
    assert "Order 7" in changed.words
    assert "TKM0000002" not in changed.text
    base = ops_site.url.removesuffix("/ops")
    async with shop(ops_site.gateway, base, webhook_url=ops_site.receiver.url) as second:
        other_id = (await second.call("GET", "/v1/merchant/me")).data["id"]
        foreign = await _loose(ops_site, "TKM0000009", merchant_id=other_id)
        await ops_site.gateway.db.execute("UPDATE transaction SET refunded_cents = 1")
        assert foreign not in (await _changes(cashier, page, foreign)).text


async def test_host_page_tells_a_member_whom_to_ask(members: dict[MerchantRole, Browser]) -> None:
    refused = await members[MerchantRole.OWNER].open("/events")
    assert (refused.status, "ask an admin of the host" in refused.words) == (403, True)
