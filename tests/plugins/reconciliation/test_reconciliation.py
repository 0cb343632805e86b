"""Protects reconciliation: statements in every known form are read, each line once, and no payment is guessed."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from mpesa_gateway.clock import EAT, SetClock
from mpesa_gateway.testing.serving import INITIATED, Answer, Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_reconciliation.service import ReconciliationService
from tests.conftest import Harness
from tests.daraja import Daraja, DarajaAnswer, fault, result, stk_callback
from tests.identifiers import identifiers
from tests.owner import as_owner
from tests.stored import change_credentials, default_shortcode, move_to

RUN = "/v1/payments/mpesa/reconcile"
RUNS = "/v1/payments/mpesa/reconciliations"
OWN = "a reference of the gateway's own"


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """Queries are sent on demand only, and pages are requested again without a pause."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "reconciliation": {"pause": 0.01, "tries": 2, "page_pause": 0},
    }


@pytest.fixture
async def harness(harness: Harness) -> Harness:
    """The shop's credentials have an initiator and a nominated number."""
    assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
    return harness


def row(receipt: str, amount: Any = 500, phone: str | None = "711000001", reference: str = "", **more: Any) -> Any:
    """A row of a statement, as Pull returns it."""
    at = more.pop("at", datetime.now(UTC))
    fields = {
        "transactionId": receipt,
        "trxDate": at if isinstance(at, str) else f"{at.astimezone(EAT):%Y-%m-%dT%H:%M:%S}+03:00",
        "msisdn": phone,
        "sender": "MPESA",
        "transactiontype": "c2b-pay-bill-debit",
        "billreference": reference,
        "amount": amount,
        "organizationname": "Shop",
    }
    return fields | more


def page(*rows: Any, lists: Any = None) -> DarajaAnswer:
    """One page of a statement."""
    found = [list(rows)] if lists is None else lists
    return 200, {"ResponseRefID": "1", "ResponseCode": "1000", "ResponseMessage": "Success", "Response": found}


NO_ROWS: list[list[Any]] = [[]]
NOTHING: DarajaAnswer = (
    200,
    {"ResponseRefID": "1", "ResponseCode": "1001", "ResponseMessage": "none", "Response": NO_ROWS},
)


def statement(rows: list[Any], size: int = 100) -> Callable[[dict[str, Any]], DarajaAnswer]:
    """A statement of these rows, in pages."""

    def page_at(body: dict[str, Any]) -> DarajaAnswer:
        offset = int(body["OffSetValue"])
        shown = rows[offset : offset + size]
        return page(*shown) if shown else NOTHING

    return page_at


async def run(harness: Harness, daraja: Daraja, *rows: Any) -> Any:
    """Run over a statement of these rows; returns the ended run."""
    daraja.answers["pullquery"] = [statement(list(rows))] * 50
    found = (await harness.api.call("POST", RUN, {})).data
    daraja.answers["pullquery"] = []
    return found


async def rows_of(harness: Harness, found: Any, query: str = "") -> dict[str, Any]:
    """The rows of a run by their receipts."""
    answer = await harness.api.call("GET", f"{RUNS}/{found['id']}{query}")
    return {line["receipt"]: line for line in answer.data["rows"]}


async def create_payment(
    harness: Harness, amount: int = 500, phone: str = "254711000001", key: str = "a", **more: Any
) -> Any:
    """Create a payment whose prompt was acknowledged."""
    return (await harness.api.pay(phone, amount, key=key, **more)).data


async def get_payment(harness: Harness, payment: Any) -> Any:
    return (await harness.api.call("GET", f"/v1/payments/{payment['id']}")).data


async def call_back(harness: Harness, payment: Any, **fields: Any) -> None:
    """Post a callback to the payment's own address."""
    url = harness.gateway.services.get(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=payment["merchant_id"], subject_id=payment["id"]
    )
    body = stk_callback(payment["provider_ref"], **fields)
    assert (await harness.api.call("POST", url.removeprefix(harness.base), body)).status == 200


async def post_status_result(harness: Harness, question: dict[str, Any], phone: str, **fields: Any) -> None:
    """Post M-Pesa's result of the status query about a line, with this payer."""
    says = {
        "ReceiptNo": question["TransactionID"],
        "TransactionStatus": "Completed",
        "DebitPartyName": f"{phone} - JANE DOE",
    }
    body = result(0, says=says | fields)
    assert (await harness.api.call("POST", question["ResultURL"].removeprefix(harness.base), body)).status == 200


# -- registration ---------------------------------------------------------------------------------------------------


async def test_register_sends_darajas_fields_and_may_be_repeated(harness: Harness, daraja: Daraja) -> None:
    replies: tuple[tuple[DarajaAnswer, str], ...] = (
        ((200, {"ResponseStatus": "1000", "ResponseDescription": "registered", "ShortCode": "174379"}), "1000"),
        ((200, {"Response Status": 1001, "ResponseDescription": "already", "ShortCode": "174379"}), "1001"),
    )
    for one, code in replies:
        daraja.add_answers("pullregister", one)
        answer = await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
        assert (
            answer.status,
            answer.data["response_code"],
            answer.data["shortcode"],
        ) == (200, code, "174379")
    sent = daraja.requests_of("pullregister")[0]
    assert "/v1/cb/pull/" in sent.pop("CallBackURL")
    assert sent == {"ShortCode": "174379", "RequestType": "Pull", "NominatedNumber": "254708374149"}
    actions = (await harness.gateway.db.fetch("SELECT action FROM audit_entry")) or []
    assert [one["action"] for one in actions].count("pull.registered") == 2
    refusals: tuple[tuple[DarajaAnswer, int], ...] = (
        (fault("400.003.02", "Bad Request", 400), 502),
        ((200, {"ResponseStatus": "1002", "ResponseDescription": "no"}), 502),
        ((200, {}), 503),
        ((500, b"<html>"), 503),
        (fault("500.003.02", "Spike Arrest"), 503),
    )
    for refused, status in refusals:
        daraja.add_answers("pullregister", refused)
        assert (await harness.api.call("POST", "/v1/payments/mpesa/pull/register")).status == status, refused


async def test_register_without_a_nominated_number_names_the_field(harness: Harness) -> None:
    await change_credentials(harness.gateway, nominated_number=None)
    answer = await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    assert (answer.status, answer.error["code"], answer.error["field"]) == (
        422,
        "PROVIDER_NOT_CONFIGURED",
        "mpesa.nominated_number",
    )


