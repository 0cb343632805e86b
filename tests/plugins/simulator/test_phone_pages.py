"""Protects the pages of the simulated phone: prompt, PIN, balance, messages, settings and log."""

import asyncio
from typing import Any

import niquests
import pytest

from mpesa_gateway.clock import SystemClock
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_simulator.exchange_log import ChangeSignal, ExchangeLog
from tests.browsing import Browser, Page
from tests.conftest import Harness

ASKS = "254700000020"
MINE = "254722000001"


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with a short delay before late callbacks."""
    return values | {"simulator": {"callback_delay": 0.05, "late_delay": 0.8}}


async def prompted_payment(
    harness: Harness, browser: Browser, phone: str, amount: int = 500, *, key: str = "order"
) -> dict[str, Any]:
    """Returns a payment whose prompt is on the phone."""
    made: dict[str, Any] = (await harness.api.pay(phone, amount, key=key)).data

    async def is_shown() -> bool:
        return (await browser.open(f"?phone={phone}")).has_form("/touch")

    assert await eventually(is_shown)
    return made


async def answer_prompt(browser: Browser, phone: str, **fields: Any) -> Page:
    """Answer the prompt: send a PIN, or cancel."""
    page = await browser.open(f"?phone={phone}")
    form = page.form("/touch")
    return await browser.send(form.action, form.fields | fields)


async def hold_phone(browser: Browser, phone: str, style: str = "normal", balance: int = 25_000) -> Page:
    """Hold a phone, so that it waits for answers by hand."""
    page = await browser.open(f"?phone={phone}")
    return await browser.submit(page, "/hold", style=style, balance=str(balance))


async def test_phone_page_with_a_prompt_accepts_the_pin_and_shows_receipt_and_balance(harness: Harness) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        page = await browser.open()
        assert page.status == 200
        assert page.unbalanced_tags == []
        assert "manual Each prompt" in page.words
        assert "KES 25,000" in page.words
        made = await prompted_payment(harness, browser, ASKS, 750)
        page = await browser.open()
        assert f"Do you want to pay Ksh 750.00 to 174379, account no. {made['reference']}?" in page.words
        # Enter submits the PIN, so its form has no cancel button.
        assert set(page.form("/touch").fields) == {"phone", "checkout_request_id", "pin"}
        unsent = await answer_prompt(browser, ASKS, pin="12")
        assert (unsent.status, "pin: enter the four digits" in unsent.words) == (422, True)
        paid = await answer_prompt(browser, ASKS, pin="1234")
        payment = await harness.api.settled(made["id"], "completed")
        assert f"{payment['receipt']} Confirmed. Ksh750.00 sent to 174379 for account {made['reference']}" in paid.words
        assert "New M-PESA balance is Ksh24,250.00." in paid.words
        assert not paid.has_form("/touch")
        late = await browser.send(
            "/touch", {"checkout_request_id": payment["provider_ref"], "pin": "1234", "phone": ASKS}
        )
        assert (late.status, "not open any more" in late.words) == (409, True)
        unknown = await browser.send("/touch", {"checkout_request_id": "ws_CO_0", "pin": "1234"})
        assert unknown.status == 404


@pytest.mark.parametrize(
    ("fields", "balance", "reason", "message"),
    [
        ({"pin": "4321"}, 1000, "wrong_pin", "You have entered the wrong PIN."),
        ({"cancel": "yes"}, 1000, "cancelled_by_user", "You cancelled the request to pay Ksh500.00"),
        ({"pin": "1234"}, 499, "insufficient_funds", "Failed. You do not have enough money"),
    ],
)
async def test_phone_page_answer_other_than_paying_fails_the_payment(
    harness: Harness, fields: dict[str, str], balance: int, reason: str, message: str
) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        assert "automatic This phone" in (await browser.open(f"?phone={MINE}")).words
        page = await hold_phone(browser, MINE, balance=balance)
        assert "manual Each prompt" in page.words
        made = await prompted_payment(harness, browser, MINE)
        page = await answer_prompt(browser, MINE, **fields)
        assert message in page.words
        assert (await harness.api.settled(made["id"], "failed"))["failure_reason"] == reason
        assert page.form("/hold").fields["balance"] == [str(balance)]
        # After its release it pays automatically again.
        page = await browser.submit(page, "/let-go")
        assert "automatic This phone" in page.words
        again = (await harness.api.pay(MINE, 100, key="again")).data
        await harness.api.settled(again["id"], "completed")


@pytest.mark.parametrize(("style", "callbacks"), [("normal", 1), ("late", 1), ("twice", 2), ("wrong_amount", 1)])
async def test_phone_page_callback_style_is_applied(harness: Harness, style: str, callbacks: int) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        await hold_phone(browser, MINE, style)
        made = await prompted_payment(harness, browser, MINE)
        await answer_prompt(browser, MINE, pin="1234")

        async def are_accepted() -> bool:
            return bool(
                await harness.gateway.db.fetchval(
                    "SELECT count(*) = $1 FROM sim_callback WHERE last_status = 200", callbacks
                )
            )

        assert await eventually(are_accepted)
        found = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (found["status"] == "completed") == (style != "wrong_amount")
        assert (found["mismatch"] is not None) == (style == "wrong_amount")


async def test_phone_page_callback_style_changed_during_a_prompt_is_applied(harness: Harness) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        made = await prompted_payment(harness, browser, ASKS)
        await hold_phone(browser, ASKS, "wrong_amount")
        await answer_prompt(browser, ASKS, pin="1234")

        async def is_mismatched() -> bool:
            return (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["mismatch"] is not None

        assert await eventually(is_mismatched)


async def test_phone_page_unrequested_payments_are_messages_and_the_balance_can_be_set(
    harness: Harness,
) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        receipts = [
            (
                await harness.api.call(
                    "POST",
                    "/simulator/control/ledger",
                    {"phone": MINE, "amount": amount, "shortcode": "174379", "reference": "counter"},
                )
            ).data["receipt"]
            for amount in (250_000, 249_000, 2_000)
        ]
        page = await hold_phone(browser, MINE, balance=700)
        assert page.form("/hold").fields["balance"] == ["700"]
        assert f"{receipts[-1]} Confirmed. Ksh2,000.00 sent to 174379 for account counter" in page.words
        assert "New M-PESA balance is Ksh700.00." in page.words
        assert "New M-PESA balance is Ksh2,700.00." in page.words


async def test_phone_page_without_scripts_refreshes_until_a_prompt_is_open(harness: Harness) -> None:
    refresh = 'http-equiv="refresh"'
    async with Browser(f"{harness.base}/simulator") as browser:
        page = await browser.open()
        assert refresh not in page.text
        watching = next(link for link in page.links if link.endswith("watch=true"))
        assert refresh in (await browser.open(watching)).text
        await prompted_payment(harness, browser, ASKS)
        assert refresh not in (await browser.open(watching)).text


async def test_phone_page_style_never_completes_by_status_query(harness: Harness) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        await hold_phone(browser, MINE, "never")
        made = await prompted_payment(harness, browser, MINE)
        await answer_prompt(browser, MINE, pin="1234")
        assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"
        queried = await harness.api.call("POST", f"/v1/payments/{made['id']}/query")
        assert queried.data["status"] == "completed"


async def test_phone_page_style_before_ack_completes_the_payment_before_its_ack(harness: Harness) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        await hold_phone(browser, MINE, "before_ack")
        paying = asyncio.ensure_future(harness.api.pay(MINE, key="order"))

        async def is_shown() -> bool:
            return (await browser.open(f"?phone={MINE}")).has_form("/touch")

        assert await eventually(is_shown)
        assert not paying.done()
        await answer_prompt(browser, MINE, pin="1234")
        made = (await paying).data
        steps = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["timeline"]
        assert [step["kind"] for step in steps] == ["requested", "completed", "sent"]


async def test_phone_page_refund_is_a_message_and_adds_to_the_balance(harness: Harness, initiated: None) -> None:
    assert initiated is None
    async with Browser(f"{harness.base}/simulator") as browser:
        made = await prompted_payment(harness, browser, ASKS)
        await answer_prompt(browser, ASKS, pin="1234")
        payment = await harness.api.settled(made["id"], "completed")
        assert (
            await harness.api.call(
                "POST", "/v1/refunds", {"payment_id": made["id"], "amount": 200}, headers={"Idempotency-Key": "r"}
            )
        ).status == 201
        await harness.api.settled(made["id"], "partially_reversed")
        page = await browser.open()
        assert f"Ksh200.00 of {payment['receipt']} was reversed to you" in page.words
        assert "New M-PESA balance is Ksh24,700.00." in page.words
        assert "New M-PESA balance is Ksh24,500.00." in page.words


async def test_phone_page_log_shows_requests_and_callbacks_without_secrets(harness: Harness) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        made = (await harness.api.pay(MINE, key="order")).data
        await harness.api.settled(made["id"], "completed")
        page = await browser.open()
        assert "→ received stkpush" in page.words
        assert "← called back /v1/cb/stk/…" in page.words
        assert '"Password": "****"' in page.words
        assert MINE not in page.text
        assert '"access_token": "****"' in page.words
        assert "s-mer_" not in page.text


async def test_changes_stream_sends_an_event_for_each_change(harness: Harness) -> None:
    async with niquests.AsyncSession() as session:
        response = await session.get(f"{harness.base}/simulator/changes", stream=True)
        try:
            assert (response.headers["Content-Type"] or "").startswith("text/event-stream")
            chunks, read = await response.iter_content(1), b""

            async def read_until(count: int) -> None:
                nonlocal read
                while read.count(b"event: changed") < count:
                    read += await anext(chunks)

            async with asyncio.timeout(15):
                await read_until(1)
                await harness.api.pay(MINE, key="order")
                await read_until(2)
        finally:
            await response.close()


async def test_phone_page_settings_are_saved_and_invalid_ones_refused(harness: Harness) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        page = await browser.open()
        saved = await browser.submit(page, "/turn", late_delay="0.1", prompt_timeout="5")
        assert saved.form("/turn").fields["prompt_timeout"] == ["5.0"]
        for ending, fields in (
            ("/turn", {"late_delay": "soon"}),
            ("/turn", {"late_delay": "-1"}),
            ("/hold", {"style": "never at all"}),
            ("/hold", {"balance": "1.50"}),
            ("/hold", {"phone": "12"}),
            ("/hold", {"phone": "2547\x00"}),
        ):
            action = page.form(ending)
            refused = await browser.send(action.action, action.fields | fields)
            assert (refused.status, "Rejected" in refused.words) == (422, True), fields
        assert (await browser.open("?phone=12")).status == 422
        assert (await browser.send("/let-go", {"phone": "12"})).status == 422


@pytest.mark.parametrize("path", ["/touch", "/hold", "/let-go", "/turn"])
async def test_phone_page_forms_refuse_posts_of_other_sites(harness: Harness, path: str) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        refused = await browser.send(path, {"phone": MINE}, {"Origin": "https://evil.example"})
        assert (refused.status, "pages of other sites may not call the simulator" in refused.text) == (403, True)
        # An old browser sends only the Referer.
        referred = {"Origin": "", "Referer": "https://evil.example/"}
        refused = await browser.send(path, {"phone": MINE}, referred)
        assert (refused.status, "one of our own pages" in refused.words) == (400, True)


async def test_phone_page_loads_its_own_files_only(harness: Harness) -> None:
    async with Browser(f"{harness.base}/simulator") as browser:
        page = await browser.open()
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        files = [link for link in page.links if "/web/" in link]
        assert len(files) >= 4
        for link in files:
            assert link.startswith(harness.base)
            file = await browser.open(link)
            assert (file.status, "immutable" in file.headers["Cache-Control"]) == (200, True)
        assert (await browser.open("/web/0000000000000000/phone.css")).status == 404
        assert (await browser.open("/web/0000000000000000/..%2fplugin.py")).status == 404


def test_exchange_log_shows_amounts_verbatim_and_no_secret() -> None:
    exchanges = ExchangeLog(SystemClock(), ChangeSignal())
    exchanges.record_received(
        "stkpush", b'{"Password": "hidden", "Amount": 1250.00, "PhoneNumber": 254711000001}', 200, {"a": [1]}
    )
    exchanges.record_received("stkpush", b'{"Password": "hidden", "Amount": 1250.00, ', 400, "no")
    for line in exchanges.lines:
        assert "1250.00" in line.body
        assert "hidden" not in line.body
    assert "2547****001" in exchanges.lines[1].body
    assert exchanges.lines[1].answer == '{\n  "a": [\n    1\n  ]\n}'
