"""What a payment request may say, how payments are listed, and how one ends that no callback has ended."""

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
from mpesa_gateway_payments.service import own_reference
from mpesa_gateway_payments.settings import PaymentsSettings
from mpesa_gateway_payments.states import MOVES, Status, may_move, sources
from mpesa_gateway_refunds.settings import RefundsSettings
from tests.conftest import Town
from tests.identifiers import identifier

PHONES = "254700000"


async def test_every_bad_field_is_named_at_once(town: Town) -> None:
    answer = await town.api.pay(
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
    assert await town.gateway.db.fetchval("SELECT count(*) FROM payment") == 0
    assert await town.gateway.db.fetchval("SELECT count(*) FROM idempotency_key") == 0


IMMOVABLE: list[Any] = [0, -1, 250_001, "0", "1e3", "NaN", "", "1_000", True, None, [], "१२३"]
"""Amounts that M-Pesa cannot move."""


async def test_amounts_that_mpesa_cannot_move_are_refused(town: Town) -> None:
    for number, amount in enumerate(IMMOVABLE):
        answer = await town.api.pay("0711000001", amount, key=f"amount-{number}")
        assert (answer.status, answer.error["field"]) == (422, "amount"), amount


async def test_a_large_number_in_json_never_goes_through_a_float(town: Town) -> None:
    raw = b'{"amount": 250000.0000000000000000001, "phone": "0711000001"}'
    answer = await town.api.call("POST", "/v1/payments", raw=raw, headers={"Idempotency-Key": "precise"})
    assert (answer.status, answer.error["field"]) == (422, "amount")


@pytest.mark.parametrize("key", [None, "", "x" * 256])
async def test_an_idempotency_key_is_required(town: Town, key: str | None) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = await town.api.call("POST", "/v1/payments", {"amount": 1, "phone": "0711000001"}, headers=headers)
    assert (answer.status, answer.error["code"]) == (400, "IDEMPOTENCY_KEY_REQUIRED")


async def test_without_credentials_nothing_is_written(town: Town) -> None:
    async with shop(town.gateway, town.base, is_configured=False) as bare:
        answer = await bare.pay("0711000001", key="bare")
        assert (answer.status, answer.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")
        assert (await bare.call("GET", "/v1/payments?count=true")).body["meta"]["total"] == 0


async def test_a_live_key_does_not_pay_with_sandbox_credentials(town: Town) -> None:
    made = await town.api.pay("0711000001", key="first")
    merchant_id = made.data["merchant_id"]
    _, secret = await town.gateway.api_keys.create(
        merchant_id, name="live", scopes=town.gateway.scopes.of_merchants, env="live", actor="test"
    )
    api = Api(town.base, secret.reveal())
    answer = await api.pay("0711000001", key="live")
    await api.close()
    assert (answer.status, answer.error["code"]) == (422, "PROVIDER_NOT_CONFIGURED")


async def test_a_foreign_callback_url_is_refused_and_our_own_is_taken(town: Town) -> None:
    foreign = await town.api.pay("0711000001", key="a", callback_url="https://evil.example/cb")
    assert (foreign.status, foreign.error["field"]) == (422, "callback_url")
    own = await town.api.pay(PHONES + "020", key="b", callback_url=f"{town.base}/v1/webhooks/mpesa")
    assert own.status == 201
    handed = await town.gateway.db.fetchval("SELECT callback_url FROM sim_push")
    assert handed == f"{town.base}/v1/webhooks/mpesa"


async def test_while_the_first_request_is_under_way_the_second_waits_its_turn(town: Town) -> None:
    first = asyncio.create_task(town.api.pay(PHONES + "017", key="slow"))
    await eventually(lambda: town.gateway.db.fetchval("SELECT count(*) FROM sim_push"))
    second = await town.api.pay(PHONES + "017", key="slow")
    assert (second.status, second.error["code"], second.headers["Retry-After"]) == (
        409,
        "IDEMPOTENCY_IN_PROGRESS",
        "1",
    )
    assert (await first).status == 201


async def test_a_claim_that_crashed_is_answered_with_its_payment_and_never_pushed_again(town: Town) -> None:
    made = await town.api.pay(PHONES + "006", key="crash")
    # As a crash between the push and its record leaves it, after the lease.
    await town.gateway.db.execute(
        "UPDATE payment SET charge = 'sending', checkout_request_id = NULL, merchant_request_id = NULL"
    )
    await town.gateway.db.execute(
        "UPDATE idempotency_key SET state = 'in_flight', leased_until = now() - interval '1 second'"
    )
    again = await town.api.pay(PHONES + "006", key="crash")
    assert (again.status, again.data["id"], again.data["status"]) == (200, made.data["id"], "pending")
    assert await town.gateway.db.fetchval("SELECT count(*) FROM sim_push") == 1


async def test_one_hundred_claims_of_one_key_have_one_winner(town: Town) -> None:
    merchant_id = (await town.api.call("GET", "/v1/merchant/me")).data["id"]
    db, now = town.gateway.db, town.gateway.clock.now()

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


async def test_a_silent_payment_is_completed_by_asking_and_a_late_callback_brings_the_receipt(town: Town) -> None:
    made = await town.api.pay(PHONES + "007", key="silent")
    await eventually(lambda: town.gateway.db.fetchval("SELECT receipt FROM sim_transaction"))
    asked = await town.api.call("POST", f"/v1/payments/{made.data['id']}/query")
    assert (asked.data["status"], asked.data["receipt"]) == ("completed", None)
    assert asked.data["timeline"][-1]["cause"] == "stk_query"
    receipt = await town.gateway.db.fetchval("SELECT receipt FROM sim_transaction")
    url = await town.gateway.db.fetchval("SELECT callback_url FROM sim_push")
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
    assert (await town.api.call("POST", url.removeprefix(town.base), late)).status == 200
    learnt = (await town.api.call("GET", f"/v1/payments/{made.data['id']}")).data
    assert (learnt["status"], learnt["receipt"]) == ("completed", receipt)
    assert await town.told(1) == ["payment.completed"]
    again = await town.api.call("POST", f"/v1/payments/{made.data['id']}/query")
    assert (again.status, again.error["code"]) == (409, "CONFLICT")


async def test_a_payment_whose_prompt_is_open_stays_pending_when_asked(town: Town) -> None:
    made = await town.api.pay(PHONES + "020", key="open")
    asked = await town.api.call("POST", f"/v1/payments/{made.data['id']}/query")
    assert asked.data["status"] == "pending"
    due = await town.gateway.db.fetchval("SELECT due_at - created_at FROM payment")
    assert due == timedelta(seconds=30)


async def test_time_ends_what_m_pesa_never_acknowledged(town: Town) -> None:
    made = await town.api.pay(PHONES + "018", key="unknown")
    assert made.data["provider_ref"] is None
    await town.gateway.db.execute("UPDATE payment SET due_at = now(), expires_at = now() - interval '1 second'")
    await town.gateway.services.get(Expiry).end_due()
    ended = await town.api.settled(made.data["id"])
    assert (ended["status"], ended["failure_reason"]) == ("failed", "expired")
    assert (await town.receiver.wait_for(1))[0].headers["x-event-type"] == "payment.failed"


async def test_a_push_whose_fate_is_unknown_ends_when_it_expires_however_long_an_unsent_one_may_wait(
    values: dict[str, Any],
) -> None:
    values |= {"payments": {"expire_after": 2, "unsent_after": 3600}}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = await api.pay(PHONES + "018", key="unknown")
        row = await gateway.db.fetchrow("SELECT charge, due_at = expires_at FROM payment")
        assert row is not None
        assert tuple(row) == ("unknown", True)
        assert (await api.settled(made.data["id"], patience=60))["failure_reason"] == "expired"


async def test_what_was_never_sent_nor_repeated_fails_and_its_key_answers_so(town: Town) -> None:
    assert (await town.api.pay(PHONES + "016", key="unsent")).status == 503
    (pending,) = (await town.api.call("GET", "/v1/payments")).data
    await town.gateway.db.execute("UPDATE payment SET expires_at = now() - interval '1 second'")
    await town.gateway.services.get(Expiry).end_due()
    ended = await town.api.settled(pending["id"])
    assert (ended["failure_reason"], ended["result_code"]) == ("not_sent", "unsent")
    again = await town.api.pay(PHONES + "016", key="unsent")
    assert (again.status, again.data["status"]) == (200, "failed")


async def test_each_filter_alone_and_together_and_pages_without_gaps(town: Town) -> None:
    for number in range(7):
        await town.api.pay(
            f"25471100000{number % 3}", 100 * (number + 1), key=f"k{number}", reference=f"REF{number % 2}"
        )
    await town.receiver.wait_for(7)
    first = (await town.api.call("GET", "/v1/payments")).data[-1]

    async def count(query: str) -> int:
        return len((await town.api.call("GET", f"/v1/payments?{query}")).data)

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
        found = (await town.api.call("GET", f"/v1/payments?search={text}")).data
        assert [one["id"] for one in found] == [first["id"]]
    assert await count("search=nothing-like-it") == 0
    seen: list[str] = []
    path = "/v1/payments?limit=3&count=true"
    while path:
        page = await town.api.call("GET", path)
        seen += [one["id"] for one in page.data]
        meta = page.body["meta"]
        assert (meta["total"], meta["has_more"]) == (7, meta["next_cursor"] is not None)
        path = f"/v1/payments?limit=3&count=true&cursor={meta['next_cursor']}" if meta["has_more"] else ""
    assert seen == [one["id"] for one in (await town.api.call("GET", "/v1/payments")).data]


async def test_pages_of_a_window_and_its_export_have_the_same_rows(town: Town) -> None:
    for number in range(5):
        await town.api.pay(f"25471100000{number}", 100 + number, key=f"k{number}")
    made = (await town.api.call("GET", "/v1/payments")).data
    window = f"since={made[4]['created_at']}&until={made[0]['created_at']}"
    seen: list[str] = []
    cursor = ""
    while True:
        page = await town.api.call("GET", f"/v1/payments?{window}&limit=2{cursor}")
        seen += [one["id"] for one in page.data]
        if not page.body["meta"]["has_more"]:
            break
        cursor = f"&cursor={page.body['meta']['next_cursor']}"
    assert seen == [one["id"] for one in made[1:]]
    # A cursor that is newer than the window does not widen it.
    newest = (await town.api.call("GET", "/v1/payments?limit=1")).body["meta"]["next_cursor"]
    page = await town.api.call("GET", f"/v1/payments?until={made[2]['created_at']}&cursor={newest}")
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
"""Queries, and the field that is wrong in each."""


async def test_filters_that_cannot_be_read_are_refused_by_name(town: Town) -> None:
    for query, field in UNREADABLE:
        answer = await town.api.call("GET", f"/v1/payments?{query}")
        assert (answer.status, answer.error["field"]) == (422, field), query


async def test_a_hasty_payer_is_met_by_daraja_with_a_lock(values: dict[str, Any]) -> None:
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
def test_settings_that_would_break_a_payment_later_are_refused_at_once(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        decode(values, kind, "")


STATUSES = st.sampled_from(list(Status))


@given(STATUSES, st.lists(st.tuples(STATUSES, st.booleans()), max_size=12))
def test_whatever_happens_no_payment_goes_where_no_move_leads(start: Status, wishes: list[tuple[Status, bool]]) -> None:
    now = start
    for to, has_receipt in wishes:
        if now.value in sources(to, has_receipt=has_receipt):
            assert (now, to) in MOVES
            assert to is not Status.PENDING
            assert not (now is Status.FAILED and not has_receipt)
            now = to
    paid = {Status.COMPLETED, Status.REVERSED, Status.PARTIALLY_REVERSED}
    if start in paid:
        assert now in paid


def test_only_proof_of_money_leaves_failed() -> None:
    assert [to for to in Status if may_move(Status.FAILED, to, has_receipt=False)] == []
    assert [to for to in Status if may_move(Status.FAILED, to, has_receipt=True)] == [Status.COMPLETED]
    assert [to for to in Status if may_move(Status.REVERSED, to, has_receipt=True)] == []


@given(st.text(alphabet="0123456789abcdefghjkmnpqrstvwxyz", min_size=26, max_size=26))
def test_a_payments_own_reference_is_twelve_characters_of_its_id(name: str) -> None:
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
def test_a_shown_number_is_compared_as_far_as_it_is_visible(shown: str, likeness: PhoneMatch) -> None:
    assert compare(shown, "254711000001") is likeness


async def test_the_answer_to_a_replay_is_the_payment_as_it_stands(town: Town) -> None:
    made = await town.api.pay("0711000001", 7, key="replay", metadata={"a": "b"})
    await town.api.settled(made.data["id"], "completed")
    again = await town.api.pay("254711000001", "7.00", key="replay", metadata={"a": "b"})
    assert (again.status, again.data["status"]) == (200, "completed")
    other = await town.api.pay("254711000001", "7.00", key="replay", metadata={"a": "c"})
    assert (other.status, other.error["code"]) == (422, "IDEMPOTENCY_MISMATCH")
