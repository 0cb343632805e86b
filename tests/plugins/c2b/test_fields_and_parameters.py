"""Protects the scopes, query parameters and fields of shortcodes, transactions, C2B and their events."""

from typing import Any

import pytest

from mpesa_gateway.testing.serving import Answer, eventually
from tests.conftest import Harness
from tests.routes import document

PHONE = "254711000001"

PAGE = {"limit", "cursor", "count"}

FILTERS = {
    "direction",
    "kind",
    "allocated",
    "shortcode",
    "account_number",
    "phone",
    "receipt",
    "since",
    "until",
    "min_amount",
    "max_amount",
}

CALLS: dict[tuple[str, str], tuple[str, set[str]]] = {
    ("get", "/v1/merchant/shortcodes"): ("merchant:read", PAGE),
    ("post", "/v1/merchant/shortcodes"): ("merchant:write", set()),
    ("get", "/v1/merchant/shortcodes/{shortcode}"): ("merchant:read", set()),
    ("put", "/v1/merchant/shortcodes/{shortcode}"): ("merchant:write", set()),
    ("delete", "/v1/merchant/shortcodes/{shortcode}"): ("merchant:write", set()),
    ("get", "/v1/transactions"): ("transactions:read", FILTERS | PAGE),
    ("get", "/v1/transactions/export"): ("transactions:read", FILTERS),
    ("get", "/v1/transactions/{transaction_id}"): ("transactions:read", set()),
    ("post", "/v1/transactions/{transaction_id}/allocate"): ("transactions:write", set()),
    ("post", "/v1/merchant/shortcodes/{shortcode}/c2b"): ("merchant:write", set()),
    ("get", "/v1/merchant/shortcodes/{shortcode}/c2b"): ("merchant:read", set()),
    ("delete", "/v1/merchant/shortcodes/{shortcode}/c2b"): ("merchant:write", set()),
    ("put", "/v1/account-numbers/{number}"): ("payments:write", {"shortcode"}),
    ("get", "/v1/account-numbers/{number}"): ("payments:read", {"shortcode"}),
    ("delete", "/v1/account-numbers/{number}"): ("payments:write", {"shortcode"}),
    ("post", "/v1/account-numbers"): ("payments:write", set()),
    ("get", "/v1/account-numbers"): ("payments:read", PAGE | {"shortcode", "active"}),
    ("post", "/v1/payments/{payment_id}/qr"): ("payments:write", set()),
    ("post", "/v1/merchant/shortcodes/{shortcode}/qr"): ("payments:write", set()),
    ("post", "/v1/payments/mpesa/pull/register"): ("payments:write", {"shortcode"}),
    ("post", "/v1/payments/mpesa/check-status/{receipt}"): ("payments:write", {"shortcode"}),
}

TRANSACTION = {
    "id",
    "merchant_id",
    "env",
    "shortcode",
    "direction",
    "kind",
    "amount",
    "fee",
    "refunded_amount",
    "reversed",
    "currency",
    "receipt",
    "account_number",
    "payer",
    "occurred_at",
    "allocated_to",
    "witnesses",
}
REGISTRATION = {
    "env",
    "shortcode",
    "state",
    "meaning",
    "version",
    "response_type",
    "validation",
    "answer_code",
    "answer_text",
    "answered_at",
    "registered_at",
    "last_confirmation_at",
}
ACCOUNT = {
    "id",
    "env",
    "shortcode",
    "number",
    "state",
    "active",
    "expected",
    "min",
    "max",
    "received",
    "outstanding",
    "created_at",
    "updated_at",
}
EVENT = {
    "env",
    "transaction_id",
    "merchant_id",
    "shortcode",
    "kind",
    "amount",
    "currency",
    "receipt",
    "account_number",
    "payer",
    "paid_at",
}
ACCOUNT_EVENT = {
    "env",
    "account_id",
    "merchant_id",
    "account_number",
    "shortcode",
    "currency",
    "expected",
    "received",
    "outstanding",
    "amount",
}
COLUMNS = (
    "id,env,shortcode,direction,kind,amount,fee,refunded_amount,reversed,currency,receipt,account_number,payer_phone,"
    "payer_name,occurred_at,allocated_to_type,allocated_to_id,first_source"
)


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_document_states_scope_and_every_query_parameter(call: tuple[str, str]) -> None:
    method, path = call
    operation = document()["paths"][path][method]
    named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
    assert (operation["x-scope"], named) == CALLS[call]


async def pays(harness: Harness, amount: int, account_number: str) -> Answer:
    body = {"phone": PHONE, "amount": amount, "shortcode": "174379", "account_number": account_number}
    return await harness.api.call("POST", "/simulator/control/c2b", body)


async def recorded(harness: Harness, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def are_recorded() -> bool:
        found[:] = (await harness.api.call("GET", "/v1/transactions")).body["data"]
        return len(found) == count

    await eventually(are_recorded)
    return found


async def test_views_and_events_of_unasked_money_have_the_documented_fields(harness: Harness) -> None:
    registered = await harness.api.call("POST", "/v1/merchant/shortcodes/174379/c2b", {"validation": "accept"})
    shown = await harness.api.call("GET", "/v1/merchant/shortcodes/174379/c2b")
    put = await harness.api.call("PUT", "/v1/account-numbers/HOUSE%207?shortcode=174379", {"expected": 1000})
    assert set(registered.data) == REGISTRATION | {"addresses"}
    assert (set(shown.data), set(put.data)) == (REGISTRATION, ACCOUNT)
    await pays(harness, 400, "house 7")
    await pays(harness, 77, "nobody's")
    loose, counted = await recorded(harness, 2)
    assert set(loose) == set(counted) == TRANSACTION
    assert (loose["allocated_to"], counted["allocated_to"]["type"]) == (None, "account_number")
    account = (await harness.api.call("GET", "/v1/account-numbers/HOUSE%207")).data
    assert set(account) == ACCOUNT | {"transactions"}
    assert (account["received"], account["outstanding"]) == ("400.00", "600.00")
    (part,) = await harness.receiver.wait_for(1, kind="account.part_paid")
    (told,) = await harness.receiver.wait_for(1, kind="transaction.received")
    assert (set(part.json["data"]), set(told.json["data"])) == (ACCOUNT_EVENT, EVENT)
    chosen = await harness.api.call("POST", f"/v1/transactions/{loose['id']}/allocate", {"note": "sold at the till"})
    assert set(chosen.data) == TRANSACTION | {"allocations"}
    assert set(chosen.data["allocations"][0]) == {"allocated_to", "by", "at", "note"}
    assert set(chosen.data["witnesses"][0]) == {"source", "seen_at", "detail"}
    allocated = await harness.receiver.wait_for(2, kind="transaction.allocated")
    assert {frozenset(each.json["data"]) for each in allocated} == {frozenset(EVENT | {"allocated_to", "note"})}
    exported = await harness.api.download("/v1/transactions/export?allocated=true")
    assert (exported.text or "").splitlines()[0] == COLUMNS
