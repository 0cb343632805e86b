"""Protects the callback pages: lists by verdict and reason, masked bodies, and replay."""

import json
import re
from typing import Any

import pytest

from mpesa_gateway.ops_contract import Role
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from tests.browsing import Page
from tests.plugins.ops.conftest import OpsSite


@pytest.fixture
def values(values: dict[str, Any]) -> dict[str, Any]:
    """Settings that accept callbacks from Safaricom's addresses only."""
    return values | {"callbacks": {"enforce_allowlist": "always"}}


def callback_ids(page: Page) -> list[str]:
    """Returns the ids of the callbacks on a page."""
    return re.findall(r'href="[^"]*callbacks/(?:refused/)?((?:cbk|ref)_\w{26})"', page.text)


def accept_source(_: object, __: str) -> None:
    """A check that accepts every address."""


async def wait_for_refused(ops_site: OpsSite, count: int = 1) -> None:
    """Wait until this number of callbacks is refused."""

    async def are_refused() -> bool:
        return bool(await ops_site.gateway.db.fetchval("SELECT count(*) >= $1 FROM refused_callback", count))

    assert await eventually(are_refused)


async def test_refused_callback_is_listed_with_its_reason_and_accepted_by_an_admin(ops_site: OpsSite) -> None:
    made = (await ops_site.api.pay("254711000001", key="order")).data
    await wait_for_refused(ops_site)
    async with ops_site.browser(Role.OPERATOR) as browser:
        assert "1 refused callback today" in (await browser.open()).words
        page = await browser.open("/callbacks/refused")
        assert "source the source address is not on the allowlist" in page.words
        (refused_id,) = set(callback_ids(page))
        shown = await browser.open(f"/callbacks/refused/{refused_id}")
        assert shown.link(f"/payments/{made['id']}")
        assert "254711000001" not in shown.text
        assert "2547****001" in shown.text
        assert not shown.has_form(refused_id)
    async with ops_site.browser() as browser:
        shown = await browser.open(f"/callbacks/refused/{refused_id}")
        assert shown.unbalanced_tags == []
        unsure = await browser.submit(shown, refused_id)
        assert (unsure.status, "confirm that Safaricom sent this callback" in unsure.words) == (422, True)
        answer = await browser.submit(unsure, refused_id, confirm=refused_id)
        assert "Accepted and processed." in answer.words
        assert "applied" in answer.words
        assert (await ops_site.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed"
        again = await browser.send(
            f"/callbacks/refused/{refused_id}", {"form_token": answer.field("form_token"), "confirm": refused_id}
        )
        assert (again.status, "Already accepted: nothing changed." in again.words) == (200, True)
        assert "refused callback" not in (await browser.open()).words
        payment = await browser.open(f"/payments/{made['id']}")
        assert "applied stk: result 0" in payment.words
    entry = (await ops_site.gateway.audit.page(1, None, "callback.replayed", None)).rows[0]
    assert (entry.subject_id, entry.detail["reason"]) == (refused_id, "source")


async def test_refused_callback_accepted_by_an_admin_skips_no_other_check(ops_site: OpsSite) -> None:
    base, good = (
        ops_site.url.removesuffix("/ops"),
        {"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_1", "ResultCode": 1}}},
    )
    body = json.dumps(good).encode()
    for path, sent, headers in (
        ("/v1/cb/stk/nothing-like-a-token", body, {}),
        ("/v1/webhooks/mpesa", b'{"Body": 1}', {}),
        ("/v1/webhooks/mpesa", body, {"X-Mpesa-Signature": "AAAA"}),
        ("/v1/webhooks/mpesa", body + b" " * 20_000, {}),
    ):
        assert (await ops_site.api.call("POST", path, raw=sent, headers=headers)).status == 403, path
    assert base
    await wait_for_refused(ops_site, 4)
    async with ops_site.browser() as browser:
        ids = list(dict.fromkeys(callback_ids(await browser.open("/callbacks/refused"))))
        long, signed, shapeless, tokenless = ids
        token = (await browser.open("/callbacks/refused")).field("form_token")
        for refused_id, status, word in (
            (long, 409, "not kept whole"),
            (signed, 401, "signature does not fit"),
            (shapeless, 422, "not a callback of this kind"),
        ):
            answer = await browser.send(
                f"/callbacks/refused/{refused_id}", {"form_token": token, "confirm": refused_id}
            )
            assert (answer.status, word in answer.words) == (status, True), answer.words
        # Without a token it waits for a payment with its CheckoutRequestID.
        answer = await browser.send(f"/callbacks/refused/{tokenless}", {"form_token": token, "confirm": tokenless})
        assert "waiting" in answer.words
    assert await ops_site.gateway.db.fetchval("SELECT count(*) FROM callback") == 1


