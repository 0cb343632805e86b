"""Protects the form of every answer: envelope, request id, status, no traceback, and pages in order."""

import asyncio
import json
from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import urlsplit

import pytest
from litestar import get

from mpesa_gateway.plugin import Plugin
from mpesa_gateway.security.scopes import ADMIN
from mpesa_gateway.testing.serving import SANDBOX, Answer, Api, running_gateway, shop
from tests.conftest import Harness

JSON = {"Content-Type": "application/json"}
PAYMENT = b'{"amount": 500, "phone": "254711000001"}'
LARGEST = 65_536


def enveloped(answer: Answer, status: int, code: str) -> Answer:
    """Return the answer after checking that it is a complete refusal."""
    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    assert set(answer.body) == {"success", "errors", "request_id"}
    assert answer.body["success"] is False
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.body["request_id"]
    assert answer.body["request_id"] == answer.headers["X-Request-ID"]
    for problem in answer.body["errors"]:
        assert {"code", "message"} <= set(problem) <= {"code", "message", "field", "retryable", "provider", "id"}
        assert problem["message"]
    return answer


async def raw(base: str, head: bytes, body: bytes = b"") -> Answer:
    """Send one request byte by byte on a connection of its own. ``head`` is the request line and its headers."""
    parts = urlsplit(base)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(head + b"\r\nHost: gateway\r\nConnection: close\r\n\r\n" + body)
        async with asyncio.timeout(10):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.title(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
            headers["X-Request-ID"] = headers.get("X-Request-Id", "")
            content = await reader.readexactly(int(headers.get("Content-Length", "0")))
        return Answer(int(lines[0].split(" ")[1]), headers, json.loads(content))
    finally:
        writer.close()


async def test_request_to_an_unknown_address_is_not_found(harness: Harness) -> None:
    enveloped(await harness.api.call("GET", "/v1/nothing"), 404, "NOT_FOUND")
    enveloped(await harness.api.call("GET", "/"), 404, "NOT_FOUND")
    enveloped(await harness.api.call("GET", "/v1/payments/pay_none"), 404, "NOT_FOUND")


async def test_request_with_another_method_is_refused_with_the_allowed_ones(harness: Harness) -> None:
    answer = enveloped(await harness.api.call("DELETE", "/v1/payments"), 405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= {method.strip() for method in answer.headers["Allow"].split(",")}
    enveloped(await harness.api.call("PATCH", "/v1/merchant/providers", {}), 405, "METHOD_NOT_ALLOWED")


async def test_request_body_over_64_kib_is_too_large(harness: Harness) -> None:
    async def send(size: int) -> Answer:
        body = PAYMENT + b" " * (size - len(PAYMENT))
        return await harness.api.call("POST", "/v1/payments", raw=body, headers={"Idempotency-Key": str(size)})

    enveloped(await send(LARGEST + 1), 413, "PAYLOAD_TOO_LARGE")
    assert (await send(LARGEST)).status == 201


async def test_request_chunked_body_is_counted_as_it_arrives(harness: Harness) -> None:
    key = (harness.api.key or "").encode()
    head = (
        b"POST /v1/payments HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        b"Idempotency-Key: chunked\r\nX-API-Key: " + key
    )
    start, blank = b"%x\r\n%b\r\n" % (len(PAYMENT), PAYMENT), b"1000\r\n" + b" " * 4096 + b"\r\n"
    enveloped(await raw(harness.base, head, start + blank * 16 + b"0\r\n\r\n"), 413, "PAYLOAD_TOO_LARGE")
    assert (await raw(harness.base, head, start + blank * 15 + b"0\r\n\r\n")).status == 201


async def test_request_of_another_media_type_is_unsupported(harness: Harness) -> None:
    for media in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "json",
        "application/jsonp",
    ):
        headers = {"Content-Type": media, "Idempotency-Key": "a"}
        answer = await harness.api.call("POST", "/v1/payments", raw=PAYMENT, headers=headers)
        enveloped(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
        assert "application/json" in answer.error["message"]
    headers = {"Content-Type": "Application/JSON; charset=utf-8", "Idempotency-Key": "a"}
    assert (await harness.api.call("POST", "/v1/payments", raw=PAYMENT, headers=headers)).status == 201


async def test_request_without_a_key_is_refused_before_its_body_is_read(harness: Harness) -> None:
    for key in (None, "sk_test_" + "0" * 48):
        api = Api(harness.base, key)
        for body in (b"{", b'{"amount": "much"}', b" " * (LARGEST + 1), b'{"secret": 1}'):
            answer = await api.call("POST", "/v1/payments", raw=body)
            enveloped(answer, 401, "AUTH_INVALID_KEY")
            assert len(answer.body["errors"]) == 1
        await api.close()


async def test_payment_without_an_idempotency_key_is_refused(harness: Harness) -> None:
    answer = await harness.api.call("POST", "/v1/payments", raw=PAYMENT)
    enveloped(answer, 400, "IDEMPOTENCY_KEY_REQUIRED")
    assert "Idempotency-Key" in answer.error["message"]
    assert (await harness.api.call("GET", "/v1/payments")).data == []


NO_OBJECTS = (
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"7",
    b"\xff\xfe",
    b'{"amount": 500,}',
    b"{'amount': 500}",
    b'{"amount": 500, "phone": "254711000001"} more',
    b'{"amount": NaN, "phone": "254711000001"}',
    b'{"amount": Infinity, "phone": "254711000001"}',
    b'{"amount": -Infinity, "phone": "254711000001"}',
    b'{"amount": ' + b"[" * 30_000 + b"]" * 30_000 + b', "phone": "254711000001"}',
    b'{"amount": ' + b'{"a":' * 10_000,
    b"[" * 60_000,
)


async def test_request_body_that_is_no_json_object_is_refused(harness: Harness) -> None:
    for body in NO_OBJECTS:
        answer = await harness.api.call("POST", "/v1/payments", raw=body, headers={"Idempotency-Key": "a"})
        enveloped(answer, 422, "VALIDATION_ERROR")
        assert [problem["field"] for problem in answer.body["errors"]] == ["body"], body[:40]
    assert (await harness.api.call("GET", "/v1/payments")).data == []


async def test_request_without_a_body_is_refused(harness: Harness) -> None:
    answer = await harness.api.call("POST", "/v1/payments", headers={"Idempotency-Key": "a"})
    enveloped(answer, 422, "VALIDATION_ERROR")
    assert "JSON object" in answer.error["message"]


@pytest.mark.parametrize("raw", [None, b"", b"{}"], ids=["absent", "empty", "object"])
async def test_body_whose_fields_are_all_optional_may_be_absent(harness: Harness, raw: bytes | None) -> None:
    payment = (await harness.api.pay("254700000020", key="order")).data
    described = (await harness.api.call("GET", "/schema/openapi.json")).body["paths"]
    for path, template in (
        (f"/v1/payments/{payment['id']}/qr", "/v1/payments/{payment_id}/qr"),
        ("/v1/merchant/shortcodes/174379/c2b", "/v1/merchant/shortcodes/{shortcode}/c2b"),
        ("/v1/payments/mpesa/reconcile", "/v1/payments/mpesa/reconcile"),
    ):
        answer = await harness.api.call("POST", path, raw=raw)
        # This merchant has no number for Pull.
        assert answer.status == 200 or answer.error["code"] == "PROVIDER_NOT_CONFIGURED", answer.body
        assert described[template]["post"]["requestBody"]["required"] is False
    assert described["/v1/payments"]["post"]["requestBody"]["required"] is True


async def test_request_with_an_unknown_field_names_it_with_its_path(harness: Harness) -> None:
    body = json.loads(PAYMENT) | {"ammount": 1}
    answer = await harness.api.call("POST", "/v1/payments", body, headers={"Idempotency-Key": "a"})
    enveloped(answer, 422, "VALIDATION_ERROR")
    assert [problem["field"] for problem in answer.body["errors"]] == ["ammount"]
    assert "amount" in answer.error["message"]
    nested = SANDBOX | {"mpesa": SANDBOX["mpesa"] | {"pass_key": "x"}}
    answer = enveloped(await harness.api.call("PUT", "/v1/merchant/providers", nested), 422, "VALIDATION_ERROR")
    assert [problem["field"] for problem in answer.body["errors"]] == ["mpesa.pass_key"]


async def test_request_with_several_bad_fields_names_all_at_once(harness: Harness) -> None:
    bad = {
        "amount": "5.50",
        "currency": "USD",
        "phone": 254711000001,
        "reference": "x" * 13,
        "metadata": {"a": 1},
        "colour": "red",
    }
    answer = await harness.api.call("POST", "/v1/payments", bad, headers={"Idempotency-Key": "a"})
    enveloped(answer, 422, "VALIDATION_ERROR")
    assert sorted(problem["field"] for problem in answer.body["errors"]) == sorted(
        "metadata.a" if name == "metadata" else name for name in bad
    )
    assert {problem["code"] for problem in answer.body["errors"]} == {"VALIDATION_ERROR"}


async def test_valid_request_id_is_returned(harness: Harness) -> None:
    for given in ("a", "req-1", "root:1", "x" * 128, "A.b_c-9"):
        refused = await harness.api.call("GET", "/v1/nothing", headers={"X-Request-ID": given})
        assert enveloped(refused, 404, "NOT_FOUND").body["request_id"] == given
        good = await harness.api.call("GET", "/v1/payments", headers={"X-Request-ID": given})
        assert (good.status, good.headers["X-Request-ID"]) == (200, given)


async def over_asgi(harness: Harness, request_id: bytes) -> tuple[int, list[bytes], dict[str, Any]]:
    """Send a request over ASGI: some servers reject unusual bytes themselves, others do not."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/v1/nothing",
        "raw_path": b"/v1/nothing",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"gateway"), (b"x-request-id", request_id)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await harness.gateway.asgi(scope, receive, send)
    ids = [value for name, value in sent[0]["headers"] if name.lower() == b"x-request-id"]
    return sent[0]["status"], ids, json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


INVALID_IDS = (
    b"",
    b"x" * 129,
    b"two words",
    b"tab\there",
    b"a\x01b",
    b"a\x1b[31mb",
    b"a\nb",
    b"a\n",
    b"caf\xc3\xa9",
    b"\xff",
    b"<script>",
    b'"quoted"',
    b"a;b",
    b"a/b",
)


async def test_invalid_request_id_is_replaced(harness: Harness) -> None:
    assert (await over_asgi(harness, b"sane"))[:2] == (404, [b"sane"])
    seen: set[bytes] = set()
    for given in INVALID_IDS:
        status, ids, body = await over_asgi(harness, given)
        assert (status, len(ids)) == (404, 1)
        assert ids[0].startswith(b"req_"), given
        assert body["request_id"] == ids[0].decode()
        seen.add(ids[0])
    assert len(seen) == len(INVALID_IDS)


async def test_invalid_request_id_over_http_is_replaced(harness: Harness) -> None:
    heads = [b"GET /v1/nothing HTTP/1.1\r\nX-Request-ID: " + given for given in (b"two words", b"\xff", b"x" * 129)]
    answers = [enveloped(await raw(harness.base, head), 404, "NOT_FOUND") for head in heads]
    ids = {answer.body["request_id"] for answer in answers}
    assert len(ids) == 3
    assert all(request_id.startswith("req_") for request_id in ids)


@get("/v1/broken", public=True)
async def broken() -> None:
    raise LookupError("the-inner-secret-of-this-route")


@get("/v1/broken-in-its-answer", public=True)
async def broken_in_its_answer() -> object:
    return object()


@get("/v1/broken-chain", public=True)
async def broken_chain() -> None:
    try:
        await broken.fn()
    except LookupError as problem:
        raise RuntimeError("the outer error") from problem


BROKEN = Plugin(name="broken", summary="Routes that raise.", routes=(broken, broken_in_its_answer, broken_chain))


async def test_internal_error_is_answered_without_a_traceback(values: dict[str, Any]) -> None:
    async with running_gateway(values, plugins=(BROKEN,)) as (_, base):
        api = Api(base, None)
        for path in ("/v1/broken", "/v1/broken-in-its-answer", "/v1/broken-chain"):
            answer = await api.call("GET", path, headers={"X-Request-ID": "look-for-me"})
            enveloped(answer, 500, "INTERNAL_ERROR")
            assert answer.body["request_id"] == "look-for-me"
            text = json.dumps(answer.body) + str(dict(answer.headers))
            for leak in (
                "Traceback",
                "Error:",
                "LookupError",
                "RuntimeError",
                "inner-secret",
                "outer error",
                ".py",
                "0x",
            ):
                assert leak not in text
            assert (await api.call("GET", "/health/live")).status == 200
        await api.close()


async def test_pages_of_payments_have_each_once_newest_first(harness: Harness) -> None:
    made = [(await harness.api.pay(f"25471100000{i}", key=f"k{i}")).data["id"] for i in range(7)]
    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        suffix = f"&cursor={cursor}" if cursor else ""
        answer = await harness.api.call("GET", "/v1/payments?limit=3" + suffix)
        pages.append([payment["id"] for payment in answer.data])
        meta = answer.body["meta"]
        assert (meta["limit"], meta["has_more"]) == (3, meta["next_cursor"] is not None)
        assert "total" not in meta
        cursor = meta["next_cursor"]
        if len(pages) == 1:
            # A payment added in between is before the first page and moves nothing.
            await harness.api.pay("254711000009", key="meanwhile")
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [payment for page in pages for payment in page] == made[::-1]
    counted = await harness.api.call("GET", "/v1/payments?limit=8&count=true")
    assert counted.body["meta"] == {"limit": 8, "has_more": False, "next_cursor": None, "total": 8}


async def test_cursor_that_is_not_ours_is_refused(harness: Harness) -> None:
    for i in range(2):
        await harness.api.pay(f"25471100000{i}", key=f"k{i}")
    cursor: str = (await harness.api.call("GET", "/v1/payments?limit=1")).body["meta"]["next_cursor"]
    assert (await harness.api.call("GET", f"/v1/payments?cursor={cursor}")).status == 200

    def made(text: str) -> str:
        return urlsafe_b64encode(text.encode()).decode().rstrip("=")

    for bad in (
        "x",
        "nonsense",
        "!" + cursor,
        "AAAA" + cursor,
        cursor[:8],
        cursor + "%00",
        made("one part"),
        made("1\x1f2\x1f3"),
        made("-1\x1fpay_1"),
        made("1.5\x1fpay_1"),
        made("9" * 40 + "\x1fpay_1"),
        made("1\x1fpay_\x00"),
        made("\u0663\x1fpay_1"),
        urlsafe_b64encode(b"\xff\xff").decode(),
    ):
        answer = await harness.api.call("GET", f"/v1/payments?cursor={bad}")
        enveloped(answer, 422, "VALIDATION_ERROR")
        assert [problem["field"] for problem in answer.body["errors"]] == ["cursor"]


BAD_QUERIES = (
    ("limit=0", ["limit"]),
    ("limit=101", ["limit"]),
    ("limit=-1", ["limit"]),
    ("limit=ten", ["limit"]),
    ("limit=1.5", ["limit"]),
    ("limit=1&limit=2", ["limit"]),
    ("offset=3", ["offset"]),
    ("limit=0&offset=3&count=perhaps&status=lost", ["count", "limit", "offset", "status"]),
)


async def test_query_with_bad_parameters_names_them(harness: Harness) -> None:
    for query, fields in BAD_QUERIES:
        answer = enveloped(await harness.api.call("GET", f"/v1/payments?{query}"), 422, "VALIDATION_ERROR")
        assert sorted(problem["field"] for problem in answer.body["errors"]) == fields, query


async def test_query_limit_from_one_to_a_hundred_is_accepted(harness: Harness) -> None:
    for limit in (1, 100):
        answer = await harness.api.call("GET", f"/v1/payments?limit={limit}")
        assert (answer.data, answer.body["meta"]["limit"]) == ([], limit)
    assert (await harness.api.call("GET", "/v1/payments")).body["meta"]["limit"] == 50


async def test_query_values_that_postgres_would_reject_are_refused_by_name(harness: Harness) -> None:
    for query, field in (
        ("since=9999-12-31T23:59:59-23:00", "since"),
        ("until=0001-01-01T00:00:00%2B05:00", "until"),
        ("cursor=AAAA", "cursor"),
        ("search=%00", "search"),
    ):
        answer = await harness.api.call("GET", f"/v1/payments?{query}")
        assert (answer.status, answer.error["field"]) == (422, field)
        assert field != "search" or "NUL" in answer.error["message"]
    async with shop(harness.gateway, harness.base, scopes=(ADMIN,), is_configured=False) as admin:
        answer = await admin.call("GET", "/v1/admin/merchants?cursor=AAAA")
        assert (answer.status, answer.error["field"]) == (422, "cursor")
        merchant = (await admin.call("POST", "/v1/admin/merchants", {"name": "Shop"})).data["merchant_id"]
        key = {"name": "till", "expires_at": "2030-01-01T00:00:00"}
        answer = await admin.call("POST", f"/v1/admin/merchants/{merchant}/keys", key)
        assert (answer.status, answer.error["field"]) == (422, "expires_at")
