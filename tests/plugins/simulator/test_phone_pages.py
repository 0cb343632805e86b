"""The simulated phone: its prompt, its PIN, its money and its messages; the knobs beside it; what Daraja said."""

import asyncio
from typing import Any

import niquests
import pytest

from mpesa_gateway.clock import SystemClock
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_simulator.exchange_log import ChangeSignal, ExchangeLog
from tests.browsing import Browser, Page
from tests.conftest import Town

ASKS = "254700000020"
MINE = "254722000001"


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Settings in which a late callback comes soon."""
    return values | {"simulator": {"callback_delay": 0.05, "late_delay": 0.8}}


async def asked(town: Town, browser: Browser, phone: str, amount: int = 500, *, key: str = "order") -> dict[str, Any]:
    """A payment whose prompt is on the phone."""
    made: dict[str, Any] = (await town.api.pay(phone, amount, key=key)).data

    async def is_shown() -> bool:
        return (await browser.opens(f"?phone={phone}")).has_form("/touch")

    assert await eventually(is_shown)
    return made


async def touched(browser: Browser, phone: str, **fields: Any) -> Page:
    """Touch the phone: send a PIN, or cancel."""
    page = await browser.opens(f"?phone={phone}")
    form = page.form("/touch")
    return await browser.sends(form.action, form.fields | fields)


async def held(browser: Browser, phone: str, style: str = "normal", balance: int = 25_000) -> Page:
    """Take a phone into the hand."""
    page = await browser.opens(f"?phone={phone}")
    return await browser.submits(page, "/hold", style=style, balance=str(balance))


async def test_the_phone_on_the_table_asks_takes_the_pin_and_shows_receipt_and_balance(town: Town) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        page = await browser.opens()
        assert page.status == 200
        assert page.untidy == []
        assert "manual Each prompt" in page.words
        assert "KES 25,000" in page.words
        made = await asked(town, browser, ASKS, 750)
        page = await browser.opens()
        assert f"Do you want to pay Ksh 750.00 to 174379, account no. {made['reference']}?" in page.words
        # Enter sends the PIN: in the form that it is typed into, nothing cancels.
        assert set(page.form("/touch").fields) == {"phone", "checkout_request_id", "pin"}
        unsent = await touched(browser, ASKS, pin="12")
        assert (unsent.status, "pin: enter the four digits" in unsent.words) == (422, True)
        paid = await touched(browser, ASKS, pin="1234")
        payment = await town.api.settled(made["id"], "completed")
        assert f"{payment['receipt']} Confirmed. Ksh750.00 sent to 174379 for account {made['reference']}" in paid.words
        assert "New M-PESA balance is Ksh24,250.00." in paid.words
        assert not paid.has_form("/touch")
        late = await browser.sends(
            "/touch", {"checkout_request_id": payment["provider_ref"], "pin": "1234", "phone": ASKS}
        )
        assert (late.status, "not open any more" in late.words) == (409, True)
        unknown = await browser.sends("/touch", {"checkout_request_id": "ws_CO_0", "pin": "1234"})
        assert unknown.status == 404


@pytest.mark.parametrize(
    ("fields", "balance", "reason", "message"),
    [
        ({"pin": "4321"}, 1000, "wrong_pin", "You have entered the wrong PIN."),
        ({"cancel": "yes"}, 1000, "cancelled_by_user", "You cancelled the request to pay Ksh500.00"),
        ({"pin": "1234"}, 499, "insufficient_funds", "Failed. You do not have enough money"),
    ],
)
async def test_a_phone_in_the_hand_can_do_everything_but_pay(
    town: Town, fields: dict[str, str], balance: int, reason: str, message: str
) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        assert "automatic This phone" in (await browser.opens(f"?phone={MINE}")).words
        page = await held(browser, MINE, balance=balance)
        assert "manual Each prompt" in page.words
        made = await asked(town, browser, MINE)
        page = await touched(browser, MINE, **fields)
        assert message in page.words
        assert (await town.api.settled(made["id"], "failed"))["failure_reason"] == reason
        assert page.form("/hold").fields["balance"] == [str(balance)]
        # Let go of, it pays by itself again.
        page = await browser.submits(page, "/let-go")
        assert "automatic This phone" in page.words
        again = (await town.api.pay(MINE, 100, key="again")).data
        await town.api.settled(again["id"], "completed")


@pytest.mark.parametrize(("style", "callbacks"), [("normal", 1), ("late", 1), ("twice", 2), ("wrong_amount", 1)])
async def test_the_way_of_calling_back_is_chosen_beside_the_phone(town: Town, style: str, callbacks: int) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        await held(browser, MINE, style)
        made = await asked(town, browser, MINE)
        await touched(browser, MINE, pin="1234")

        async def are_taken() -> bool:
            return bool(
                await town.gateway.db.fetchval(
                    "SELECT count(*) = $1 FROM sim_callback WHERE last_status = 200", callbacks
                )
            )

        assert await eventually(are_taken)
        found = (await town.api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (found["status"] == "completed") == (style != "wrong_amount")
        assert (found["mismatch"] is not None) == (style == "wrong_amount")


async def test_a_way_of_calling_back_that_is_chosen_while_the_prompt_shows_counts(town: Town) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        made = await asked(town, browser, ASKS)
        await held(browser, ASKS, "wrong_amount")
        await touched(browser, ASKS, pin="1234")

        async def is_mismatched() -> bool:
            return (await town.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"] is not None

        assert await eventually(is_mismatched)


async def test_money_that_nobody_asked_for_is_a_message_too_and_a_phone_is_filled_up_however_much_it_spent(
    town: Town,
) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        receipts = [
            (
                await town.api.call(
                    "POST",
                    "/simulator/control/ledger",
                    {"phone": MINE, "amount": amount, "shortcode": "174379", "reference": "counter"},
                )
            ).data["receipt"]
            for amount in (250_000, 249_000, 2_000)
        ]
        page = await held(browser, MINE, balance=700)
        assert page.form("/hold").fields["balance"] == ["700"]
        assert f"{receipts[-1]} Confirmed. Ksh2,000.00 sent to 174379 for account counter" in page.words
        assert "New M-PESA balance is Ksh700.00." in page.words
        assert "New M-PESA balance is Ksh2,700.00." in page.words


async def test_without_scripts_the_page_watches_where_it_is_told_to_until_a_prompt_shows(town: Town) -> None:
    refresh = 'http-equiv="refresh"'
    async with Browser(f"{town.base}/simulator") as browser:
        page = await browser.opens()
        assert refresh not in page.text
        watching = next(link for link in page.links if link.endswith("watch=true"))
        assert refresh in (await browser.opens(watching)).text
        await asked(town, browser, ASKS)
        assert refresh not in (await browser.opens(watching)).text


async def test_a_callback_that_never_comes_is_found_by_asking(town: Town) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        await held(browser, MINE, "never")
        made = await asked(town, browser, MINE)
        await touched(browser, MINE, pin="1234")
        assert (await town.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"
        queried = await town.api.call("POST", f"/v1/payments/{made['id']}/query")
        assert queried.data["status"] == "completed"


async def test_a_callback_before_the_ack_completes_a_payment_that_has_no_ack_yet(town: Town) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        await held(browser, MINE, "before_ack")
        paying = asyncio.ensure_future(town.api.pay(MINE, key="order"))

        async def is_shown() -> bool:
            return (await browser.opens(f"?phone={MINE}")).has_form("/touch")

        assert await eventually(is_shown)
        assert not paying.done()
        await touched(browser, MINE, pin="1234")
        made = (await paying).data
        steps = (await town.api.call("GET", f"/v1/payments/{made['id']}")).data["timeline"]
        assert [step["kind"] for step in steps] == ["requested", "completed", "sent"]


async def test_a_refund_is_a_message_and_money_on_the_phone(town: Town, initiated: None) -> None:
    assert initiated is None
    async with Browser(f"{town.base}/simulator") as browser:
        made = await asked(town, browser, ASKS)
        await touched(browser, ASKS, pin="1234")
        payment = await town.api.settled(made["id"], "completed")
        assert (
            await town.api.call(
                "POST", "/v1/refunds", {"payment_id": made["id"], "amount": 200}, headers={"Idempotency-Key": "r"}
            )
        ).status == 201
        await town.api.settled(made["id"], "partially_reversed")
        page = await browser.opens()
        assert f"Ksh200.00 of {payment['receipt']} was reversed to you" in page.words
        assert "New M-PESA balance is Ksh24,700.00." in page.words
        assert "New M-PESA balance is Ksh24,500.00." in page.words


async def test_the_log_shows_both_sides_without_secrets(town: Town) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        made = (await town.api.pay(MINE, key="order")).data
        await town.api.settled(made["id"], "completed")
        page = await browser.opens()
        assert "→ received stkpush" in page.words
        assert "← called back /v1/cb/stk/…" in page.words
        assert '"Password": "****"' in page.words
        assert MINE not in page.text
        assert '"access_token": "****"' in page.words
        assert "s-mer_" not in page.text


async def test_a_stream_tells_when_something_has_happened(town: Town) -> None:
    async with niquests.AsyncSession() as session:
        response = await session.get(f"{town.base}/simulator/changes", stream=True)
        try:
            assert (response.headers["Content-Type"] or "").startswith("text/event-stream")
            chunks, read = await response.iter_content(1), b""

            async def until(count: int) -> None:
                nonlocal read
                while read.count(b"event: changed") < count:
                    read += await anext(chunks)

            async with asyncio.timeout(15):
                await until(1)
                await town.api.pay(MINE, key="order")
                await until(2)
        finally:
            await response.close()


async def test_delays_are_turned_and_what_cannot_be_is_refused(town: Town) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        page = await browser.opens()
        turned = await browser.submits(page, "/turn", late_delay="0.1", prompt_timeout="5")
        assert turned.form("/turn").fields["prompt_timeout"] == ["5.0"]
        for ending, fields in (
            ("/turn", {"late_delay": "soon"}),
            ("/turn", {"late_delay": "-1"}),
            ("/hold", {"style": "never at all"}),
            ("/hold", {"balance": "1.50"}),
            ("/hold", {"phone": "12"}),
            ("/hold", {"phone": "2547\x00"}),
        ):
            action = page.form(ending)
            refused = await browser.sends(action.action, action.fields | fields)
            assert (refused.status, "Rejected" in refused.words) == (422, True), fields
        assert (await browser.opens("?phone=12")).status == 422
        assert (await browser.sends("/let-go", {"phone": "12"})).status == 422


@pytest.mark.parametrize("path", ["/touch", "/hold", "/let-go", "/turn"])
async def test_no_other_site_touches_the_phone(town: Town, path: str) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        refused = await browser.sends(path, {"phone": MINE}, {"Origin": "https://evil.example"})
        assert (refused.status, "pages of other sites may not call the simulator" in refused.text) == (403, True)
        # An old browser says no more than the page that it comes from.
        referred = {"Origin": "", "Referer": "https://evil.example/"}
        refused = await browser.sends(path, {"phone": MINE}, referred)
        assert (refused.status, "one of our own pages" in refused.words) == (400, True)


async def test_the_page_loads_our_own_files_only(town: Town) -> None:
    async with Browser(f"{town.base}/simulator") as browser:
        page = await browser.opens()
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        files = [link for link in page.links if "/web/" in link]
        assert len(files) >= 4
        for link in files:
            assert link.startswith(town.base)
            file = await browser.opens(link)
            assert (file.status, "immutable" in file.headers["Cache-Control"]) == (200, True)
        assert (await browser.opens("/web/0000000000000000/phone.css")).status == 404
        assert (await browser.opens("/web/0000000000000000/..%2fplugin.py")).status == 404


def test_the_log_shows_amounts_as_they_were_said_and_no_secret() -> None:
    diary = ExchangeLog(SystemClock(), ChangeSignal())
    diary.received(
        "stkpush", b'{"Password": "hidden", "Amount": 1250.00, "PhoneNumber": 254711000001}', 200, {"a": [1]}
    )
    diary.received("stkpush", b'{"Password": "hidden", "Amount": 1250.00, ', 400, "no")
    for line in diary.lines:
        assert "1250.00" in line.body
        assert "hidden" not in line.body
    assert "2547****001" in diary.lines[1].body
    assert diary.lines[1].answer == '{\n  "a": [\n    1\n  ]\n}'