async def test_pull_callback_is_stored_and_changes_nothing(harness: Harness, daraja: Daraja) -> None:
    await harness.api.call("POST", "/v1/payments/mpesa/pull/register")
    (sent,) = daraja.requests_of("pullregister")
    url = sent["CallBackURL"].removeprefix(harness.base)
    assert (await harness.api.call("POST", url, {"anything": ["at", "all"]})).status == 200
    assert (await harness.api.call("POST", url, raw=b"[]")).status == 422
    assert await harness.gateway.db.fetchval("SELECT verdict FROM callback WHERE kind = 'pull'") == "applied"


# -- reading --------------------------------------------------------------------------------------------------------

EMPTY: tuple[DarajaAnswer, ...] = (
    NOTHING,
    (200, {"ResponseCode": "1001", "ResponseMessage": "No transactions"}),
    (200, {"ResponseCode": 1001}),
    (200, {"ResponseCode": "1001", "Response": "No transactions found"}),
    (200, {"ResponseCode": "1001", "Response": None}),
    (200, {"ResponseCode": "1000", "ResponseMessage": "Success", "Response": NO_ROWS}),
    (200, {"ResponseCode": "1000", "Response": []}),
    (200, {"ResponseCode": "1000"}),
    (200, {"ResponseCode": "1000", "Response": "None"}),
    (500, {"ResponseCode": "1001", "ResponseMessage": "No transactions"}),
    fault("500.003.1001", "No transactions found for the period"),
    (404, {"errorCode": "404.003.02", "errorMessage": "No transaction found"}),
    fault("500.003.1001", "Nothing could be fetched: this shortcode has not got any transactions."),
    fault("404.002.01", "Resource not found", 404),
    (200, {"ResponseCode": 0.0, "ResponseMessage": "Success", "Response": NO_ROWS}),
)


async def test_run_with_an_empty_statement_in_every_form_has_no_lines(harness: Harness, daraja: Daraja) -> None:
    for reply in EMPTY:
        daraja.add_answers("pullquery", reply)
        found = (await harness.api.call("POST", RUN, {})).data
        assert (found["status"], found["lines"], found["error"]) == ("completed", 0, None), reply
    assert len(daraja.requests_of("pullquery")) == len(EMPTY)


BROKEN: tuple[tuple[DarajaAnswer, int, str], ...] = (
    ((200, b"<html>We are improving our services</html>"), 2, "without JSON"),
    ((500, b""), 2, "without JSON"),
    (fault("500.003.1001", "Internal Server Error"), 2, "internal error at M-Pesa"),
    (fault("500.003.02", "Spike Arrest"), 2, "spike arrest"),
    ((429, b""), 2, "too many requests"),
    (fault("500.003.1001", "The transactions could not be fetched"), 2, "internal error at M-Pesa"),
    ((200, {"ResponseMessage": "Success"}), 2, "no statement"),
    ((200, {"ResponseCode": "1002", "ResponseMessage": "no"}), 1, "did not accept"),
    (fault("400.003.02", "Bad Request", 400), 1, "the button Register at /ops/credentials/mer_"),
)


async def test_run_with_an_unreadable_page_retries_it_and_fails_with_the_reason(
    harness: Harness, daraja: Daraja
) -> None:
    for reply, times, word in BROKEN:
        before = len(daraja.requests_of("pullquery"))
        daraja.add_answers("pullquery", *[reply] * times)
        found = (await harness.api.call("POST", RUN, {})).data
        assert (found["status"], len(daraja.requests_of("pullquery")) - before) == ("failed", times), reply
        assert word in found["error"], found
    # A page that is readable at the second try counts.
    daraja.add_answers("pullquery", BROKEN[0][0], page(row("TKN4A1B2C3")), NOTHING)
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["lines"]) == ("completed", 1)
    listed = (await harness.api.call("GET", f"{RUNS}?limit=3&count=true")).body
    assert (listed["meta"]["total"], listed["data"][0]["id"]) == (len(BROKEN) + 1, found["id"])


async def test_run_reads_pages_by_offset_to_the_end(harness: Harness, daraja: Daraja) -> None:
    found = await run(harness, daraja, *(row(f"ROW{number:07}", 1 + number) for number in range(230)))
    assert (found["status"], found["pages"], found["lines"], found["not_found"]) == ("completed", 3, 230, 230)
    requests = daraja.requests_of("pullquery")
    # The last page is shorter than a full one, so no request follows.
    assert [one["OffSetValue"] for one in requests] == ["0", "100", "200"]
    assert {one["ShortCode"] for one in requests} == {"174379"}
    start, end = (datetime.strptime(requests[0][name], "%Y-%m-%d %H:%M:%S") for name in ("StartDate", "EndDate"))  # noqa: DTZ007
    assert timedelta(hours=2) <= end - start <= timedelta(hours=2, seconds=2)
    now = datetime.now(EAT).replace(tzinfo=None)
    assert abs(now - end) < timedelta(minutes=2)
    # The API returns the rows in pages too.
    seen: list[str] = []
    path = f"{RUNS}/{found['id']}?limit=100"
    while path:
        answer = await harness.api.call("GET", path)
        seen += [line["receipt"] for line in answer.data["rows"]]
        meta = answer.body["meta"]
        path = f"{RUNS}/{found['id']}?limit=100&cursor={meta['next_cursor']}" if meta["has_more"] else ""
    assert len(set(seen)) == len(seen) == 230


async def test_run_with_an_ignored_offset_ends(harness: Harness, daraja: Daraja) -> None:
    daraja.answers["pullquery"] = [page(*(row(f"ROW{number:07}") for number in range(100)))] * 50
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["lines"], len(daraja.requests_of("pullquery"))) == ("completed", 100, 2)


async def test_run_with_endless_unreadable_pages_fails(harness: Harness, daraja: Daraja) -> None:
    daraja.answers["pullquery"] = [page(*[{"trxDate": "never"}, "x", 5, None] * 25)] * 50
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["lines"], found["pages"]) == ("failed", 0, 10)
    assert "cannot be read to its end" in found["error"]


async def test_run_ends_after_a_page_that_is_not_full(harness: Harness, daraja: Daraja) -> None:
    # A server with one more new row for each request would otherwise be queried without end.
    daraja.answers["pullquery"] = [page(row(f"ROW{number:07}")) for number in range(50)]
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["lines"], len(daraja.requests_of("pullquery"))) == ("completed", 1, 1)