async def test_accepted_callback_is_listed_by_verdict_and_replayed(
    ops_site: OpsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpesa_gateway_callbacks.verifier.CallbackVerifier._check_listed", accept_source)
    made = (await ops_site.api.pay("254711000001", key="order")).data
    await ops_site.api.settled(made["id"], "completed")
    body = {"Body": {"stkCallback": {"CheckoutRequestID": "ws_CO_unknown", "ResultCode": 1, "ResultDesc": "x"}}}
    assert (await ops_site.api.call("POST", "/v1/webhooks/mpesa", body)).status == 200
    async with ops_site.browser(Role.OPERATOR) as browser:
        page = await browser.open("/callbacks")
        assert len(callback_ids(page)) == 2
        assert page.unbalanced_tags == []
        (waiting,) = callback_ids(await browser.open("/callbacks?verdict=waiting"))
        (applied,) = callback_ids(await browser.open("/callbacks?verdict=applied"))
        shown = await browser.open(f"/callbacks/{applied}")
        assert "254711000001" not in shown.text
        # The body is indented, its numbers are unchanged, and the merchant has its name.
        assert re.search(r"&#34;Body&#34;: {\n +&#34;stkCallback&#34;: {\n", shown.text)
        assert re.search(r"&#34;Value&#34;: 2547\*\*\*\*001\n", shown.text)
        assert "Repeats 0" in shown.words
        assert re.search(r'merchants/mer_\w{26}">[^<]*[A-Za-z ]+</a>', shown.text)
        answer = await browser.submit(shown, "/offer")
        assert "Already applied: nothing changed." in answer.words
        await ops_site.gateway.db.execute(
            "UPDATE callback SET verdict = 'unmatched', due_at = NULL WHERE callback_id = $1", waiting
        )
        assert "1 callback without a matching payment" in (await browser.open()).words
        assert callback_ids(await browser.open("/callbacks?verdict=unmatched")) == [waiting]
        answer = await browser.submit(await browser.open(f"/callbacks/{waiting}"), "/offer")
        assert "Processed again: waiting." in answer.words
        assert (await browser.open("/callbacks/cbk_00000000000000000000000000")).status == 404
        assert (await browser.open("/callbacks?verdict=good")).status == 422
    steps = (await ops_site.api.call("GET", f"/v1/payments/{made['id']}")).data["timeline"]
    assert [step["kind"] for step in steps].count("completed") == 1
    assert await ops_site.acted() == [("callbacks.offer", waiting), ("callbacks.offer", applied)]


async def test_unreadable_callbacks_need_attention_and_are_shown(
    ops_site: OpsSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpesa_gateway_callbacks.verifier.CallbackVerifier._check_listed", accept_source)
    made = (await ops_site.api.pay("254711000006", key="order")).data
    url = ops_site.gateway.services.get(CallbackDispatcher).url_for(
        "stk", env="sandbox", merchant_id=ops_site.merchant_id, subject_id=made["id"]
    )
    path = url[url.index("/v1/cb") :]
    assert (await ops_site.api.call("POST", path, raw=b"from 254711000006")).status == 422
    assert (await ops_site.api.call("POST", path, raw=b" " * 1_100_000)).status == 413
    assert (await ops_site.api.call("POST", "/v1/cb/stk/nonsense", raw=b"{}")).status == 404
    async with ops_site.browser() as browser:
        assert "2 callbacks from Safaricom could not be read" in (await browser.open()).words
        large, unread = dict.fromkeys(callback_ids(await browser.open("/callbacks/refused?unread=true")))
        assert len(dict.fromkeys(callback_ids(await browser.open("/callbacks/refused")))) == 3
        shown = await browser.open(f"/callbacks/refused/{large}")
        assert shown.unbalanced_tags == []
        assert "1100000 bytes" in shown.words
        assert "SHA-256" in shown.words
        assert not shown.has_form(large)
        shown = await browser.open(f"/callbacks/refused/{unread}")
        assert (shown.has_form(unread), "254711000006" in shown.text) == (True, False)
