"""Protects the callback route: only trusted senders are accepted, and each callback is applied exactly once."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mpesa_gateway.daraja.addresses import find_filtered_words
from mpesa_gateway.money import Kes
from mpesa_gateway.testing.serving import Answer, eventually, running_gateway, shop
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.errors import ShapeRejected
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_callbacks.schemas import laid_out
from mpesa_gateway_callbacks.tokens import Subject, make_token, read_token
from mpesa_gateway_payments.events import StkResulted
from tests.conftest import Harness

pytestmark = pytest.mark.as_owner

ASKS = "254700000020"


def body(
    handle: str | None,
    code: Any = 0,
    *,
    amount: Any = 500,
    receipt: str | None = "TKN4A1B2C3",
    phone: Any = 254700000020,
) -> dict[str, Any]:
    """A callback as Daraja writes it."""
    callback: dict[str, Any] = {"MerchantRequestID": "m-1", "ResultCode": code, "ResultDesc": "said"}
    if handle is not None:
        callback["CheckoutRequestID"] = handle
    if code in {0, "0"}:
        values = {"Amount": amount, "MpesaReceiptNumber": receipt, "PhoneNumber": phone}
        callback["CallbackMetadata"] = {"Item": [{"Name": name, "Value": value} for name, value in values.items()]}
    return {"Body": {"stkCallback": callback}}


async def pending_payment(harness: Harness, key: str) -> tuple[dict[str, Any], str]:
    """Returns a payment with a pending prompt and the URL of its callback."""
    made = (await harness.api.pay(ASKS, key=key)).data
    return made, await harness.gateway.db.fetchval(
        "SELECT callback_url FROM sim_push WHERE checkout_request_id = $1", made["provider_ref"]
    )


async def post(harness: Harness, url: str, json: Any = None, **options: Any) -> Answer:
    return await harness.api.call("POST", url.removeprefix(harness.base), json, **options)


async def refusal_reasons(harness: Harness) -> list[str]:
    """Returns the reasons of the refused callbacks, oldest first."""
    rows = await harness.gateway.db.fetch("SELECT reason FROM refused_callback ORDER BY at, refused_id")
    return [row["reason"] for row in rows]


async def test_callback_at_our_own_address_is_answered_in_darajas_format(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    assert "/v1/cb/stk/s-mer_" in url
    answer = await post(harness, url, body(made["provider_ref"]))
    assert (answer.status, answer.body) == (200, {"ResultCode": 0, "ResultDesc": "Accepted"})
    assert (await harness.api.settled(made["id"]))["receipt"] == "TKN4A1B2C3"


async def test_callback_at_the_documented_address_with_a_token_is_applied(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    token = url.rpartition("/")[2]
    assert (await post(harness, f"/v1/webhooks/mpesa/{token}", body(made["provider_ref"], 1032))).status == 200
    assert (await harness.api.settled(made["id"]))["failure_reason"] == "cancelled_by_user"


async def test_callback_with_a_forged_token_is_refused_and_stored(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    for forged in (url[:-1] + ("A" if url[-1] != "A" else "B"), url.replace("/s-mer", "/l-mer"), url + "x", url[:-30]):
        answer = await post(harness, forged, body(made["provider_ref"]))
        assert (answer.status, answer.error["code"]) == (404, "CALLBACK_REFUSED")
    assert await refusal_reasons(harness) == ["token"] * 4
    assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"


async def test_callback_without_token_from_an_unlisted_address_is_refused(harness: Harness) -> None:
    made, _ = await pending_payment(harness, "a")
    answer = await post(harness, "/v1/webhooks/mpesa", body(made["provider_ref"]))
    assert (answer.status, await refusal_reasons(harness)) == (403, ["source"])
    # The header proves nothing: no proxy is trusted.
    answer = await post(
        harness, "/v1/webhooks/mpesa", body(made["provider_ref"]), headers={"X-Forwarded-For": "196.201.214.200"}
    )
    assert answer.status == 403


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [("196.201.214.200", 200), ("196.201.214.200, 10.1.2.3", 200), ("196.201.214.200, 8.8.8.8", 403), ("", 403)],
)
async def test_callback_behind_trusted_proxies_counts_for_the_rightmost_untrusted_hop(
    values: dict[str, Any], forwarded: str, status: int
) -> None:
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay(ASKS, key="a")).data
        answer = await api.call(
            "POST", "/v1/webhooks/mpesa", body(made["provider_ref"]), headers={"X-Forwarded-For": forwarded}
        )
        assert answer.status == status
        expected = "completed" if status == 200 else "pending"
        assert (await api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == expected


async def test_callback_with_token_from_an_unlisted_address_is_refused_if_always_enforced(
    values: dict[str, Any],
) -> None:
    values["callbacks"] = {"enforce_allowlist": "always", "allowlist": ["192.0.2.0/24"]}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay(ASKS, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for(
            "stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"]
        ).removeprefix(base)
        assert (await api.call("POST", url, body(made["provider_ref"]))).status == 403


@pytest.mark.parametrize("raw", [b"", b"not json", b"[]", b"null", b'{"Body": null}', b'{"Body": {"stkCallback": {}}}'])
async def test_malformed_callback_is_refused_and_stored_without_phone_numbers(harness: Harness, raw: bytes) -> None:
    _, url = await pending_payment(harness, "a")
    answer = await post(harness, url, raw=raw + b" 254708374149" if raw == b"not json" else raw)
    assert (answer.status, await refusal_reasons(harness)) == (422, ["shape"])
    assert "254708374149" not in await harness.gateway.db.fetchval("SELECT body FROM refused_callback")


async def test_callback_before_its_checkout_request_id_is_known_is_applied_later(values: dict[str, Any]) -> None:
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8"]}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        early = await api.call(
            "POST",
            "/v1/webhooks/mpesa",
            body("ws_CO_early", receipt="EARLY00001", phone=254711000001),
            headers={"X-Forwarded-For": "196.201.214.200"},
        )
        assert early.status == 200
        made = (await api.pay(ASKS, key="a")).data
        assert made["status"] == "pending"
        await gateway.db.execute("UPDATE payment SET checkout_request_id = 'ws_CO_early', phone = '254711000001'")
        await gateway.db.execute("UPDATE callback SET due_at = now() - interval '1 second'")
        await gateway.services.get(CallbackDispatcher).sweep()
        assert (await api.settled(made["id"]))["receipt"] == "EARLY00001"
        assert await gateway.db.fetchval("SELECT verdict FROM callback") == "applied"


async def test_early_callback_of_unknown_origin_needs_confirmation_by_mpesa(values: dict[str, Any]) -> None:
    values["callbacks"] = {"enforce_allowlist": "never"}
    values["worker"] = {"in_process": False}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        early = body("ws_CO_early", receipt="EARLY00001", phone=254711000001)
        assert (await api.call("POST", "/v1/webhooks/mpesa", early)).status == 200
        made = (await api.pay(ASKS, key="a")).data
        await gateway.db.execute("UPDATE payment SET checkout_request_id = 'ws_CO_early', phone = '254711000001'")
        await gateway.db.execute("UPDATE callback SET due_at = now() - interval '1 second'")
        await gateway.services.get(CallbackDispatcher).sweep()
        row = await gateway.db.fetchrow("SELECT status, receipt, claim, due_at <= now() AS is_due FROM payment")
        assert row is not None
        assert (row["status"], row["receipt"], row["is_due"]) == ("pending", None, True)
        assert "EARLY00001" in row["claim"]
        shown = (await api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (shown["status"], shown["receipt"]) == ("pending", None)


async def test_unmatched_callback_is_retried_for_two_days_and_then_stored(values: dict[str, Any]) -> None:
    values["callbacks"] = {"enforce_allowlist": "never"}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        await api.call("POST", "/v1/webhooks/mpesa", body("ws_CO_nobody"))
        dispatcher = gateway.services.get(CallbackDispatcher)
        await gateway.db.execute("UPDATE callback SET due_at = now() - interval '1 second'")
        assert await dispatcher.sweep() == 1
        assert await gateway.db.fetchval("SELECT verdict FROM callback") == "waiting"
        await gateway.db.execute(
            "UPDATE callback SET due_at = now() - interval '1 s', received_at = now() - interval '49 hours'"
        )
        await dispatcher.sweep()
        assert await gateway.db.fetchval("SELECT verdict FROM callback") == "unmatched"


async def test_failure_callback_of_another_push_is_refused(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    answer = await post(harness, url, body("ws_CO_another", 1032))
    assert (answer.status, answer.error["code"], await refusal_reasons(harness)) == (
        403,
        "CALLBACK_REFUSED",
        ["subject"],
    )
    assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"
    (entry,) = (await harness.api.call("GET", "/v1/audit/logs?action=callback.refused")).data
    # The source address is shown to administrators only.
    assert (entry["subject_id"], entry["detail"]["reason"], "from" in entry["detail"]) == (made["id"], "subject", False)


OTHER_PUSH: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "completed", None),
    ({"phone": "2547****020"}, "completed", None),
    ({"amount": 5}, "pending", "unconfirmed"),
    ({"phone": 254711222333}, "pending", "unconfirmed"),
    ({"phone": None}, "pending", "unconfirmed"),
    ({"receipt": None}, "pending", "unconfirmed"),
    ({"amount": "NaN"}, "pending", "unconfirmed"),
]


async def test_paid_callback_of_an_unknown_push_at_the_right_token_is_accepted(harness: Harness) -> None:
    for number, (changes, status, mismatch) in enumerate(OTHER_PUSH):
        made, url = await pending_payment(harness, f"k{number}")
        content = body(f"ws_CO_first{number}", **({"receipt": f"TKN4A1B2C{number}"} | changes))
        assert (await post(harness, url, content)).status == 200
        found = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (found["status"], found["mismatch"] and found["mismatch"]["of"]) == (status, mismatch), changes
    assert await refusal_reasons(harness) == []
    assert await harness.gateway.db.fetchval("SELECT bool_and(verdict = 'applied') FROM callback")


async def test_paid_callback_of_another_payment_is_refused_and_stored_whole(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    other, _ = await pending_payment(harness, "b")
    assert (await post(harness, url, body(other["provider_ref"]))).status == 403
    row = await harness.gateway.db.fetchrow("SELECT * FROM refused_callback")
    assert row is not None
    assert (row["reason"], row["subject_id"], row["is_trusted"]) == ("subject", made["id"], True)
    assert other["provider_ref"] in row["original"]


BYTES = [
    (b"said", b"J\xc9AN"),
    (b"said", b"raw\ttab \x01"),
    (b"said", b"\\ud83d half"),
    (b"said", b"nul \x00 byte"),
    (b"said", b"\xed\xa0\x80"),
]


WRAPPED = [(b"", b""), (b"\xef\xbb\xbf", b""), (b"", b"\r\n<!-- proxy -->")]


async def test_callback_in_invalid_json_is_applied_and_its_bytes_stored(harness: Harness) -> None:
    operators = harness.gateway.services.get(CallbackOperatorService)
    for number, ((old, new), (before, after)) in enumerate(itertools.product(BYTES, WRAPPED)):
        made, url = await pending_payment(harness, f"k{number}")
        content = json.dumps(body(made["provider_ref"], receipt=f"TKN4A1B{number:03}")).encode()
        raw = before + content.replace(old, new) + after
        assert (await post(harness, url, raw=raw)).status == 200
        assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed", raw
        row = await harness.gateway.db.fetchrow(
            "SELECT callback.*, callback.body FROM callback WHERE subject_id = $1", made["id"]
        )
        assert row is not None
        assert (row["body"].encode() if row["body_bytes"] is None else row["body_bytes"]) == raw
        shown = laid_out(row["body"])
        assert "254700000020" not in shown
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
        # A replay parses the stored bytes.
        assert (await operators.replay(row["callback_id"], actor="test")).verdict == "applied"


async def test_callback_numbers_in_other_notations_are_equal(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    content = json.dumps(body(made["provider_ref"]) | {"more": 0})
    raw = content.replace('"ResultCode": 0', '"ResultCode": 0.0').replace('"Value": 500', '"Value": 5e2')
    raw = raw.replace("254700000020", "254700000020.0")
    assert (await post(harness, url, raw=raw.encode())).status == 200
    found = await harness.api.settled(made["id"])
    assert (found["status"], found["mismatch"], found["result_code"]) == ("completed", None, "0")


async def test_receipt_with_an_unknown_result_code_is_a_mismatch(harness: Harness) -> None:
    for number, code in enumerate(("Success", "1e400", "null", 7777)):
        made, url = await pending_payment(harness, f"k{number}")
        content = body(made["provider_ref"], receipt=f"TKN4A1B2D{number}")
        content["Body"]["stkCallback"]["ResultCode"] = code
        assert (await post(harness, url, content)).status == 200
        found = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (found["status"], found["mismatch"]["of"]) == ("pending", "unconfirmed"), code
        assert found["mismatch"]["received_receipt"] == f"TKN4A1B2D{number}"
    # A known failure code fails the payment.
    made, url = await pending_payment(harness, "known")
    content = body(made["provider_ref"], receipt="TKN4A1B2D9")
    content["Body"]["stkCallback"]["ResultCode"] = 1032
    assert (await post(harness, url, content)).status == 200
    assert (await harness.api.settled(made["id"], "failed"))["failure_reason"] == "cancelled_by_user"


async def test_callback_amount_that_is_text_is_shown_masked(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    content = body(made["provider_ref"], amount="call 0711 000 001\x1b[2J Bearer x9Qk3sWWhmdVRlyh0zh8gZDTkub2")
    assert (await post(harness, url, content)).status == 200
    found = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
    assert found["mismatch"]["received_amount"] == "call 07****001 [2J Bearer ****"
    assert not re.search("711 000|x9Qk|\\\\u001b", json.dumps(found))
    made, url = await pending_payment(harness, "b")
    content = body(made["provider_ref"], receipt="TKN4A1B2D8")
    content["Body"]["stkCallback"]["CallbackMetadata"]["Item"].append(
        {"Name": "TransactionDate", "Value": "00010101000000"}
    )
    assert (await post(harness, url, content)).status == 200
    assert (await harness.api.settled(made["id"]))["receipt"] == "TKN4A1B2D8"


async def test_result_desc_of_a_callback_is_shown_masked_to_the_merchant(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    content = body(made["provider_ref"], 1032)
    content["Body"]["stkCallback"]["ResultDesc"] = (
        "Cancelled by 0708 374 149\r\n\x1b[2J Bearer x9Qk3sWWhmdVRlyh0zh8gZDTkub2"
    )
    assert (await post(harness, url, content)).status == 200
    found = await harness.api.settled(made["id"], "failed")
    assert found["result_desc"] == "Cancelled by 07****149 [2J Bearer ****"
    (sent,) = await harness.receiver.wait_for(1, kind="payment.failed")
    assert "374 149" not in json.dumps(sent.json)


async def test_body_at_a_valid_token_is_stored_whole_and_replayable(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    bodies = [
        b"",
        b"\xff\x00\xfe" * 10,
        b"<html>" + b"x" * 40_000,
        b"{}",
        b"[" * 20_000,
        b'{"Body": {"stkCallback": {}}}',
    ]
    for raw in bodies * 5:
        assert (await post(harness, url, raw=raw)).status == 422
    rows = await harness.gateway.db.fetch("SELECT * FROM refused_callback ORDER BY at, refused_id")
    kept = [row["original"].encode() if row["body_bytes"] is None else row["body_bytes"] for row in rows]
    assert kept == bodies * 5
    assert {(row["reason"], row["is_trusted"], row["subject_id"]) for row in rows} == {("shape", True, made["id"])}
    operators = harness.gateway.services.get(CallbackOperatorService)
    with pytest.raises(ShapeRejected):
        await operators.replay(rows[1]["refused_id"], actor="test")
    # A body that a later parser can read is applied.
    paid = json.dumps(body(made["provider_ref"])).encode().replace(b"said", b"caf\xe9")
    await harness.gateway.db.execute(
        "UPDATE refused_callback SET body_bytes = $2, original = 'unreadable' WHERE refused_id = $1",
        rows[0]["refused_id"],
        paid,
    )
    await operators.replay(rows[0]["refused_id"], actor="test")
    assert (await harness.api.settled(made["id"]))["status"] == "completed"


async def test_refusals_without_token_are_limited_and_displace_none_with_a_token(values: dict[str, Any]) -> None:
    values["callbacks"] = {"keep_refused": 2}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay(ASKS, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        for _ in range(5):
            await api.call("POST", url.removeprefix(base), raw=b"nonsense")
        for _ in range(5):
            await api.call("POST", "/v1/cb/stk/nonsense", raw=b"x" * 20_000)
        await dispatcher.sweep()
        rows = await gateway.db.fetch("SELECT is_trusted, original, count(*) FROM refused_callback GROUP BY 1, 2")
        assert {(row["is_trusted"], row["original"], row["count"]) for row in rows} == {
            (True, "nonsense", 5),
            (False, None, 2),
        }


async def test_failed_payment_with_a_later_receipt_completes_and_stays_completed(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    handle = made["provider_ref"]
    await post(harness, url, body(handle, 1037))
    assert (await harness.api.settled(made["id"]))["status"] == "failed"
    await post(harness, url, body(handle))
    assert (await harness.api.settled(made["id"], "completed"))["receipt"] == "TKN4A1B2C3"
    await post(harness, url, body(handle, 1032))
    assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed"
    kinds = [one.headers["x-event-type"] for one in await harness.receiver.wait_for(2)]
    assert sorted(kinds) == ["payment.completed", "payment.failed"]


async def test_receipt_of_another_payment_is_a_mismatch(harness: Harness) -> None:
    first, first_url = await pending_payment(harness, "a")
    second, second_url = await pending_payment(harness, "b")
    await post(harness, first_url, body(first["provider_ref"]))
    await post(harness, second_url, body(second["provider_ref"]))
    held = (await harness.api.call("GET", f"/v1/payments/{second['id']}")).data
    assert (held["status"], held["mismatch"]["of"]) == ("pending", "receipt")


@pytest.mark.parametrize("phone", ["2547****020", "0700000020", 254700000020, None])
async def test_masked_or_missing_phone_is_no_mismatch(harness: Harness, phone: Any) -> None:
    made, url = await pending_payment(harness, "a")
    await post(harness, url, body(made["provider_ref"], phone=phone))
    paid = await harness.api.settled(made["id"])
    assert (paid["status"], paid["mismatch"]) == ("completed", None)


async def test_right_amount_from_another_phone_completes_with_a_mismatch_event(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    await post(harness, url, body(made["provider_ref"], phone=254711222333))
    paid = await harness.api.settled(made["id"])
    assert (paid["status"], paid["mismatch"]["of"]) == ("completed", "phone")
    events = {one.headers["x-event-type"]: one.json["data"] for one in await harness.receiver.wait_for(2)}
    assert sorted(events) == ["payment.completed", "payment.mismatched"]
    assert events["payment.mismatched"]["received_amount"] == events["payment.completed"]["amount"]


async def test_twenty_equal_concurrent_callbacks_complete_once(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    answers = await asyncio.gather(*(post(harness, url, body(made["provider_ref"])) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert await harness.delivered(1) == ["payment.completed"]
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM callback") == 1


async def test_callback_during_a_read_only_failover_is_answered_with_503_and_retried(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    # PostgreSQL is read-only, as during a failover.
    pool = harness.gateway.db.engine.pool
    assert pool is not None
    name = await harness.gateway.db.fetchval("SELECT current_database()")
    await harness.gateway.db.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await pool.expire_connections()
    answer = await post(harness, url, body(made["provider_ref"]))
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    await harness.gateway.db.execute(
        f'BEGIN READ WRITE; ALTER DATABASE "{name}" RESET default_transaction_read_only; COMMIT'
    )
    await pool.expire_connections()
    assert (await post(harness, url, body(made["provider_ref"]))).status == 200
    assert (await harness.api.settled(made["id"]))["status"] == "completed"


def test_token_is_valid_for_its_kind_env_and_subject_only() -> None:
    key = b"k" * 32
    subject = Subject("live", "mer_01jd0000000000000000000000", "pay_01jd0000000000000000000000")
    token = make_token(key, "stk", subject)
    assert read_token(key, "stk", token) == subject
    assert read_token(key, "stk", token.replace("mer_01jd0", "mer_01jd1")) is None
    assert read_token(b"x" * 32, "stk", token) is None
    assert read_token(key, "status", token) is None
    assert read_token(key, "stk", "s" + token[1:]) is None


async def test_stk_resulted_is_published_to_the_host_after_commit(harness: Harness) -> None:
    results: list[StkResulted] = []

    @harness.gateway.on(StkResulted)
    async def collect_result(result: StkResulted) -> None:
        results.append(result)

    made, url = await pending_payment(harness, "a")
    await post(harness, url, body(made["provider_ref"]))
    assert (await harness.api.settled(made["id"]))["status"] == "completed"

    async def has_result() -> bool:
        return bool(results)

    assert await eventually(has_result)
    (result,) = results
    assert (result.amount, type(result.amount), result.receipt) == (500, Kes, "TKN4A1B2C3")
    assert collect_result.__name__ == "collect_result"


ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

random_part = st.text(ALPHABET, min_size=26, max_size=26)
"""The part of an identifier after its prefix."""


@given(st.binary(min_size=32, max_size=32), random_part, random_part, st.sampled_from(["pay", "rfd", "chk", "mer"]))
@example(bytes(32), "0exe1cmd2exec3cmd4exe5cmd6", "exeexeexeexeexeexeexeexecm", "pay")
def test_callback_url_contains_no_word_that_mpesa_filters(key: bytes, merchant: str, subject: str, prefix: str) -> None:
    made_for = Subject("live", f"mer_{merchant}", f"{prefix}_{subject}")
    token = make_token(key, "stk", made_for)
    assert find_filtered_words(f"https://pay.example.co.ke/v1/cb/stk/{token}") == ()
    assert read_token(key, "stk", token) == made_for


def test_token_of_the_previous_release_is_valid() -> None:
    subject = Subject("sandbox", "mer_01jd0000000000000000000xm0", "pay_01jd0000000000000000000xm1")
    text = f"stk|sandbox|{subject.merchant_id}|{subject.subject_id}"
    mac = base64.urlsafe_b64encode(hmac.new(b"k" * 32, text.encode(), hashlib.sha256).digest()[:16]).decode()
    assert read_token(b"k" * 32, "stk", f"s-{subject.merchant_id}-{subject.subject_id}.{mac.rstrip('=')}") == subject


async def test_refusals_over_the_limit_are_deleted(values: dict[str, Any]) -> None:
    values["callbacks"] = {"keep_refused": 3}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        for _ in range(5):
            await api.call("POST", "/v1/cb/stk/nonsense", {})
        await gateway.services.get(CallbackDispatcher).sweep()
        assert await gateway.db.fetchval("SELECT count(*) FROM refused_callback") == 3
