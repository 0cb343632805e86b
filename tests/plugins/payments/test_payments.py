"""Protects payment requests, the list's filters and pages, and payments that end without a callback."""

import asyncio
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.config import ConfigError, decode
from mpesa_gateway.db import idempotency
from mpesa_gateway.phone import PhoneMatch, compare
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_payments.expiry import Expiry
from mpesa_gateway_payments.references import own_reference
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import TRANSITIONS, Status, is_transition_allowed
from mpesa_gateway_refunds.settings import RefundsSettings
from tests.conftest import Harness
from tests.identifiers import identifier

PHONES = "254700000"


async def test_request_with_bad_fields_names_all_of_them(harness: Harness) -> None:
    answer = await harness.api.pay(
        "12",
        "1.5",
        key="bad",
        currency="USD",
        provider="cash",
        reference="x" * 13,
        description="",
        metadata={"": "a"},
        foo=1,
    )
    assert answer.status == 422
    assert {problem["field"] for problem in answer.body["errors"]} == {
        "amount",
        "currency",
        "description",
        "foo",
        "metadata",
        "phone",
        "provider",
        "reference",
    }
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM payment") == 0
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM idempotency_key") == 0


IMMOVABLE: list[Any] = [0, -1, 250_001, "0", "1e3", "NaN", "", "1_000", True, None, [], "१२३"]
"""Amounts that M-Pesa cannot move."""


async def test_request_with_an_impossible_amount_is_refused(harness: Harness) -> None:
    for number, amount in enumerate(IMMOVABLE):
        answer = await harness.api.pay("0711000001", amount, key=f"amount-{number}")
        assert (answer.status, answer.error["field"]) == (422, "amount"), amount


async def test_request_amount_is_not_rounded_by_a_float(harness: Harness) -> None:
    raw = b'{"amount": 250000.0000000000000000001, "phone": "0711000001"}'
    answer = await harness.api.call("POST", "/v1/payments", raw=raw, headers={"Idempotency-Key": "precise"})
    assert (answer.status, answer.error["field"]) == (422, "amount")


