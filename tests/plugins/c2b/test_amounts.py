"""Protects money with cents, commas or an impossible amount, in a confirmation and in a statement."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import INITIATED
from mpesa_gateway_c2b.accounts import AccountNumbers
from tests.plugins.c2b.c2b_site import C2bSite, c2b_site
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line


@pytest.fixture
async def site(values: dict[str, Any]) -> AsyncGenerator[C2bSite]:
    async with c2b_site(values) as found:
        yield found


@pytest.mark.parametrize(("text", "cents"), [("1500.50", 150050), ("1,500.00", 150000), ("1,500.50", 150050)])
async def test_confirmation_with_a_comma_and_cents_is_recorded(site: C2bSite, text: str, cents: int) -> None:
    path, _ = await site.addresses()
    assert (await site.confirm(path, amount=text)).status == 200
    (row,) = await site.transactions()
    assert row["amount_cents"] == cents


@pytest.mark.parametrize("way", ["c2b", "pull"])
async def test_money_with_cents_counts_whoever_reports_it(site: C2bSite, way: str) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    assert (await site.api.call("PUT", "/v1/account-numbers/HOUSE%207", {"expected": 1000})).status == 200
    if way == "c2b":
        assert (await site.confirm(path, account="HOUSE 7", amount="500.50")).status == 200
    else:
        at = _recently(site)
        site.daraja.add_answers("pullquery", page(line("TKN4A1B2C3", "500.50", trxDate=at, billreference="HOUSE 7")))
        assert (await site.api.call("POST", RUN, {})).status == 200
        await site.gateway.port(AccountNumbers).allocate_waiting()
    found = (await site.api.call("GET", "/v1/account-numbers/HOUSE%207")).data
    assert found["received"] == "500.50"


@pytest.mark.parametrize("text", ["2147483648", "3000000000.00", "0.001", "0"])
async def test_confirmation_of_an_impossible_amount_is_refused(site: C2bSite, text: str) -> None:
    path, _ = await site.addresses()
    assert (await site.confirm(path, amount=text)).status == 422
    assert await site.transactions() == []


async def test_largest_amount_is_shown_and_refundable(site: C2bSite) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    assert (await site.confirm(path, account="X", amount="2147483647")).status == 200
    (row,) = await site.transactions()
    answer = await site.api.call("POST", "/v1/refunds", {"transaction_id": row["transaction_id"]})
    assert (answer.status, answer.data["amount"]) == (201, "2147483647.00")
    assert await site.gateway.db.fetchval("SELECT amount FROM statement") == 2_147_483_647


@pytest.mark.parametrize(
    ("text", "cents"),
    [
        ("-500.50", 50050),
        ("(500.50)", 50050),
        ("-500", 50000),
        ("500.00-", 50000),
        ("-2147483648", None),
        ("-5.0.0", None),
    ],
)
async def test_outgoing_line_is_recorded_with_its_cents(site: C2bSite, text: str, cents: int | None) -> None:
    assert (await site.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    site.daraja.add_answers("pullquery", page(line("TKN4A1B2C3", text, trxDate=_recently(site))))
    run = await site.api.call("POST", RUN, {})
    assert run.status == 200
    (row,) = await site.transactions()
    assert (row["direction"], row["amount_cents"]) == ("out", cents)
    assert (await site.api.call("GET", f"/v1/payments/mpesa/reconciliations/{run.data['id']}")).status == 200


async def test_amount_of_resolved_money_is_learnt_from_its_confirmation(site: C2bSite) -> None:
    path, _ = await site.addresses()
    assert (await site.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    site.daraja.add_answers("pullquery", page(line("TKN4A1B2C3", "five", trxDate=_recently(site), billreference="X")))
    assert (await site.api.call("POST", RUN, {})).status == 200
    (row,) = await site.transactions()
    assert row["amount_cents"] is None
    allocate = f"/v1/transactions/{row['transaction_id']}/allocate"
    assert (await site.api.call("POST", allocate, {"note": "paid back in cash"})).status == 200
    assert (await site.confirm(path, account="X", amount="500.50")).status == 200
    (row,) = await site.transactions()
    assert (row["subject_kind"], row["amount_cents"]) == ("resolved", 50050)
    assert await site.gateway.db.fetchval("SELECT verdict FROM callback") == "applied"


def _recently(site: C2bSite) -> str:
    return f"{(site.gateway.clock.now() - timedelta(minutes=5)).astimezone(EAT):%Y-%m-%d %H:%M:%S}"