async def test_run_ends_when_no_transactions_follow_full_pages(harness: Harness, daraja: Daraja) -> None:
    whole = page(*(row(f"ROW{number:07}") for number in range(100)))
    for at, nothing in enumerate(EMPTY):
        daraja.add_answers("pullquery", whole, nothing)
        found = (await harness.api.call("POST", RUN, {})).data
        assert (found["status"], found["lines"]) == ("completed", 100), nothing
        assert len(daraja.requests_of("pullquery")) == 2 * (at + 1)


async def test_run_skips_and_counts_unreadable_bytes_and_rows(harness: Harness, daraja: Daraja) -> None:
    rows = [row("ROW0000001", sender="@"), row("ROW0000002", amount="1e2"), {"transactionId": "ROW0000003"}, "x", None]
    content = {"ResponseCode": "0", "Response": [rows]}
    daraja.add_answers("pullquery", (200, json.dumps(content).encode().replace(b'"@"', b'"JOS\xc9 \t"')))
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["lines"], found["malformed"]) == ("completed", 2, 3)
    assert (await rows_of(harness, found))["ROW0000002"]["amount"] == "100.00"


async def test_run_reads_several_lists_of_rows_and_counts_malformed_ones(harness: Harness, daraja: Daraja) -> None:
    broken: list[Any] = [
        {},
        {"transactionId": "no", "trxDate": "2026-11-23 13:15:12", "amount": "5"},
        {"transactionId": "ROW0000009", "trxDate": "yesterday", "amount": "5"},
        {"transactionId": "ROW0000010", "trxDate": "2026-11-23 13:15:12"},
        {"transactionId": ["ROW0000011"], "trxDate": "2026-11-23 13:15:12", "amount": "5"},
        {"transactionId": "ROW0000012", "trxDate": 5, "amount": {"of": 5}},
        17,
        True,
    ]
    lists = [[row("ROW0000001")], [], "text", None, [[row("row0000002")]], [*broken, row("ROW0000003")], broken[0]]
    daraja.add_answers("pullquery", page(lists=lists), NOTHING)
    found = (await harness.api.call("POST", RUN, {})).data
    assert (found["status"], found["lines"], found["malformed"]) == ("completed", 5, len(broken) - 1)
    # A line with an unreadable time is stored.
    timeless = ["ROW0000009", "ROW0000012"]
    assert sorted(await rows_of(harness, found)) == ["ROW0000001", "ROW0000002", "ROW0000003", *timeless]


async def test_line_without_a_readable_time_is_settled_by_our_own_reference_only(
    harness: Harness, daraja: Daraja
) -> None:
    payment, other = await create_payment(harness), await create_payment(harness, key="other", reference="table 4")
    lines = [
        row("TIMELESS01", reference=payment["reference"], at="half past nine"),
        row("TIMELESS02", reference="table 4", at="13/13/2026 30:00"),
    ]
    found = await run(harness, daraja, *lines)
    assert (found["recovered"], found["not_found"], found["malformed"]) == (1, 1, 0)
    assert (await get_payment(harness, payment))["receipt"] == "TIMELESS01"
    assert (await get_payment(harness, other))["status"] == "pending"
    shown = (await rows_of(harness, found))["TIMELESS02"]
    assert (shown["finding"], shown["at"]) == ("not_found", found["end"])
    # With a readable time it is an ordinary line.
    found = await run(harness, daraja, row("TIMELESS02", reference="table 4"))
    assert (await get_payment(harness, other))["receipt"] == "TIMELESS02"


@pytest.mark.parametrize("turned", [False, True])
async def test_rows_of_one_receipt_that_contradict_each_other_complete_nothing(
    harness: Harness, daraja: Daraja, turned: bool
) -> None:
    first, second, third = [await create_payment(harness, key=f"k{number}") for number in range(3)]
    pairs = [
        (row("TWOAMOUNTS", 5, reference=first["reference"]), row("TWOAMOUNTS", reference=first["reference"])),
        (row("TWONAMES01", reference=second["reference"]), row("TWONAMES01", reference=third["reference"])),
        (row("TWOKINDS01", reference=third["reference"]),
         row("TWOKINDS01", reference=third["reference"], transactiontype="Pay Bill Reversal")),
    ]  # fmt: skip
    found = await run(harness, daraja, *[one for pair in pairs for one in (reversed(pair) if turned else pair)])
    assert (found["lines"], found["recovered"], found["mismatched"]) == (3, 0, 1)
    assert {(await get_payment(harness, payment))["status"] for payment in (first, second, third)} == {"pending"}
    (mismatch,) = await mismatches(harness, first)
    assert mismatch == ("amount", "TWOAMOUNTS")


async def test_line_read_repeatedly_is_stored_once(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness, reference="table 4")
    line = row("TKN4A1B2C3", reference="table 4")
    first = await run(harness, daraja, line, line, row("WALKIN0001", 7))
    second = await run(harness, daraja, row("WALKIN0001", 7), line)
    assert (first["lines"], first["recovered"], first["not_found"]) == (2, 1, 1)
    assert (second["lines"], second["already_known"], second["not_found"]) == (2, 1, 1)
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM statement") == 2
    assert (await get_payment(harness, payment))["receipt"] == "TKN4A1B2C3"
    assert (await rows_of(harness, first, "?outcome=recovered")).keys() == {"TKN4A1B2C3"}
    assert (await rows_of(harness, second, "?outcome=recovered")) == {}
    refused = await harness.api.call("GET", f"{RUNS}/{first['id']}?outcome=lost")
    assert (refused.status, refused.error["field"]) == (422, "outcome")


# -- findings -------------------------------------------------------------------------------------------------------


