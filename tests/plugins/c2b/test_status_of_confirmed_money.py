"""M-Pesa's status answer about money that a confirmation reported first."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import INITIATED
from tests.daraja import result, stk_callback
from tests.plugins.c2b.c2b_site import PHONE, C2bSite, c2b_site, path_of
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

RECEIPT = "TKN4A1B2C3"


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        assert (await found.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        yield found


async def answered(site: C2bSite, body: dict[str, Any] | None = None) -> str:
    """Query the status, answer that the payer's KES 500 arrived, and return the finding."""
    asked = await site.api.call("POST", f"/v1/payments/mpesa/check-status/{RECEIPT}", body)
    assert asked.status == 200, asked.body
    sent = site.daraja.requests_of("transactionstatus")[-1]
    says = {
        "ReceiptNo": RECEIPT,
        "TransactionStatus": "Completed",
        "Amount": 500,
        "DebitPartyName": f"{PHONE} - JANE",
        "CreditPartyName": "174379 - SHOP",
        "FinalisedTime": f"{datetime.now(EAT):%Y%m%d%H%M%S}",
    }
    assert (await site.api.call("POST", path_of(sent["ResultURL"]), result(0, says=says))).status == 200
    check = await site.api.call("GET", f"/v1/payments/mpesa/checks/{asked.data['check_id']}")
    return str(check.data["finding"])


async def state(site: C2bSite, payment: dict[str, Any]) -> tuple[str, str | None, str | None]:
    found = (await site.api.call("GET", f"/v1/payments/{payment['id']}")).data
    return found["status"], found["receipt"], found["failure_reason"]


@pytest.mark.parametrize("known_by", ["pull", "c2b"])
async def test_status_answer_about_money_of_another_reference_completes_no_payment(
    site: C2bSite, known_by: str
) -> None:
    path, _ = await site.addresses()
    payment = (await site.api.pay(PHONE, key="k-1", reference="TABLE 4")).data
    if known_by == "c2b":
        assert (await site.confirm(path, RECEIPT, account="TABLE 9")).status == 200
    else:
        site.daraja.add_answers("pullquery", page(line(RECEIPT, phone=PHONE, reference="TABLE 9")))
        assert (await site.api.call("POST", RUN, {})).status == 200
    assert await answered(site) == "not_ours"
    assert await state(site, payment) == ("pending", None, None)


async def test_status_answer_about_money_of_the_payments_reference_completes_it(site: C2bSite) -> None:
    path, _ = await site.addresses()
    payment = (await site.api.pay(PHONE, key="k-1", reference="TABLE 4")).data
    assert (await site.confirm(path, RECEIPT, account="TABLE 4", phone=None)).status == 200
    assert await state(site, payment) == ("pending", None, None)
    assert await answered(site) == "recovered"
    assert await state(site, payment) == ("completed", RECEIPT, None)


@pytest.mark.parametrize("first", ["pull", "c2b"])
async def test_second_money_that_fits_a_payment_as_the_first_does_completes_nothing(site: C2bSite, first: str) -> None:
    path, _ = await site.addresses()
    payment = (await site.api.pay(PHONE, key="k-1", reference="TABLE 4")).data
    if first == "c2b":
        assert (await site.confirm(path, "TKN0000001", account="TABLE 4", phone=None)).status == 200
    else:
        site.daraja.add_answers("pullquery", page(line("TKN0000001", phone=None, reference="TABLE 4")))
        assert (await site.api.call("POST", RUN, {})).status == 200
    # Somebody whose number ends alike.
    assert (await site.confirm(path, "TKN0000002", account="TABLE 4", phone="2547 ***** 149")).status == 200
    assert await state(site, payment) == ("pending", None, None)


@pytest.mark.parametrize("account", ["TABLE 9", None])
async def test_second_money_that_fits_alone_completes_its_payment(site: C2bSite, account: str | None) -> None:
    path, _ = await site.addresses()
    payment = (await site.api.pay(PHONE, key="k-1", reference="TABLE 4")).data
    if account is not None:
        assert (await site.confirm(path, "TKN0000001", account=account, phone=None)).status == 200
    assert (await site.confirm(path, "TKN0000002", account="TABLE 4", phone="2547 ***** 149")).status == 200
    assert await state(site, payment) == ("completed", "TKN0000002", None)


@pytest.mark.parametrize("subject", ["account", "resolved"])
async def test_status_answer_about_allocated_money_holds_no_other_payment(site: C2bSite, subject: str) -> None:
    path, _ = await site.addresses()
    if subject == "account":
        assert (await site.api.call("PUT", "/v1/account-numbers/HOUSE%207", {"expected": 500})).status == 200
    assert (await site.confirm(path, RECEIPT, account=None if subject == "resolved" else "HOUSE 7")).status == 200
    (row,) = await site.transactions()
    if subject == "resolved":
        to = f"/v1/transactions/{row['transaction_id']}/allocate"
        assert (await site.api.call("POST", to, {"note": "order 12, at the till"})).status == 200
    payment = (await site.api.pay(PHONE, key="k-1", reference="TABLE 4")).data
    assert await answered(site) == "not_ours"
    mismatch = await site.gateway.db.fetchval("SELECT mismatch FROM payment")
    # The payer cancels the prompt.
    push = site.daraja.requests_of("stkpush")[-1]
    body = stk_callback(payment["provider_ref"], 1032)
    assert (await site.api.call("POST", path_of(push["CallBackURL"]), body)).status == 200
    assert (mismatch, *await state(site, payment)) == (None, "failed", None, "cancelled_by_user")
