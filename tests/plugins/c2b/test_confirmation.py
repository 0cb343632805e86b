"""Protects payer-initiated payments: recorded once, for the right merchant, and never another's payment."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.security.master_key_rotation import reseal
from mpesa_gateway.security.sealing import generate
from mpesa_gateway.testing.serving import INITIATED, SANDBOX, Api, eventually, shop
from mpesa_gateway_c2b.addresses import C2bAddresses
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from tests.daraja import c2b_body, stk_callback
from tests.ledger import broken_invariants
from tests.plugins.c2b.c2b_site import DIGEST, PHONE, C2bSite, c2b_site, path_of
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

TILL: dict[str, Any] = {
    "provider": "mpesa",
    "mpesa": SANDBOX["mpesa"] | {"till_number": "5123456", "shortcode": "600111"},
}


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found


async def pay(site: C2bSite, api: Api | None = None, key: str = "k-1", **more: Any) -> dict[str, Any]:
    answer = await (api or site.api).pay(PHONE, key=key, **more)
    data: dict[str, Any] = answer.data
    return data


async def call_back(site: C2bSite, receipt: str = "TKN4A1B2C3") -> int:
    """Post the callback of the last push."""
    sent = site.daraja.requests_of("stkpush")[-1]
    (row,) = await site.gateway.db.fetch("SELECT checkout_request_id FROM payment ORDER BY payment_id DESC LIMIT 1")
    body = stk_callback(row["checkout_request_id"], receipt=receipt, phone=int(PHONE))
    return (await site.api.call("POST", path_of(sent["CallBackURL"]), body)).status


async def status_of(site: C2bSite, payment: dict[str, Any], api: Api | None = None) -> tuple[str, str | None]:
    found = (await (api or site.api).call("GET", f"/v1/payments/{payment['id']}")).data
    return found["status"], found["receipt"]


async def test_confirmation_of_unasked_money_becomes_a_transaction(site: C2bSite) -> None:
    path, _ = await site.addresses()
    answer = await site.confirm(path, account=" House 7 ", phone=DIGEST, TransTime="20261130101509")
    assert (answer.status, answer.body) == (200, {"ResultCode": 0, "ResultDesc": "Accepted"})
    (row,) = await site.transactions()
    assert (row["receipt"], row["amount_cents"], row["direction"], row["first_source"]) == (
        "TKN4A1B2C3",
        50_000,
        "in",
        "c2b",
    )
    assert (row["account_number"], row["payer"], row["payer_digest"], row["payer_name"]) == (
        "House 7",
        None,
        DIGEST,
        "JANE",
    )
    assert row["subject_id"] is None
    assert f"{row['occurred_at'].astimezone(EAT):%Y%m%d%H%M%S}" == "20261130101509"
    kept = await site.gateway.db.fetch("SELECT kind, verdict, subject_id, merchant_id, env FROM callback")
    assert [(one["kind"], one["verdict"], one["merchant_id"], one["env"]) for one in kept] == [
        ("c2b", "applied", None, "sandbox")
    ]


async def test_confirmation_repeated_is_one_transaction(site: C2bSite) -> None:
    path, _ = await site.addresses()
    body = c2b_body()
    for _ in range(3):
        assert (await site.api.call("POST", path, body)).status == 200
    assert len(await site.transactions()) == 1
    assert await site.witnesses() == []
    assert await site.gateway.db.fetchval("SELECT repeats FROM callback") == 2


async def test_confirmation_with_another_amount_for_a_receipt_changes_nothing_and_needs_review(site: C2bSite) -> None:
    path, _ = await site.addresses()
    await site.confirm(path)
    assert (await site.confirm(path, amount="900.00")).status == 200
    (row,) = await site.transactions()
    assert row["amount_cents"] == 50_000
    detail = await site.gateway.db.fetchval("SELECT detail FROM transaction_witness")
    assert "90000 cents" in detail


@pytest.mark.parametrize("number", ["600001", "5123456"])
async def test_confirmation_of_another_shortcode_is_refused_and_shown(site: C2bSite, number: str) -> None:
    path, _ = await site.addresses()
    refused = await site.confirm(path, shortcode=number)
    assert (refused.status, refused.error["code"]) == (403, "CALLBACK_REFUSED")
    assert await site.transactions() == []
    row = await site.gateway.db.fetchrow("SELECT * FROM refused_callback")
    assert row is not None
    assert (row["reason"], row["is_trusted"], row["env"]) == ("receiver", True, "sandbox")
    assert row["original"] is not None


async def test_confirmation_at_an_unknown_address_is_not_found(site: C2bSite) -> None:
    path, validation = await site.addresses()
    token = path.rpartition("/")[2]
    other = "0" * 32
    for wrong in (f"/v1/cb/c2b/{other}", "/v1/cb/c2b/x", f"/v1/cb/stk/{token}", f"/v1/cb/c2b/{token.upper()}0"):
        assert (await site.confirm(wrong)).status == 404
    assert validation.rpartition("/")[2] == token
    assert await site.transactions() == []


@pytest.mark.parametrize("body", [{}, {"Body": {}}, c2b_body(amount="ten"), c2b_body(receipt="?")])
async def test_confirmation_unreadable_is_kept(site: C2bSite, body: dict[str, Any]) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("POST", path, body)).status == 422
    row = await site.gateway.db.fetchrow("SELECT * FROM refused_callback")
    assert row is not None
    assert (row["reason"], row["is_trusted"]) == ("shape", True)


async def test_stk_callback_lost_confirmation_with_our_reference_completes_the_payment(site: C2bSite) -> None:
    path, _ = await site.addresses()
    payment = await pay(site)
    assert (await site.confirm(path, account=payment["reference"].lower())).status == 200
    assert await status_of(site, payment) == ("completed", "TKN4A1B2C3")
    (row,) = await site.transactions()
    assert (row["subject_id"], row["first_source"]) == (payment["id"], "c2b")
    # The callback arrives after all: a second witness.
    assert await call_back(site) == 200
    assert len(await site.transactions()) == 1
    assert await status_of(site, payment) == ("completed", "TKN4A1B2C3")


async def test_confirmation_after_the_stk_callback_is_a_witness(site: C2bSite) -> None:
    path, _ = await site.addresses()
    payment = await pay(site)
    assert await call_back(site) == 200
    for account in (payment["reference"], "another"):
        assert (await site.confirm(path, account=account)).status == 200
    (row,) = await site.transactions()
    assert (row["subject_id"], row["first_source"]) == (payment["id"], "stk")
    assert await site.witnesses() == [("TKN4A1B2C3", "c2b")]


async def test_confirmation_before_the_stk_callback_leaves_one_record(site: C2bSite) -> None:
    path, _ = await site.addresses()
    payment = await pay(site)
    assert (await site.confirm(path, account="")).status == 200
    assert (await status_of(site, payment))[0] == "pending"
    assert await call_back(site) == 200
    (row,) = await site.transactions()
    assert (row["subject_id"], row["first_source"]) == (payment["id"], "c2b")


async def test_confirmation_with_our_reference_completes_a_failed_payment(site: C2bSite) -> None:
    path, _ = await site.addresses()
    payment = await pay(site)
    await site.gateway.db.execute(
        "UPDATE payment SET status = 'failed', failure_reason = 'cancelled_by_user', outcome_is_final = true, "
        "due_at = NULL, result_code = '1032'"
    )
    assert (await site.confirm(path, account=payment["reference"])).status == 200
    assert await status_of(site, payment) == ("completed", "TKN4A1B2C3")


@pytest.mark.parametrize(
    "strangers",
    [
        {"account": "", "phone": "2547 ***** 126"},
        {"account": "", "phone": PHONE},
        {"account": "", "phone": DIGEST},
        {"account": "SOMETHING", "phone": PHONE},
        {"account": "", "phone": None},
    ],
)
async def test_strangers_money_at_a_paybill_completes_no_payment(site: C2bSite, strangers: dict[str, Any]) -> None:
    path, _ = await site.addresses()
    payment = await pay(site)
    assert (await site.confirm(path, **strangers)).status == 200
    assert (await status_of(site, payment))[0] == "pending"
    (row,) = await site.transactions()
    assert row["subject_id"] is None


async def test_confirmation_with_our_reference_and_another_amount_is_a_mismatch(site: C2bSite) -> None:
    path, _ = await site.addresses()
    payment = await pay(site)
    assert (await site.confirm(path, account=payment["reference"], amount="499.00")).status == 200
    assert (await status_of(site, payment))[0] == "pending"
    assert await site.gateway.db.fetchval("SELECT mismatch FROM payment") == "amount"
    (row,) = await site.transactions()
    assert (row["subject_id"], row["conflict_id"]) == (None, payment["id"])


@pytest.mark.parametrize(
    ("payer", "status"),
    [(DIGEST, "completed"), (PHONE, "completed"), ("2547 ***** 149", "pending"), (DIGEST[::-1], "pending")],
)
async def test_confirmation_at_a_till_completes_only_for_the_whole_payer(
    site: C2bSite, payer: str, status: str
) -> None:
    assert (await site.api.call("PUT", "/v1/merchant/providers", TILL)).status == 200
    found = (await site.register(shortcode="5123456")).data["addresses"]["confirmation"]
    payment = await pay(site)
    # M-Pesa names the till by its store.
    body = {"TransactionType": "Customer Merchant Payment", "shortcode": "600111", "account": "", "phone": payer}
    assert (await site.confirm(path_of(found), **body)).status == 200
    assert (await status_of(site, payment))[0] == status
    (row,) = await site.transactions()
    assert (row["subject_id"] == payment["id"]) is (status == "completed")
    assert row["kind"] == "Customer Merchant Payment"


async def test_two_merchants_of_one_shortcode_each_keep_their_own(site: C2bSite) -> None:
    async with shop(site.gateway, site.base) as other:
        path, _ = await site.addresses()
        me = (await site.api.call("GET", "/v1/merchant/me")).data["id"]
        theirs = await pay(site, other)
        assert (await site.confirm(path, account=theirs["reference"])).status == 200
        assert await status_of(site, theirs, other) == ("completed", "TKN4A1B2C3")
        assert (await site.confirm(path, "TKN4A1B2C4", account="unknown")).status == 200
        first, second = await site.transactions()
        assert (first["merchant_id"], second["merchant_id"]) == (theirs["merchant_id"], me)


async def test_confirmation_lost_is_brought_by_pull(site: C2bSite) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    now = site.gateway.clock.now()
    at = f"{(now - timedelta(minutes=5)).astimezone(EAT):%Y-%m-%d %H:%M:%S}"
    site.daraja.add_answers("pullquery", page(line("TKN4A1B2C3", trxDate=at, billreference="House 7")))
    assert (await site.api.call("POST", RUN, {})).status == 200
    (row,) = await site.transactions()
    assert (row["first_source"], row["account_number"]) == ("pull", "House 7")
    assert (await site.confirm(path, account="House 7")).status == 200
    assert len(await site.transactions()) == 1
    assert await site.witnesses() == [("TKN4A1B2C3", "c2b")]


async def test_address_survives_the_rotation_of_the_master_key_and_a_restart(values: dict[str, Any]) -> None:
    async with c2b_site(values) as site:
        path, _ = await site.addresses()
        former = values["security"]["master_key"]
        await site.api.close()
    values["security"] = {"master_key": generate(), "old_master_keys": [former]}
    async with c2b_site(values) as site:
        (column,) = next(plugin for plugin in site.gateway.plugins if plugin.name == "c2b").tables.sealed  # type: ignore[union-attr]
        assert await reseal(site.gateway.db, site.gateway.sealer, [column]) == {"c2b_address.token": 1}
        assert (await site.confirm(path)).status == 200
        assert len(await site.transactions()) == 1
        again, _ = await site.addresses()
        assert again == path


async def test_address_of_another_process_is_known_at_its_first_callback(values: dict[str, Any]) -> None:
    async with c2b_site(values) as site:
        path, _ = await site.addresses()
        site.gateway.port(C2bAddresses)._known.clear()  # pyright: ignore[reportPrivateUsage] - as in another process
        assert (await site.confirm(path)).status == 200
        assert len(await site.transactions()) == 1


async def test_confirmation_beside_the_stk_callback_leaves_one_record(site: C2bSite) -> None:
    """Both reports of each payment arrive at once, each twice: no deadlock, one transaction, one completion."""
    path, _ = await site.addresses()
    made = [(await site.api.pay(f"2547083741{number:02}", key=f"k-{number}")).data for number in range(12)]
    urls = [path_of(one["CallBackURL"]) for one in site.daraja.requests_of("stkpush")]

    def reports(number: int, payment: dict[str, Any]) -> list[Any]:
        receipt = f"TKN00000{number:02}"
        stk = stk_callback(payment["provider_ref"], receipt=receipt, phone=int(payment["phone"]))
        c2b = c2b_body(receipt, account=payment["reference"], phone=payment["phone"])
        sent = ((urls[number], stk), (path, c2b), (path, c2b), (urls[number], stk))
        return [site.api.call("POST", to, body) for to, body in sent]

    answers = await asyncio.gather(*(one for number, payment in enumerate(made) for one in reports(number, payment)))
    assert {answer.status for answer in answers} == {200}

    async def all_applied() -> bool:
        return not await site.gateway.db.fetchval("SELECT count(*) FROM callback WHERE verdict <> 'applied'")

    await eventually(all_applied)
    rows = await site.transactions()
    assert sorted(row["subject_id"] for row in rows) == sorted(payment["id"] for payment in made)
    assert await broken_invariants(site.gateway) == {}


async def test_confirmation_sent_ten_times_at_once_is_one_record(site: C2bSite) -> None:
    path, _ = await site.addresses()
    body = c2b_body()
    answers = await asyncio.gather(*(site.api.call("POST", path, body) for _ in range(10)))
    assert {answer.status for answer in answers} == {200}
    assert len(await site.transactions()) == 1
    assert await site.gateway.db.fetchval("SELECT count(*) FROM callback") == 1


async def test_confirmation_refused_for_its_shortcode_can_be_replayed_after_the_correction(site: C2bSite) -> None:
    assert (await site.api.call("PUT", "/v1/merchant/providers", TILL)).status == 200
    found = (await site.register(shortcode="5123456")).data["addresses"]["confirmation"]
    assert (await site.confirm(path_of(found), shortcode="600222", account="")).status == 403
    corrected = {"provider": "mpesa", "mpesa": TILL["mpesa"] | {"shortcode": "600222"}}
    assert (await site.api.call("PUT", "/v1/merchant/providers", corrected)).status == 200
    refused_id = await site.gateway.db.fetchval("SELECT refused_id FROM refused_callback")
    operators = site.gateway.services.get(CallbackOperatorService)
    replayed = await operators.replay(refused_id, actor="test", vouches=True)
    assert replayed.verdict == "applied"
    (row,) = await site.transactions()
    assert row["receipt"] == "TKN4A1B2C3"