async def test_run_returns_each_finding_with_its_effect(harness: Harness, daraja: Daraja) -> None:
    known = await create_payment(harness, 501, key="known")
    await call_back(harness, known, amount=501, receipt="KNOWN00001")
    lost = await create_payment(harness, 502, key="lost", reference="table 1")
    failed = await create_payment(harness, 503, key="failed", reference="table 1")
    await call_back(harness, failed, code=1037)
    silent = await create_payment(harness, 504, key="silent", reference="table 1")
    await call_back(harness, silent, has_metadata=False)
    other_amount = await create_payment(harness, 505, key="other")
    forged = await create_payment(harness, 506, key="forged")
    await call_back(harness, forged, amount=506, receipt="FORGED0001")
    twins = [await create_payment(harness, 507, key=f"twin{number}", reference="table 4") for number in range(2)]
    found = await run(
        harness,
        daraja,
        row("KNOWN00001", 501),
        row("LOST000001", "502.00", reference="table 1"),
        row("FAILED0001", "503", reference="table 1"),
        row("SILENT0001", 504, reference="table 1"),
        row("OTHER00001", 1, reference=other_amount["reference"]),
        row("FORGED0001", 1),
        row("TWIN000001", 507, reference="table 4"),
        row("WALKIN0001", 508),
        row("CENTS00001", "502.50"),
        row("HUGE000001", "999999999999"),
    )
    words = ("already_known", "recovered", "not_found", "mismatched", "ambiguous")
    assert {word: found[word] for word in words} == dict(zip(words, (1 + 1, 2, 3, 2, 1), strict=True)) | {
        "already_known": 2
    }
    assert (found["status"], found["lines"], found["cause"]) == ("completed", 10, "manual")
    lines = await rows_of(harness, found)
    assert {receipt: line["finding"] for receipt, line in lines.items()} == {
        "KNOWN00001": "already_known",
        "LOST000001": "recovered",
        "FAILED0001": "recovered",
        "SILENT0001": "already_known",
        "OTHER00001": "mismatched",
        "FORGED0001": "mismatched",
        "TWIN000001": "ambiguous",
        "WALKIN0001": "not_found",
        "CENTS00001": "not_found",
        "HUGE000001": "not_found",
    }
    assert lines["LOST000001"]["payment_id"] == lost["id"]
    assert lines["LOST000001"]["phone"] == "2547****001"
    for payment, receipt in ((lost, "LOST000001"), (failed, "FAILED0001"), (silent, "SILENT0001")):
        after = await get_payment(harness, payment)
        assert (after["status"], after["receipt"]) == ("completed", receipt)
    assert (await get_payment(harness, other_amount))["mismatch"]["of"] == "amount"
    # The receipt of KES 1 was reported as that of KES 506: the merchant gets a mismatch.
    assert (await get_payment(harness, forged))["mismatch"]["of"] == "amount"
    mismatched = await harness.receiver.wait_for(2, kind="payment.mismatched")
    assert {one.json["data"]["payment_id"] for one in mismatched} == {other_amount["id"], forged["id"]}
    for twin in twins:
        assert (await get_payment(harness, twin))["status"] == "pending"
    completed = await harness.receiver.wait_for(5, kind="payment.completed")
    assert {lost["id"], failed["id"]} <= {one.json["data"]["payment_id"] for one in completed}
    async with shop(harness.gateway, harness.base) as other:
        assert (await other.call("GET", f"{RUNS}/{found['id']}")).status == 404
        assert (await other.call("GET", RUNS)).data == []


def shifted(at: datetime, **by: float) -> datetime:
    return at + timedelta(**by)


async def test_rule_decides_by_the_fields_of_the_row(harness: Harness, daraja: Daraja) -> None:
    """Each case is a payment with its own amount, and the one row that could be its money."""
    now = datetime.now(UTC)
    eat = now.astimezone(EAT)
    cases: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
        ("whole number", {}, {"phone": "254711000001"}, "recovered"),
        ("national number", {}, {"phone": "0711000001"}, "recovered"),
        ("number as a number", {}, {"phone": 254711000001}, "recovered"),
        ("masked", {}, {"phone": "2547****001"}, "recovered"),
        ("masked with x", {}, {"phone": "711xxx001"}, "recovered"),
        ("the end of it", {}, {"phone": "0001"}, "recovered"),
        ("its digest", {}, {"phone": sha256(b"254711000001").hexdigest()}, "recovered"),
        ("another's digest", {}, {"phone": sha256(b"254711000002").hexdigest()}, "not_found"),
        ("an unknown digest", {}, {"phone": "9f86d081884c7d659a2feaa0c55ad015"}, "ambiguous"),
        ("two digits", {}, {"phone": "2547*******01"}, "ambiguous"),
        ("no number", {}, {"phone": None}, "ambiguous"),
        ("another number", {}, {"phone": "254711000002"}, "not_found"),
        ("another end", {}, {"phone": "2547****002"}, "not_found"),
        ("the same reference", {"reference": "Table 4"}, {"reference": "TABLE 4"}, "recovered"),
        ("a space after it", {"reference": "x9 "}, {"reference": "x9 "}, "recovered"),
        ("spaces in and around it", {"reference": " shop  1"}, {"reference": "shop 1"}, "recovered"),
        ("another reference", {"reference": "table 4"}, {"reference": "table 5"}, "not_found"),
        ("no reference", {}, {"reference": ""}, "ambiguous"),
        ("its own reference", {"reference": None}, {"reference": OWN, "phone": "254799999999"}, "recovered"),
        ("no zone, in East Africa", {}, {"at": f"{eat:%Y-%m-%d %H:%M:%S}"}, "recovered"),
        ("no zone, outside the window", {}, {"at": f"{now:%Y-%m-%d %H:%M:%S}"}, "not_found"),
        ("Z meaning East Africa", {}, {"at": f"{eat:%Y-%m-%dT%H:%M:%S}Z"}, "recovered"),
        ("Z meaning UTC", {}, {"at": f"{now:%Y-%m-%dT%H:%M:%S}Z"}, "recovered"),
        ("fourteen digits", {}, {"at": f"{eat:%Y%m%d%H%M%S}"}, "recovered"),
        ("a minute before", {}, {"at": shifted(now, minutes=-1)}, "recovered"),
        ("five minutes before", {}, {"at": shifted(now, minutes=-5)}, "not_found"),
        ("in the future", {}, {"at": shifted(now, hours=20)}, "not_found"),
        ("a reversal", {}, {"transactiontype": "c2b-pay-bill-reversal"}, "not_found"),
        ("a payout", {}, {"transactiontype": "Business Payment to Customer via API"}, "not_found"),
        ("a charge", {}, {"transactiontype": "Pay Utility Charge"}, "not_found"),
        ("an unknown kind", {}, {"transactiontype": "something new"}, "ambiguous"),
        ("no kind", {}, {"transactiontype": None}, "ambiguous"),
    ]
    rows: list[Any] = []
    for number, (_, payment, line, _) in enumerate(cases):
        wanted = {"reference": "table 4"} | payment
        made = await create_payment(harness, 100 + number, key=f"k{number}", **wanted)
        if line.get("reference") == OWN:
            line["reference"] = made["reference"].lower()
        rows.append(row(f"CASE{number:06}", 100 + number, **{"reference": wanted["reference"]} | line))
    lines = await rows_of(harness, await run(harness, daraja, *rows))
    found = {name: lines[f"CASE{number:06}"]["finding"] for number, (name, *_) in enumerate(cases)}
    assert found == {name: finding for name, _, _, finding in cases}