@pytest.mark.parametrize("key", [None, "", "x" * 256])
async def test_request_without_a_valid_idempotency_key_is_refused(harness: Harness, key: str | None) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = await harness.api.call("POST", "/v1/payments", {"amount": 1, "phone": "0711000001"}, headers=headers)
    assert (answer.status, answer.error["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")


async def test_request_without_credentials_writes_nothing(harness: Harness) -> None:
    async with shop(harness.gateway, harness.base, is_configured=False) as bare:
        answer = await bare.pay("0711000001", key="bare")
        assert (answer.status, answer.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")
        assert (await bare.call("GET", "/v1/payments?count=true")).body["meta"]["total"] == 0


async def test_request_with_a_live_key_does_not_use_sandbox_credentials(harness: Harness) -> None:
    made = await harness.api.pay("0711000001", key="first")
    merchant_id = made.data["merchant_id"]
    _, secret = await harness.gateway.api_keys.create(
        merchant_id, name="live", scopes=harness.gateway.scopes.of_merchants, env="live", actor="test"
    )
    api = Api(harness.base, secret.reveal())
    answer = await api.pay("0711000001", key="live")
    await api.close()
    assert (answer.status, answer.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")


async def test_request_callback_url_must_be_the_gateways_own(harness: Harness) -> None:
    foreign = await harness.api.pay("0711000001", key="a", callback_url="https://evil.example/cb")
    assert (foreign.status, foreign.error["field"]) == (422, "callback_url")
    own = await harness.api.pay(PHONES + "020", key="b", callback_url=f"{harness.base}/v1/webhooks/mpesa")
    assert own.status == 201
    handed = await harness.gateway.db.fetchval("SELECT callback_url FROM sim_push")
    assert handed == f"{harness.base}/v1/webhooks/mpesa"


async def test_request_repeated_during_the_first_is_in_progress(harness: Harness) -> None:
    first = asyncio.create_task(harness.api.pay(PHONES + "017", key="slow"))
    await eventually(lambda: harness.gateway.db.fetchval("SELECT count(*) FROM sim_push"))
    second = await harness.api.pay(PHONES + "017", key="slow")
    assert (second.status, second.error["code"], second.headers["Retry-After"]) == (
        409,
        "IDEMPOTENCY_IN_PROGRESS",
        "1",
    )
    assert (await first).status == 201


async def test_request_repeated_after_a_crash_returns_the_payment_without_a_push(harness: Harness) -> None:
    made = await harness.api.pay(PHONES + "006", key="crash")
    # The state after a crash between the push and its record, once the lease has ended.
    await harness.gateway.db.execute(
        "UPDATE payment SET charge = 'sending', checkout_request_id = NULL, merchant_request_id = NULL"
    )
    await harness.gateway.db.execute(
        "UPDATE idempotency_key SET state = 'in_flight', leased_until = now() - interval '1 second'"
    )
    again = await harness.api.pay(PHONES + "006", key="crash")
    assert (again.status, again.data["id"], again.data["status"]) == (200, made.data["id"], "pending")
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1


async def test_claim_of_one_key_by_100_requests_succeeds_once(harness: Harness) -> None:
    merchant_id = (await harness.api.call("GET", "/v1/merchant/me")).data["id"]
    db, now = harness.gateway.db, harness.gateway.clock.now()

    async def claim(number: int) -> str:
        try:
            async with db.transaction():
                won = await idempotency.claim(
                    db,
                    merchant_id=merchant_id,
                    env="sandbox",
                    key="one",
                    operation="payment",
                    fingerprint=bytes(16),
                    subject_id=identifier("pay", number),
                    now=now,
                    lease=timedelta(seconds=30),
                )
        except idempotency.KeyInProgress:
            return "waits"
        return "wins" if won.is_ours else "replays"

    results = await asyncio.gather(*map(claim, range(100)))
    assert results.count("wins") == 1
    assert results.count("waits") == 99


async def test_query_completes_a_payment_and_a_late_callback_adds_the_receipt(harness: Harness) -> None:
    made = await harness.api.pay(PHONES + "007", key="silent")
    await eventually(lambda: harness.gateway.db.fetchval("SELECT receipt FROM sim_transaction"))
    queried = await harness.api.call("POST", f"/v1/payments/{made.data['id']}/query")
    assert (queried.data["status"], queried.data["receipt"]) == ("completed", None)
    assert queried.data["timeline"][-1]["cause"] == "stk_query"
    receipt = await harness.gateway.db.fetchval("SELECT receipt FROM sim_transaction")
    url = await harness.gateway.db.fetchval("SELECT callback_url FROM sim_push")
    items = [{"Name": "Amount", "Value": 500}, {"Name": "MpesaReceiptNumber", "Value": receipt}]
    late = {
        "Body": {
            "stkCallback": {
                "CheckoutRequestID": made.data["provider_ref"],
                "ResultCode": 0,
                "CallbackMetadata": {"Item": items},
            }
        }
    }
    assert (await harness.api.call("POST", url.removeprefix(harness.base), late)).status == 200
    learnt = (await harness.api.call("GET", f"/v1/payments/{made.data['id']}")).data
    assert (learnt["status"], learnt["receipt"]) == ("completed", receipt)
    assert await harness.delivered(1) == ["payment.completed"]
    again = await harness.api.call("POST", f"/v1/payments/{made.data['id']}/query")
    assert (again.status, again.error["code"]) == (409, "CONFLICT")


async def test_query_of_an_open_prompt_leaves_the_payment_pending(harness: Harness) -> None:
    made = await harness.api.pay(PHONES + "020", key="open")
    queried = await harness.api.call("POST", f"/v1/payments/{made.data['id']}/query")
    assert queried.data["status"] == "pending"
    due = await harness.gateway.db.fetchval("SELECT due_at - created_at FROM payment")
    assert due == timedelta(seconds=30)


async def test_end_due_fails_a_payment_never_acknowledged(harness: Harness) -> None:
    made = await harness.api.pay(PHONES + "018", key="unknown")
    assert made.data["provider_ref"] is None
    await harness.gateway.db.execute("UPDATE payment SET due_at = now(), expires_at = now() - interval '1 second'")
    await harness.gateway.services.get(Expiry).end_due()
    ended = await harness.api.settled(made.data["id"])
    assert (ended["status"], ended["failure_reason"]) == ("failed", "expired")
    assert (await harness.receiver.wait_for(1))[0].headers["x-event-type"] == "payment.failed"


async def test_unknown_push_fails_at_expire_after_and_not_at_unsent_after(
    values: dict[str, Any],
) -> None:
    values |= {"payments": {"expire_after": 2, "unsent_after": 3600}}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = await api.pay(PHONES + "018", key="unknown")
        row = await gateway.db.fetchrow("SELECT charge, due_at = expires_at FROM payment")
        assert row is not None
        assert tuple(row) == ("unknown", True)
        assert (await api.settled(made.data["id"], patience=60))["failure_reason"] == "expired"


async def test_end_due_fails_an_unsent_payment_and_its_key_returns_it(harness: Harness) -> None:
    assert (await harness.api.pay(PHONES + "016", key="unsent")).status == 503
    (pending,) = (await harness.api.call("GET", "/v1/payments")).data
    await harness.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
    await harness.gateway.services.get(Expiry).end_due()
    ended = await harness.api.settled(pending["id"])
    assert (ended["failure_reason"], ended["result_code"]) == ("not_sent", "unsent")
    again = await harness.api.pay(PHONES + "016", key="unsent")
    assert (again.status, again.data["status"]) == (200, "failed")


async def test_list_filters_and_pages_return_each_payment_once(harness: Harness) -> None:
    for number in range(7):
        await harness.api.pay(
            f"25471100000{number % 3}", 100 * (number + 1), key=f"k{number}", reference=f"REF{number % 2}"
        )
    await harness.receiver.wait_for(7)
    first = (await harness.api.call("GET", "/v1/payments")).data[-1]

    async def count(query: str) -> int:
        return len((await harness.api.call("GET", f"/v1/payments?{query}")).data)

    assert await count("phone=0711000000") == 3
    assert await count("reference=REF1") == 3
    assert await count("min_amount=300&max_amount=500.00") == 3
    assert await count("status=completed&provider=mpesa") == 7
    assert await count("status=failed") == 0
    assert await count(f"until={first['created_at']}") == 0
    assert await count(f"since={first['created_at']}") == 7
    assert await count("since=2000-01-01") == 7
    assert await count("until=2000-01-01") == 0
    assert await count("phone=254711000001&reference=REF1&min_amount=200") == 1
    for text in (first["id"], first["receipt"], first["receipt"].lower(), first["provider_ref"], "k0"):
        found = (await harness.api.call("GET", f"/v1/payments?search={text}")).data
        assert [one["id"] for one in found] == [first["id"]]
    assert await count("search=nothing-like-it") == 0
    seen: list[str] = []
    path = "/v1/payments?limit=3&count=true"
    while path:
        page = await harness.api.call("GET", path)
        seen += [one["id"] for one in page.data]
        meta = page.body["meta"]
        assert (meta["total"], meta["has_more"]) == (7, meta["next_cursor"] is not None)
        path = f"/v1/payments?limit=3&count=true&cursor={meta['next_cursor']}" if meta["has_more"] else ""
    assert seen == [one["id"] for one in (await harness.api.call("GET", "/v1/payments")).data]


async def test_list_pages_of_a_window_have_its_rows_only(harness: Harness) -> None:
    for number in range(5):
        await harness.api.pay(f"25471100000{number}", 100 + number, key=f"k{number}")
    made = (await harness.api.call("GET", "/v1/payments")).data
    window = f"since={made[4]['created_at']}&until={made[0]['created_at']}"
    seen: list[str] = []
    cursor = ""
    while True:
        page = await harness.api.call("GET", f"/v1/payments?{window}&limit=2{cursor}")
        seen += [one["id"] for one in page.data]
        if not page.body["meta"]["has_more"]:
            break
        cursor = f"&cursor={page.body['meta']['next_cursor']}"
    assert seen == [one["id"] for one in made[1:]]
    # A cursor newer than the window does not extend it.
    newest = (await harness.api.call("GET", "/v1/payments?limit=1")).body["meta"]["next_cursor"]
    page = await harness.api.call("GET", f"/v1/payments?until={made[2]['created_at']}&cursor={newest}")
    assert [one["id"] for one in page.data] == [one["id"] for one in made[3:]]


UNREADABLE = [
    ("status=paid", "status"),
    ("limit=0", "limit"),
    ("limit=101", "limit"),
    ("cursor=nonsense", "cursor"),
    ("since=yesterday", "since"),
    ("since=0.5", "since"),
    ("since=2026-11-23T10:15:00", "since"),
    ("status=null", "status"),
    ("phone=12", "phone"),
    ("min_amount=abc", "min_amount"),
    ("search=" + "x" * 101, "search"),
    ("colour=red", "colour"),
    ("limit=1&limit=2", "limit"),
]
"""Queries, and the wrong field of each."""


async def test_list_with_an_invalid_filter_names_the_field(harness: Harness) -> None:
    for query, field in UNREADABLE:
        answer = await harness.api.call("GET", f"/v1/payments?{query}")
        assert (answer.status, answer.error["field"]) == (422, field), query


async def test_second_push_to_a_locked_payer_is_a_duplicate_in_progress(values: dict[str, Any]) -> None:
    values["simulator"] |= {"lock_subscriber": True}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        assert (await api.pay(PHONES + "020", key="a")).status == 201
        second = await api.pay(PHONES + "020", key="b")
        assert (second.status, second.error["retryable"]) == (502, True)
        (failed, _) = (await api.call("GET", "/v1/payments")).data
        assert failed["failure_reason"] == "duplicate_in_progress"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PaymentsSettings, {"query_after": []}),
        (PaymentsSettings, {"query_after": [0]}),
        (PaymentsSettings, {"max_concurrent_queries": 0}),
        (PaymentsSettings, {"description": "longer than the payer sees"}),
        (RefundsSettings, {"query_after": []}),
    ],
)
def test_settings_with_invalid_values_are_refused_at_start(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        decode(values, kind, "")


STATUSES = st.sampled_from(list(Status))


@given(STATUSES, st.lists(st.tuples(STATUSES, st.booleans()), max_size=12))
def test_transitions_follow_the_table_for_any_sequence(start: Status, wishes: list[tuple[Status, bool]]) -> None:
    now = start
    for to, has_receipt in wishes:
        if is_transition_allowed(now, to, has_receipt=has_receipt):
            assert (now, to) in TRANSITIONS
            assert to is not Status.PENDING
            assert not (now is Status.FAILED and not has_receipt)
            now = to
    paid = {Status.COMPLETED, Status.REVERSED, Status.PARTIALLY_REVERSED}
    if start in paid:
        assert now in paid


def test_is_transition_allowed_from_failed_needs_a_receipt() -> None:
    assert [to for to in Status if is_transition_allowed(Status.FAILED, to, has_receipt=False)] == []
    assert [to for to in Status if is_transition_allowed(Status.FAILED, to, has_receipt=True)] == [Status.COMPLETED]
    assert [to for to in Status if is_transition_allowed(Status.REVERSED, to, has_receipt=True)] == []


@given(st.text(alphabet="0123456789abcdefghjkmnpqrstvwxyz", min_size=26, max_size=26))
def test_own_reference_is_twelve_characters_of_the_id(name: str) -> None:
    reference = own_reference("pay_" + name)
    assert len(reference) == 12
    assert reference.isascii()
    assert reference == own_reference("pay_" + name)


@pytest.mark.parametrize(
    ("shown", "likeness"),
    [
        ("254711000001", PhoneMatch.SAME),
        ("+254 711 000 001", PhoneMatch.SAME),
        ("0711000001", PhoneMatch.SAME),
        ("711000001", PhoneMatch.SAME),
        ("254711000001.0", PhoneMatch.SAME),
        (sha256(b"254711000001").hexdigest(), PhoneMatch.SAME),
        (sha256(b"254711000001").hexdigest().upper(), PhoneMatch.SAME),
        ("2547****001", PhoneMatch.PARTLY),
        ("2547 ***** 001", PhoneMatch.PARTLY),
        ("25471****001", PhoneMatch.PARTLY),
        ("711xxx001", PhoneMatch.PARTLY),
        ("0001", PhoneMatch.PARTLY),
        ("2547110*0*01", PhoneMatch.PARTLY),
        ("254711******", PhoneMatch.HIDDEN),
        ("2547*******01", PhoneMatch.HIDDEN),
        ("01", PhoneMatch.HIDDEN),
        ("*****", PhoneMatch.HIDDEN),
        ("", PhoneMatch.HIDDEN),
        ("not a phone", PhoneMatch.HIDDEN),
        ("9d2c ***** 33fd", PhoneMatch.HIDDEN),
        ("5912*****3341", PhoneMatch.HIDDEN),
        ("9f86d081884c7d659a2feaa0c55ad015", PhoneMatch.HIDDEN),
        ("254711000002", PhoneMatch.OTHER),
        ("2547****002", PhoneMatch.OTHER),
        ("2541****001", PhoneMatch.OTHER),
        ("123", PhoneMatch.OTHER),
        ("256711000001", PhoneMatch.OTHER),
        (sha256(b"254711000002").hexdigest(), PhoneMatch.OTHER),
    ],
)
def test_compare_uses_the_visible_digits(shown: str, likeness: PhoneMatch) -> None:
    assert compare(shown, "254711000001") is likeness


async def test_request_replayed_returns_the_current_payment(harness: Harness) -> None:
    made = await harness.api.pay("0711000001", 7, key="replay", metadata={"a": "b"})
    await harness.api.settled(made.data["id"], "completed")
    again = await harness.api.pay("254711000001", "7.00", key="replay", metadata={"a": "b"})
    assert (again.status, again.data["status"]) == (200, "completed")
    other = await harness.api.pay("254711000001", "7.00", key="replay", metadata={"a": "c"})
    assert (other.status, other.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
