"""Protects receivers that share a number: money that M-Pesa names by it completes no payment of one of them."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import shop
from mpesa_gateway_payments.answer_review import StatusAnswerReview
from tests.conftest import Harness
from tests.daraja import Daraja
from tests.plugins.payments.test_evidence import (
    PHONE,
    STORE,
    TILL_A,
    TILL_B,
    call_back,
    create_payment,
    get_payment,
    put_till,
    query_status,
    receiver_of,
    values,
)
from tests.plugins.reconciliation.test_reconciliation import RUN, page
from tests.plugins.reconciliation.test_reconciliation import row as line

__all__ = ["values"]

NEW_STORE = "600777"
AT_STORE = {"CreditPartyName": f"{STORE} - STORE"}


@pytest.fixture
def callbacks() -> dict[str, Any]:
    return {}


async def attention(harness: Harness) -> int:
    """Status answers that the overview shows as undecided."""
    return await harness.gateway.services.get(StatusAnswerReview).count("sandbox")


@pytest.mark.parametrize("till_b", [TILL_B, None], ids=["another till of the store", "the store's number is a paybill"])
async def test_status_query_naming_a_shared_store_number_completes_no_payment(
    harness: Harness, daraja: Daraja, till_b: str | None
) -> None:
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, till_b)
        own, theirs = await create_payment(harness), (await other.pay(PHONE, 700, key="b")).data
        # The payer paid at B; payer, amount and time fit A's payment too.
        assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "ambiguous"
        assert (await get_payment(harness, own))["status"] == "pending"
        assert await receiver_of(harness, "UKA1B2C3D1") is None
        await call_back(harness, theirs, "UKA1B2C3D1")
        after = (await other.call("GET", f"/v1/payments/{theirs['id']}")).data
    assert (after["status"], after["receipt"], after["mismatch"]) == ("completed", "UKA1B2C3D1", None)
    assert await receiver_of(harness, "UKA1B2C3D1") == (till_b or STORE)
    # B's payment has the receipt now.
    assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "not_ours"
    assert (await get_payment(harness, own))["status"] == "pending"


async def test_status_query_of_a_paybill_that_is_a_tills_store_number_completes_no_payment(
    harness: Harness, daraja: Daraja
) -> None:
    await put_till(harness.api, None)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        payment = await create_payment(harness)
        assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "ambiguous"
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert await receiver_of(harness, "UKA1B2C3D1") is None


async def test_status_query_of_a_paybill_that_is_a_tills_store_number_records_no_money(
    harness: Harness, daraja: Daraja
) -> None:
    await put_till(harness.api, None)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "not_ours"
    assert await receiver_of(harness, "UKA1B2C3D1") is None


async def test_status_query_naming_till_and_store_number_recovers_the_tills_payment(
    harness: Harness, daraja: Daraja
) -> None:
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        payment = await create_payment(harness)
        assert await query_status(harness, daraja, "UKA1B2C3D1", CreditPartyName=f"{TILL_A} - SHOP") == "recovered"
    assert (await get_payment(harness, payment))["receipt"] == "UKA1B2C3D1"


async def test_status_query_after_the_other_till_is_retired_completes_no_payment(
    harness: Harness, daraja: Daraja
) -> None:
    """Money of a retired till still arrives."""
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        assert (await other.call("DELETE", "/v1/merchant/providers/mpesa")).status == 200
        payment = await create_payment(harness)
        assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "ambiguous"
    assert (await get_payment(harness, payment))["status"] == "pending"


@pytest.mark.parametrize("is_till", [True, False], ids=["another store", "no till"])
async def test_status_query_after_the_other_till_changed_its_store_completes_no_payment(
    harness: Harness, daraja: Daraja, is_till: bool
) -> None:
    """M-Pesa may still name the other till by its former store number."""
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        await put_till(other, TILL_B if is_till else None, NEW_STORE)
        payment = await create_payment(harness)
        assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "ambiguous"
        assert await receiver_of(harness, "UKA1B2C3D1") is None
        assert await attention(harness) == 1
    assert (await get_payment(harness, payment))["status"] == "pending"


async def test_status_query_naming_a_former_store_number_of_the_till_completes_no_payment(
    harness: Harness, daraja: Daraja
) -> None:
    for store in (STORE, NEW_STORE):
        await put_till(harness.api, TILL_A, store)
    payment = await create_payment(harness)
    assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "ambiguous"
    assert (await get_payment(harness, payment))["status"] == "pending"
    assert await receiver_of(harness, "UKA1B2C3D1") is None
    # The present number proves the till, and so does the former one once it is the present one again.
    assert await query_status(harness, daraja, "UKA1B2C3D2", CreditPartyName=f"{NEW_STORE} - STORE") == "recovered"
    await put_till(harness.api, TILL_A, STORE)
    again = await create_payment(harness, key="again")
    assert await query_status(harness, daraja, "UKA1B2C3D3", CreditPartyName=f"{NEW_STORE} - STORE") == "ambiguous"
    assert await query_status(harness, daraja, "UKA1B2C3D4", **AT_STORE) == "recovered"
    assert (await get_payment(harness, again))["receipt"] == "UKA1B2C3D4"


async def test_status_query_naming_the_till_after_its_store_changed_recovers_its_payment(
    harness: Harness, daraja: Daraja
) -> None:
    for store in (STORE, NEW_STORE):
        await put_till(harness.api, TILL_A, store)
    payment = await create_payment(harness)
    assert await query_status(harness, daraja, "UKA1B2C3D1", CreditPartyName=f"{TILL_A} - A") == "recovered"
    assert (await get_payment(harness, payment))["status"] == "completed"


async def test_status_query_of_an_unproven_receipt_at_a_shared_store_number_completes_no_payment(
    harness: Harness, daraja: Daraja
) -> None:
    """A mismatch has named the receipt; a store number does not prove that the money is the payment's."""
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        payment = await create_payment(harness)
        await harness.gateway.db.execute(
            "UPDATE payment SET mismatch = 'unconfirmed', received_receipt = 'UKA1B2C3D1', due_at = NULL "
            "WHERE payment_id = $1",
            payment["id"],
        )
        assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "ambiguous"
    assert (await get_payment(harness, payment))["status"] == "pending"