FILL = """
INSERT INTO payment (payment_id, merchant_id, env, provider, shortcode, shortcode_id, amount, currency,
    phone, reference,
    reference_is_ours, description, idempotency_key, status, failure_reason, expires_at, created_at, updated_at)
SELECT id, $1, 'sandbox', 'mpesa', '174379',
    (SELECT shortcode_id FROM shortcode ORDER BY shortcode_id LIMIT 1), 500, 'KES', '2547' || (22000000 + i)::text,
    'ROW' || i, false, 'Payment', 'fill-' || i, 'failed', 'expired', now(), now() - interval '1 minute', now()
FROM unnest($2::uuid[]) WITH ORDINALITY AS given(id, i)
"""


async def test_line_among_400_payments_of_one_amount_is_matched_by_payer(harness: Harness, daraja: Daraja) -> None:
    first = await create_payment(harness, key="first", reference="table 4")
    await harness.gateway.db.execute(FILL, first["merchant_id"], identifiers("pay", range(400)))
    second = await create_payment(harness, key="second", reference="table 4")
    await harness.gateway.db.execute(
        "UPDATE payment SET created_at = now() - interval '10 minutes' WHERE payment_id = $1", first["id"]
    )
    late = await create_payment(harness, key="late", phone="254711000009", reference="table 4")
    rows = [row(f"TKN4A1B2C{number}", phone=f"71100000{end}", reference="table 4") for number, end in ((3, 1), (4, 9))]
    found = await run(harness, daraja, *rows)
    lines = await rows_of(harness, found)
    assert (lines["TKN4A1B2C3"]["finding"], lines["TKN4A1B2C4"]["finding"]) == ("ambiguous", "recovered")
    assert (await get_payment(harness, late))["receipt"] == "TKN4A1B2C4"
    for payment in (first, second):
        assert (await get_payment(harness, payment))["status"] == "pending"


# -- ambiguous lines ------------------------------------------------------------------------------------------------


async def test_two_lines_of_one_payer_for_one_payment_are_ambiguous_until_assigned(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness, reference="table 4")
    rows = [row(f"TWICE0000{number}", phone="711***001", reference="table 4") for number in (1, 2)]
    found = await run(harness, daraja, *rows)
    assert found["ambiguous"] == 2
    # Each line is queried once, and M-Pesa states the same payer for both.
    questions = daraja.requests_of("transactionstatus")
    assert sorted(one["TransactionID"] for one in questions) == ["TWICE00001", "TWICE00002"]
    for question in questions:
        await post_status_result(harness, question, "254711000001")
    assert (await get_payment(harness, payment))["status"] == "pending"
    again = await run(harness, daraja, *rows)
    assert (again["ambiguous"], len(daraja.requests_of("transactionstatus"))) == (2, 2)
    # The merchant assigns one of them.
    lines = await rows_of(harness, again)
    path = f"/v1/payments/mpesa/statement-lines/{lines['TWICE00002']['id']}/assign"
    assert (await harness.api.call("POST", path, {"payment_id": "pay_" + "0" * 26})).status == 404
    assigned = (await harness.api.call("POST", path, {"payment_id": payment["id"]})).data
    assert (assigned["finding"], assigned["payment_id"]) == ("recovered", payment["id"])
    refused = await harness.api.call("POST", path, {"payment_id": payment["id"]})
    assert (refused.status, refused.error["code"]) == (409, "CONFLICT")
    other = f"/v1/payments/mpesa/statement-lines/{lines['TWICE00001']['id']}/assign"
    refused = await harness.api.call("POST", other, {"payment_id": payment["id"]})
    assert (refused.status, "another receipt" in refused.error["message"]) == (409, True)
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"]) == ("completed", "TWICE00002")
    (entry,) = (await harness.api.call("GET", "/v1/audit/logs?action=statement_line.assigned")).data
    assert entry["detail"]["payment_id"] == payment["id"]
    last = await run(harness, daraja, *rows)
    assert (last["already_known"], last["not_found"]) == (1, 1)
    assert len(await harness.receiver.wait_for(1, kind="payment.completed")) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_two_lines_of_two_payers_are_decided_by_the_status_queries(
    harness: Harness, daraja: Daraja, order: tuple[int, int]
) -> None:
    payment = await create_payment(harness, reference="table 4")
    payers = ("254711000001", "254799999001")
    rows = [row(f"LINE00000{number}", phone="7***001", reference="table 4") for number in (0, 1)]
    assert (await run(harness, daraja, *rows))["ambiguous"] == 2
    questions = sorted(daraja.requests_of("transactionstatus"), key=lambda question: str(question["TransactionID"]))
    assert (await get_payment(harness, payment))["status"] == "pending"
    await post_status_result(harness, questions[order[0]], payers[order[0]])
    # The payer of the first line does not decide the second; another payer of the second decides both.
    assert (await get_payment(harness, payment))["status"] == ("pending" if order[0] == 0 else "completed")
    await post_status_result(harness, questions[order[1]], payers[order[1]])
    after = await get_payment(harness, payment)
    assert (after["status"], after["receipt"]) == ("completed", "LINE000000")
    assert after["timeline"][-1]["cause"] == "status_query"
    assert (await run(harness, daraja, *rows))["not_found"] == 1


async def test_two_payments_for_one_line_are_decided_by_the_status_query(harness: Harness, daraja: Daraja) -> None:
    mine = await create_payment(harness, key="mine", reference="table 4")
    other = await create_payment(harness, key="other", phone="254799999001", reference="table 4")
    assert (await run(harness, daraja, row("TKN4A1B2C3", phone="7***001", reference="table 4")))["ambiguous"] == 1
    (question,) = daraja.requests_of("transactionstatus")
    # Results about another transaction, without a transaction, and not the last one.
    url = question["ResultURL"].removeprefix(harness.base)
    says = {"ReceiptNo": "TKN0000000", "TransactionStatus": "Completed", "DebitPartyName": "254711000001 - JANE"}
    for body in (result(0, says=says), result(2032), result(0, kind=1, says=says | {"ReceiptNo": "TKN4A1B2C3"})):
        assert (await harness.api.call("POST", url, body)).status == 200
    timeout = question["QueueTimeOutURL"].removeprefix(harness.base)
    assert (await harness.api.call("POST", timeout, result(1))).status == 200
    assert (await get_payment(harness, mine))["status"] == "pending"
    await post_status_result(harness, question, "254711000001")
    assert (await get_payment(harness, mine))["receipt"] == "TKN4A1B2C3"
    assert (await get_payment(harness, other))["status"] == "pending"
    # A repeated result changes nothing.
    await post_status_result(harness, question, "254711000001", Amount="500")
    assert await harness.gateway.db.fetchval("SELECT finding FROM noted_line") == "recovered"


async def test_status_query_of_a_line_is_repeated_if_refused_or_unanswered(harness: Harness, daraja: Daraja) -> None:
    for number in range(2):
        await create_payment(harness, key=f"k{number}", reference="table 4")
    line = row("TKN4A1B2C3", phone="7***001", reference="table 4")
    daraja.add_answers("transactionstatus", fault("500.003.02", "Spike Arrest"))
    for times, lines in ((1, line), (2, line), (2, line)):
        await run(harness, daraja, lines)
        assert len(daraja.requests_of("transactionstatus")) == times
    await harness.gateway.db.execute("UPDATE statement_note SET asked_at = now() - interval '2 hours'")
    await run(harness, daraja, line)
    assert len(daraja.requests_of("transactionstatus")) == 3


async def test_ambiguous_line_without_an_initiator_is_not_queried(harness: Harness, daraja: Daraja) -> None:
    await change_credentials(harness.gateway, initiator=None, security_credential=None)
    for number in range(2):
        await create_payment(harness, key=f"k{number}", reference="table 4")
    found = await run(harness, daraja, row("TKN4A1B2C3", reference="table 4"))
    assert (found["status"], found["ambiguous"], daraja.requests_of("transactionstatus")) == ("completed", 1, [])


async def mismatches(harness: Harness, payment: Any) -> list[Any]:
    """The merchant's `payment.mismatched` events about a payment: mismatch and receipt."""
    events = [
        event["data"] for event in (await harness.api.call("GET", "/v1/events")).data if event["type"].endswith("ched")
    ]
    return [(one["mismatch"], one["received_receipt"]) for one in events if one["payment_id"] == payment["id"]]


async def test_line_under_a_paid_reference_of_ours_is_a_mismatch_of_its_payment(
    harness: Harness, daraja: Daraja
) -> None:
    """The payer paid twice under the reference of the first payment, and not for the second payment."""
    paid = await create_payment(harness, key="paid")
    await call_back(harness, paid, receipt="FIRST00001")
    other = await create_payment(harness, key="other")
    found = await run(harness, daraja, row("SECOND0001", reference=paid["reference"]))
    assert found["mismatched"] == 1
    assert daraja.requests_of("transactionstatus") == []
    assert (await get_payment(harness, other))["status"] == "pending"
    assert (await get_payment(harness, paid))["receipt"] == "FIRST00001"
    # Each receipt is published once, however often its line is read.
    lines = [row(receipt, reference=paid["reference"]) for receipt in ("FIRST00001", "SECOND0001", "THIRD00001")]
    for _ in range(2):
        await run(harness, daraja, *lines)
    assert sorted(await mismatches(harness, paid)) == [("receipt", "SECOND0001"), ("receipt", "THIRD00001")]
    assert await mismatches(harness, other) == []


@pytest.mark.parametrize("code", [1032, 1037, None])
@pytest.mark.parametrize("is_asked_first", [True, False])
async def test_line_under_a_reference_copied_into_a_retry_pays_once(
    harness: Harness, daraja: Daraja, code: int | None, is_asked_first: bool
) -> None:
    """The retry's prompt is paid and its callback lost: the statement shows the reference of the first payment."""
    first = await create_payment(harness, key="first")
    if code is not None:
        await call_back(harness, first, code=code)
    retry = await create_payment(harness, key="retry", reference=first["reference"])
    line = row("PAIDONCE01", reference=first["reference"])

    async def ask() -> None:
        daraja.add_answers(
            "stkquery", (200, {"ResponseCode": "0", "ResultCode": "0", "CheckoutRequestID": retry["provider_ref"]})
        )
        await harness.api.call("POST", f"/v1/payments/{retry['id']}/query")

    if is_asked_first:
        await ask()
    await run(harness, daraja, line)
    if not is_asked_first:
        await ask()
    paid = [one for one in (first, retry) if (await get_payment(harness, one))["status"] == "completed"]
    assert [one["id"] for one in paid] == [retry["id"]]
    assert (await get_payment(harness, first))["receipt"] is None
    if code == 1032:
        assert (await get_payment(harness, retry))["receipt"] == "PAIDONCE01"


async def test_two_receipts_under_one_reference_of_ours_are_a_payment_and_a_mismatch(
    harness: Harness, daraja: Daraja
) -> None:
    payment = await create_payment(harness)
    lines = [row(receipt, reference=payment["reference"]) for receipt in ("FIRST00001", "SECOND0001")]
    found = await run(harness, daraja, *lines)
    assert (found["recovered"], found["mismatched"]) == (1, 1)
    kept = (await get_payment(harness, payment))["receipt"]
    (other,) = {"FIRST00001", "SECOND0001"} - {kept}
    assert await mismatches(harness, payment) == [("receipt", other)]
    # A callback with the published receipt adds nothing.
    await call_back(harness, payment, receipt=other)
    assert await mismatches(harness, payment) == [("receipt", other)]