@pytest.mark.parametrize(
    ("says", "finding", "status"),
    [
        pytest.param({}, "ambiguous", "pending", id="no conversation"),
        pytest.param({"OriginatorConversationID": "of-another"}, "ambiguous", "pending", id="another conversation"),
        pytest.param({"OriginatorConversationID": "OWN"}, "recovered", "completed", id="the push's conversation"),
        pytest.param({"Originator Conversation ID": "OWN"}, "recovered", "completed", id="the older name"),
    ],
)
async def test_status_query_of_a_push_at_a_shared_store_number_needs_the_conversation_of_the_push(
    harness: Harness, daraja: Daraja, says: dict[str, str], finding: str, status: str
) -> None:
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        payment = await create_payment(harness)
        own = await harness.gateway.db.fetchval("SELECT merchant_request_id FROM payment")
        stated = {name: own if text == "OWN" else text for name, text in says.items()}
        found = await query_status(harness, daraja, payment["id"], ReceiptNo="UKA1B2C3D1", **AT_STORE, **stated)
    assert (found, (await get_payment(harness, payment))["status"]) == (finding, status)


async def test_status_query_failed_at_a_shared_store_number_is_not_final(harness: Harness, daraja: Daraja) -> None:
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        payment = await create_payment(harness)
        failed = await query_status(
            harness, daraja, payment["id"], ReceiptNo=None, TransactionStatus="Failed", **AT_STORE
        )
    assert failed == "failed"
    assert not await harness.gateway.db.fetchval(
        "SELECT outcome_is_final FROM payment WHERE payment_id = $1", payment["id"]
    )


async def test_statement_line_of_a_till_completes_its_payment_after_an_ambiguous_answer(
    harness: Harness, daraja: Daraja
) -> None:
    """Pull reads the statement of one till: its line proves the receiver."""
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        payment = await create_payment(harness)
        assert await query_status(harness, daraja, "UKA1B2C3D1", **AT_STORE) == "ambiguous"
        assert await attention(harness) == 1
        bought = line("UKA1B2C3D1", 700, phone=PHONE, transactiontype="c2b-buy-goods-debit")
        daraja.add_answers("pullquery", page(bought))
        run = (await harness.api.call("POST", RUN, {})).data
    assert run["recovered"] == 1
    assert (await get_payment(harness, payment))["receipt"] == "UKA1B2C3D1"
    assert await receiver_of(harness, "UKA1B2C3D1") == TILL_A
    assert await attention(harness) == 0


async def test_receipt_of_an_ambiguous_answer_is_shown_until_a_payment_has_it(harness: Harness, daraja: Daraja) -> None:
    """The answer is about A's push and states a receipt; A's payment then gets another receipt."""
    await put_till(harness.api, TILL_A)
    async with shop(harness.gateway, harness.base) as other:
        await put_till(other, TILL_B)
        own, theirs = await create_payment(harness), (await other.pay(PHONE, 700, key="b")).data
        assert await query_status(harness, daraja, own["id"], ReceiptNo="UKA1B2C3D1", **AT_STORE) == "ambiguous"
        (shown,) = await harness.gateway.services.get(StatusAnswerReview).newest("sandbox")
        assert (shown["answered_receipt"], shown["answered_amount"]) == ("UKA1B2C3D1", "700")
        await call_back(harness, own, "UKA1B2C3D2")
        assert await attention(harness) == 1
        await call_back(harness, theirs, "UKA1B2C3D1")
        assert await attention(harness) == 0