async def test_lines_of_a_shared_shortcode_complete_the_right_merchants_payment(
    harness: Harness, daraja: Daraja
) -> None:
    async with shop(harness.gateway, harness.base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        other = Harness(harness.gateway, harness.base, api, harness.receiver)
        theirs = await create_payment(other, 501, key="theirs")
        await call_back(other, theirs, amount=501, receipt="THEIRS0001")
        mine = await create_payment(harness, 501, key="mine")
        pending = await create_payment(other, 502, key="pending")
        also = await create_payment(harness, 502, key="also")
        coded = await create_payment(other, 503, key="coded")
        bait = await create_payment(harness, 503, key="bait")
        rows = [row("THEIRS0001", 501), row("WHOSE00001", 502), row("CODED00001", 503, reference=coded["reference"])]
        lines = await rows_of(harness, await run(harness, daraja, *rows))
        assert [lines[name]["finding"] for name in ("THEIRS0001", "WHOSE00001", "CODED00001")] == [
            "not_found",
            "ambiguous",
            "not_found",
        ]
        for payment in (mine, also, bait):
            assert (await get_payment(harness, payment))["status"] == "pending"
        lines = await rows_of(other, await run(other, daraja, *rows))
        assert [lines[name]["finding"] for name in ("THEIRS0001", "WHOSE00001", "CODED00001")] == [
            "already_known",
            "ambiguous",
            # The first run read the same statement and settled it by its reference.
            "already_known",
        ]
        assert (await get_payment(other, coded))["receipt"] == "CODED00001"
        assert (await get_payment(other, pending))["status"] == "pending"


async def test_assign_of_a_line_of_the_other_env_is_not_found(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness)
    lines = await rows_of(harness, await run(harness, daraja, row("TKN4A1B2C3", 77)))
    await harness.gateway.db.execute("UPDATE statement_note SET env = 'live'")
    path = f"/v1/payments/mpesa/statement-lines/{lines['TKN4A1B2C3']['id']}/assign"
    refused = await harness.api.call("POST", path, {"payment_id": payment["id"]})
    # A sandbox key cannot read a live line.
    assert (refused.status, refused.error["code"]) == (404, "NOT_FOUND")
    assert (await get_payment(harness, payment))["status"] == "pending"
    async with shop(harness.gateway, harness.base) as other:
        assert (await other.call("POST", path, {"payment_id": payment["id"]})).status == 404
    # A sandbox line cannot be assigned to a live payment, and a live key can read neither.
    await harness.gateway.db.execute("UPDATE statement_note SET env = 'sandbox'")
    lived = await create_payment(harness, 77, key="live")
    async with as_owner(harness.gateway) as owner:
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("UPDATE payment SET env = 'live' WHERE payment_id = $1", lived["id"])
    _, secret = await harness.gateway.api_keys.create(
        payment["merchant_id"], name="live", scopes=harness.gateway.scopes.all, env="live", actor="test"
    )
    live = Api(harness.base, secret.reveal())
    for api, body in ((harness.api, lived), (live, lived), (live, payment)):
        refused = await api.call("POST", path, {"payment_id": body["id"]})
        assert (refused.status, refused.error["code"]) == (404, "NOT_FOUND")
    await live.close()
    assert await harness.gateway.db.fetchval("SELECT payment_id FROM noted_line") is None


async def test_assignment_during_a_run_is_kept(harness: Harness, daraja: Daraja) -> None:
    payment = await create_payment(harness, reference="table 4")
    lines = await rows_of(harness, await run(harness, daraja, row("TKN4A1B2C3", phone=None, reference="table 4")))
    line = lines["TKN4A1B2C3"]
    assert line["finding"] == "ambiguous"
    go = asyncio.Event()
    daraja.held["pullquery"] = go
    running = asyncio.create_task(run(harness, daraja, row("TKN4A1B2C3", phone=None, reference="table 4")))
    await daraja.wait_for_requests("pullquery", 2)
    path = f"/v1/payments/mpesa/statement-lines/{line['id']}/assign"
    assert (await harness.api.call("POST", path, {"payment_id": payment["id"]})).data["finding"] == "recovered"
    go.set()
    assert (await running)["already_known"] == 1
    kept = await harness.gateway.db.fetchrow("SELECT finding, payment_id FROM noted_line")
    assert kept is not None
    assert (kept["finding"], kept["payment_id"]) == ("recovered", payment["id"])


# -- runs -----------------------------------------------------------------------------------------------------------


async def test_run_while_another_is_running_is_refused(harness: Harness, daraja: Daraja) -> None:
    service, db = harness.gateway.services.get(ReconciliationService), harness.gateway.db
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    shortcode_id = await default_shortcode(harness.gateway, merchant_id)
    go = daraja.hold("pullquery")
    first = asyncio.create_task(harness.api.call("POST", RUN, {}))
    await daraja.wait_for_requests("pullquery")
    refused = await harness.api.call("POST", RUN, {})
    assert (refused.status, refused.error["code"], refused.error["retryable"]) == (409, "CONFLICT", True)
    assert await service.run_due(shortcode_id) is False
    assert await db.fetchval("SELECT count(*) FROM reconciliation_run") == 1
    # The lease has expired as if the process were dead: the next run starts, and the first writes nothing more.
    await db.execute("UPDATE reconciliation_run SET lease_until = now() - interval '1 second'")
    second = asyncio.create_task(harness.api.call("POST", RUN, {}))
    await daraja.wait_for_requests("pullquery", 2)
    daraja.add_answers("pullquery", page(row("TKN4A1B2C3")), page(row("TKN4A1B2C4")), NOTHING, NOTHING)
    go.set()
    given_up, taken = (await first).data, (await second).data
    assert (given_up["status"], given_up["error"], given_up["pages"]) == (
        "failed",
        "the process that ran it was stopped",
        0,
    )
    assert (taken["status"], taken["lines"]) == ("completed", 1)


async def test_run_without_a_slot_starts_when_one_is_free(values: dict[str, Any], daraja: Daraja) -> None:
    values["reconciliation"] |= {"max_concurrent": 1}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as one, shop(gateway, base) as two:
        shortcodes: list[str] = []
        for api in (one, two):
            assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
            merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
            shortcodes.append(await default_shortcode(gateway, merchant_id))
        go = daraja.hold("pullquery")
        service = gateway.services.get(ReconciliationService)
        both = [asyncio.create_task(service.run_due(shortcode_id)) for shortcode_id in shortcodes]
        await daraja.wait_for_requests("pullquery")
        # The second job does not wait for a slot: it ends at once, and its run follows.
        assert await both[1] is False
        assert await gateway.db.fetchval("SELECT count(*) FROM reconciliation_run") == 1
        go.set()
        assert await both[0]
        done = "SELECT count(DISTINCT merchant_id) = 2 FROM reconciliation_run WHERE status = 'completed'"
        await eventually(lambda: gateway.db.fetchval(done))


async def test_run_after_a_pause_covers_the_gap_up_to_48_hours(values: dict[str, Any], daraja: Daraja) -> None:
    clock = SetClock(datetime(2026, 11, 23, 12, tzinfo=UTC))
    values["worker"] = {"in_process": False}
    async with running_gateway(values, clock=clock) as (gateway, base), shop(gateway, base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        merchant_id = (await api.call("GET", "/v1/merchant/me")).data["id"]
        shortcode_id = await default_shortcode(gateway, merchant_id)
        service = gateway.services.get(ReconciliationService)

        async def window() -> tuple[timedelta, timedelta]:
            """The ages of the start and the end of the last request's window."""
            sent = daraja.requests_of("pullquery")[-1]
            began, ended = (
                datetime.strptime(sent[name], "%Y-%m-%d %H:%M:%S").replace(tzinfo=EAT)
                for name in ("StartDate", "EndDate")
            )
            return clock.now() - began, clock.now() - ended

        assert await service.run_due(shortcode_id)
        assert await window() == (timedelta(hours=47, minutes=55), timedelta(0))
        clock.advance(timedelta(minutes=15))
        assert await service.run_due(shortcode_id)
        assert await window() == (timedelta(hours=2), timedelta(0))
        # Ten hours without a worker; then a manual run covers the last hour, and a regular run fails.
        clock.advance(timedelta(hours=10))
        start = (clock.now() - timedelta(hours=1)).isoformat()
        assert (await api.call("POST", RUN, {"start": start})).data["status"] == "completed"
        assert await window() == (timedelta(hours=1), timedelta(0))
        clock.advance(timedelta(minutes=5))
        daraja.add_answers("pullquery", (500, b""), (500, b""))
        assert await service.run_due(shortcode_id)
        clock.advance(timedelta(minutes=15))
        assert await service.run_due(shortcode_id)
        assert await window() == (timedelta(hours=10, minutes=30), timedelta(0))
        clock.advance(timedelta(days=7))
        assert await service.run_due(shortcode_id)
        assert await window() == (timedelta(hours=47, minutes=55), timedelta(0))
        # Another shortcode has its own statement, which was never read.
        await move_to(api, "600001")
        shortcode_id = await default_shortcode(gateway, merchant_id)
        clock.advance(timedelta(minutes=15))
        assert await service.run_due(shortcode_id)
        assert await window() == (timedelta(hours=47, minutes=55), timedelta(0))
        runs = (await api.call("GET", RUNS)).data
        assert [one["cause"] for one in runs].count("cron") == 6
        assert [one["status"] for one in runs].count("failed") == 1


async def test_run_with_an_impossible_window_is_refused(harness: Harness, daraja: Daraja) -> None:
    now = datetime.now(UTC)
    for body, fields in (
        ({"start": shifted(now, hours=-49).isoformat()}, {"start"}),
        ({"end": shifted(now, hours=1).isoformat()}, {"end"}),
        ({"start": now.isoformat(), "end": shifted(now, hours=-1).isoformat()}, {"end"}),
        ({"start": "yesterday"}, {"start"}),
        ({"from": now.isoformat()}, {"from"}),
    ):
        refused = await harness.api.call("POST", RUN, body)
        assert (refused.status, {problem["field"] for problem in refused.body["errors"]}) == (422, fields)
    assert daraja.requests_of("pullquery") == []


async def test_run_that_takes_long_is_accepted_and_continues(values: dict[str, Any], daraja: Daraja) -> None:
    values["reconciliation"] |= {"wait": 0.2}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        go = daraja.hold("pullquery")
        running = await api.call("POST", RUN, {})
        assert (running.status, running.data["status"]) == (202, "running")
        go.set()

        async def has_ended() -> bool:
            found: Answer = await api.call("GET", f"{RUNS}/{running.data['id']}")
            return bool(found.data["status"] == "completed")

        await eventually(has_ended)


async def test_wake_all_runs_merchants_with_a_nominated_number(values: dict[str, Any], daraja: Daraja) -> None:
    async with (
        running_gateway(values) as (gateway, base),
        shop(gateway, base) as one,
        shop(gateway, base) as without,
        shop(gateway, base) as gone,
    ):
        assert (await without.call("GET", "/v1/merchant/me")).status == 200
        merchants: list[str] = []
        for api in (one, gone):
            assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
            merchants.append((await api.call("GET", "/v1/merchant/me")).data["id"])
        await gateway.merchants.deactivate(merchants[1], actor="test")
        assert await gateway.services.get(ReconciliationService).enqueue_all() == 1
        await daraja.wait_for_requests("pullquery")

        async def has_run() -> Any:
            return await gateway.db.fetch("SELECT merchant_id FROM reconciliation_run WHERE status = 'completed'")

        assert [found["merchant_id"] for found in await eventually(has_run)] == merchants[:1]


async def test_status_query_of_a_line_is_no_status_check(harness: Harness, daraja: Daraja) -> None:
    """The result decides the line only: payments must not apply it before the other candidates were considered."""
    payment = await create_payment(harness, reference="table 4")
    await run(
        harness,
        daraja,
        *(row(f"TWICE0000{number}", phone="711***001", reference="table 4") for number in (1, 2)),
    )
    await post_status_result(harness, daraja.requests_of("transactionstatus")[0], "254711000001")
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM status_check") == 0
    assert (await get_payment(harness, payment))["status"] == "pending"
    await harness.gateway.services.get(CallbackDispatcher).sweep()
    rows = await harness.gateway.db.fetch("SELECT verdict FROM callback WHERE kind = 'status'")
    assert [found["verdict"] for found in rows] == ["applied"]


async def test_run_with_a_live_key_is_refused_without_live_credentials(harness: Harness, daraja: Daraja) -> None:
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    _, secret = await harness.gateway.api_keys.create(
        merchant_id, name="live", scopes=harness.gateway.scopes.of_merchants, env="live", actor="test"
    )
    api = Api(harness.base, secret.reveal())
    for path in (RUN, "/v1/payments/mpesa/pull/register"):
        answer = await api.call("POST", path, {})
        assert (answer.status, answer.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")
    await api.close()
    assert daraja.requests_of("pullquery") == daraja.requests_of("pullregister") == []
