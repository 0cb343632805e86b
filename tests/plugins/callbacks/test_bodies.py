"""Protects the callback bodies: each one is stored whole and answered without a stall of the event loop."""

import asyncio
import gzip
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.db.engine import Row
from mpesa_gateway.security.scopes import ADMIN
from mpesa_gateway.testing.serving import Answer, Api, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.dispatcher import CallbackDispatcher
from mpesa_gateway_callbacks.errors import SizeRejected
from mpesa_gateway_callbacks.inbox import CallbackInbox
from mpesa_gateway_callbacks.incoming import KEPT_OF_LARGER, CallbackPost, TruncatedBody
from mpesa_gateway_callbacks.pages import unused_callbacks
from mpesa_gateway_callbacks.schemas import SHOWN, laid_out
from tests.conftest import Harness
from tests.plugins.callbacks.test_callbacks import body, pending_payment, post
from tests.visits import host_visit

DIGEST = hashlib.sha256(b"254708374149").hexdigest()
BODY_LIMIT = 200_000
"""`callbacks.max_body_bytes` in the tests of larger bodies."""


@asynccontextmanager
async def loop_delay() -> AsyncGenerator[list[float]]:
    """Yields a list of one number: the longest delay of the event loop so far, in seconds."""
    longest = [0.0]

    async def beat() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            longest[0] = max(longest[0], now - last)
            last = now

    task = asyncio.create_task(beat())
    try:
        yield longest
    finally:
        task.cancel()


async def send(base: str, path: str, head: str, content: bytes) -> Answer:
    """Send one POST byte for byte and read the answer, also if the server stops reading the body."""
    parts = urlsplit(base)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"POST {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n{head}\r\n\r\n".encode() + content)
        async with asyncio.timeout(15):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.title(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
            answer = await reader.readexactly(int(headers["Content-Length"]))
        return Answer(int(lines[0].split(" ")[1]), headers, json.loads(answer))
    finally:
        writer.close()


@asynccontextmanager
async def admin_client(gateway: Gateway, base: str) -> AsyncGenerator[Api]:
    """Yields a client with a sandbox key of scope ADMIN."""
    async with shop(gateway, base, scopes=(ADMIN,), is_configured=False) as api:
        yield api


def stored_bytes(row: Row, column: str) -> bytes:
    return bytes(row["body_bytes"]) if row["body_bytes"] is not None else str(row[column]).encode()


async def accepted_bodies(harness: Harness, payment_id: str) -> list[bytes]:
    rows = await harness.gateway.db.fetch(
        "SELECT callback.body, body_bytes FROM callback WHERE subject_id = $1", payment_id
    )
    return [stored_bytes(row, "body") for row in rows]


async def refused_bodies(harness: Harness, payment_id: str) -> list[tuple[str, bytes]]:
    """Returns the reason and the bytes of each refused callback of a payment."""
    rows = await harness.gateway.db.fetch(
        "SELECT reason, original, body_bytes FROM refused_callback WHERE subject_id = $1 AND is_trusted", payment_id
    )
    return [(row["reason"], stored_bytes(row, "original")) for row in rows]


def paid_body(made: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps(body(made["provider_ref"], receipt=f"TKN{made['id'][-7:].upper()}", **changes)).encode()


READABLE: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "UTF-16 without mark": lambda raw: raw.decode().encode("utf-16-be"),
    "UTF-32": lambda raw: raw.decode().encode("utf-32"),
    "white space around": lambda raw: b" \r\n\t" + raw + b"\n\n",
    "surrogates": lambda raw: raw.replace(b"said", b"\\ud83d\\ude00 \\ud800 \\udc00 \xed\xa0\x80"),
    "NUL": lambda raw: raw.replace(b"said", b"\\u0000 \x00"),
    "NaN in another field": lambda raw: raw.replace(b'{"Body"', b'{"x": [NaN, Infinity, -Infinity], "Body"'),
    "huge integer in another field": lambda raw: raw.replace(b'{"Body"', b'{"x": ' + b"9" * 5000 + b', "Body"'),
    "300 kB of more": lambda raw: raw.replace(b'{"Body"', b'{"x": "' + b"x" * 300_000 + b'", "Body"'),
    "300 kB of items": lambda raw: raw.replace(b'"Item": [', b'"Item": [' + b"{}, " * 75_000),
    "deep nesting in another field": lambda raw: raw.replace(
        b'{"Body"', b'{"x": ' + b"[" * 200 + b"]" * 200 + b', "Body"'
    ),
    "equal doubles": lambda raw: raw.replace(b'"ResultCode": 0', b'"ResultCode": 0, "ResultCode": "0"'),
}
"""Changes to the body of a paid payment that leave it readable."""


async def test_readable_body_completes_the_payment_and_is_stored_whole(harness: Harness) -> None:
    for name, change in READABLE.items():
        made, url = await pending_payment(harness, name.replace(" ", "-"))
        raw = change(paid_body(made))
        async with loop_delay() as longest:
            assert (await post(harness, url, raw=raw)).status == 200, name
        assert longest[0] < 1, (name, longest)
        found = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (found["status"], found["mismatch"]) == ("completed", None), name
        assert await accepted_bodies(harness, made["id"]) == [raw], name
    assert await harness.gateway.db.fetchval("SELECT count(*) FROM refused_callback") == 0
    # Lists and pages do not stall on them either.
    async with admin_client(harness.gateway, harness.base) as operator, loop_delay() as longest:
        rows = (await operator.call("GET", "/v1/admin/callbacks?limit=100")).data
        assert len(rows) == len(READABLE)
        assert max(len(row["body"]) for row in rows) < 100_000
    assert longest[0] < 1


UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \r\n\t ",
    "empty list": b"[]",
    "null": b"null",
    "number": b"5",
    "text": b'"stkCallback"',
    "true": b"true",
    "NaN": b"NaN",
    "huge integer": b"9" * 100_000,
    "10,000 deep": b"[" * 10_000 + b"]" * 10_000,
    "10,000 objects deep": b'{"Body":' * 10_000 + b"1" + b"}" * 10_000,
    "one megabyte deep": b"[" * 1_000_000,
    "one megabyte of Latin-1": b"\xe9a" * 500_000,
    "one megabyte of nothing": b"\x00" * 1_000_000,
    "gzip": gzip.compress(b'{"Body": {"stkCallback": {"ResultCode": 0}}}'),
    "form": b"Body=%7B%22stkCallback%22%3A%7B%7D%7D",
    "XML": b"<?xml version='1.0'?><Body><stkCallback/></Body>",
    "UTF-16 cut in half": '{"Body": 1}'.encode("utf-16")[:-1],
    "no code": b'{"Body": {"stkCallback": {"ResultCode": NaN}}}',
    "list for an object": b'{"Body": [{"stkCallback": {"ResultCode": 0}}]}',
}


async def test_unreadable_body_is_refused_and_stored_whole(harness: Harness) -> None:
    for name, raw in UNREADABLE.items():
        made, url = await pending_payment(harness, name.replace(" ", "-").replace(",", ""))
        async with loop_delay() as longest:
            answer = await post(harness, url, raw=raw)
        assert (answer.status, answer.error["code"]) == (422, "CALLBACK_REFUSED"), name
        assert longest[0] < 1, (name, longest)
        assert await refused_bodies(harness, made["id"]) == [("shape", raw)], name
        assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending", name
    async with admin_client(harness.gateway, harness.base) as operator, loop_delay() as longest:
        page = await operator.call("GET", "/v1/admin/callbacks/refused?limit=100&unread=true")
        assert len(page.data) == len(UNREADABLE)
    assert longest[0] < 1
    concerns = [concern.text for concern in await unused_callbacks(host_visit(harness.gateway))]
    assert f"{len(UNREADABLE)} callbacks from Safaricom could not be read" in concerns
    assert await unused_callbacks(host_visit(harness.gateway, "live")) == []


HEADERS: list[dict[str, str]] = [
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "multipart/form-data"},
    {"Content-Type": "text/xml; charset=utf-16"},
    {"Content-Type": "nonsense"},
    {"Content-Type": "application/json; charset=latin-1"},
]


async def test_callback_with_any_content_type_is_accepted(harness: Harness) -> None:
    for number, headers in enumerate(HEADERS):
        made, url = await pending_payment(harness, f"k{number}")
        assert (await post(harness, url, raw=paid_body(made), headers=headers)).status == 200, headers
        assert (await harness.api.settled(made["id"]))["status"] == "completed"
    made, url = await pending_payment(harness, "none")
    raw = paid_body(made)
    answer = await send(harness.base, url.removeprefix(harness.base), f"Content-Length: {len(raw)}", raw)
    assert (answer.status, answer.body["ResultCode"]) == (200, 0)
    assert (await harness.api.settled(made["id"]))["status"] == "completed"


async def test_compressed_body_is_refused_and_stored_as_received(harness: Harness) -> None:
    """No sender is known to compress callbacks."""
    made, url = await pending_payment(harness, "a")
    raw = gzip.compress(paid_body(made))
    answer = await post(harness, url, raw=raw, headers={"Content-Encoding": "gzip"})
    assert answer.status in {415, 422}
    assert await refused_bodies(harness, made["id"]) == [("shape", raw)]


DOUBLED: dict[str, Callable[[bytes], bytes]] = {
    "code": lambda raw: raw.replace(b'"ResultCode": 0', b'"ResultCode": 1032, "ResultCode": 0'),
    "code, last one fails": lambda raw: raw.replace(b'"ResultCode": 0', b'"ResultCode": 0, "ResultCode": 1032'),
    "escaped name": lambda raw: raw.replace(b'"ResultCode": 0', b'"Result\\u0043ode": 1, "ResultCode": 0'),
    "push": lambda raw: raw.replace(b'"CheckoutRequestID"', b'"CheckoutRequestID": "ws_CO_other", "CheckoutRequestID"'),
    "amount": lambda raw: raw.replace(b'"Value": 500', b'"Value": 5, "Value": 500'),
    "second amount": lambda raw: raw.replace(b'"Item": [', b'"Item": [{"Name": "Amount", "Value": 5}, '),
    "receipt": lambda raw: raw.replace(
        b'"Item": [', b'"Item": [{"Name": "MpesaReceiptNumber", "Value": "OTHER00001"}, '
    ),
    "body": lambda raw: raw.replace(b'{"Body": {', b'{"Body": {"stkCallback": {"ResultCode": 1}}, "Body": {'),
}


async def test_contradictory_body_is_refused_and_stored_and_changes_nothing(harness: Harness) -> None:
    for name, change in DOUBLED.items():
        made, url = await pending_payment(harness, name.replace(" ", "-").replace(",", ""))
        raw = change(paid_body(made))
        answer = await post(harness, url, raw=raw)
        assert (answer.status, answer.error["code"]) == (422, "CALLBACK_REFUSED"), name
        assert await refused_bodies(harness, made["id"]) == [("doubled", raw)], name
        assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending", name
        # A valid callback afterwards is not a repetition of it.
        assert (await post(harness, url, raw=paid_body(made))).status == 200
        assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed", name
    entries = (await harness.api.call("GET", "/v1/audit/logs?action=callback.refused")).data
    assert {entry["detail"]["reason"] for entry in entries} == {"doubled"}


AMOUNTS = {"1,000.00": True, "1000.0": True, " 1000 ": True, "1 000": False, "KES 1000": False, "1,000": False}


async def test_amount_in_an_unknown_notation_is_a_mismatch_and_known_ones_complete(harness: Harness) -> None:
    for number, (written, is_read) in enumerate(AMOUNTS.items()):
        made = (await harness.api.pay("254700000020", 1000, key=f"k{number}")).data
        dispatcher = harness.gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        assert (
            await post(harness, f"/v1/cb{url.partition('/v1/cb')[2]}", raw=paid_body(made, amount=written))
        ).status == 200
        found = (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data
        if is_read:
            assert (found["status"], found["mismatch"]) == ("completed", None), written
        else:
            assert found["status"] == "pending", written
            assert (found["mismatch"]["of"], found["mismatch"]["received_amount"]) == ("amount", written)


async def test_body_over_the_limit_is_stored_in_part_and_answered_with_413(values: dict[str, Any]) -> None:
    values["callbacks"] = {"max_body_bytes": BODY_LIMIT}
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8"]}
    async with (
        running_gateway(values) as (gateway, base),
        shop(gateway, base) as api,
        admin_client(gateway, base) as operator,
    ):
        made = (await api.pay("254700000020", 500, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        path = url[url.index("/v1/cb") :]
        raw = paid_body(made).replace(b'{"Body"', b'{"x": "' + b"x" * BODY_LIMIT + b'", "Body"')
        announced = await api.call("POST", path, raw=raw)
        assert (announced.status, announced.error["code"]) == (413, "PAYLOAD_TOO_LARGE")
        chunks = b"".join(
            b"%x\r\n" % len(raw[at : at + 9999]) + raw[at : at + 9999] + b"\r\n" for at in range(0, len(raw), 9999)
        )
        streamed = await send(base, path, "Transfer-Encoding: chunked", chunks + b"0\r\n\r\n")
        assert streamed.status == 413
        # The same without a token, from an address on the allowlist.
        listed = await api.call("POST", "/v1/webhooks/mpesa", raw=raw, headers={"X-Forwarded-For": "196.201.214.200"})
        assert listed.status == 413
        rows = await gateway.db.fetch("SELECT * FROM refused_callback ORDER BY at, refused_id")
        assert [row["subject_id"] for row in rows] == [made["id"], made["id"], None]
        for row in rows:
            assert (row["reason"], row["is_trusted"]) == ("size", True)
            assert stored_bytes(row, "original") == raw[:KEPT_OF_LARGER]
            assert BODY_LIMIT < row["cut_read"] <= row["cut_length"] <= len(raw)
            assert row["cut_sha256"] == hashlib.sha256(raw[: row["cut_read"]]).digest()
        assert rows[0]["cut_length"] == rows[2]["cut_length"] == len(raw)
        assert (await api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"
        (shown, *_) = (await operator.call("GET", "/v1/admin/callbacks/refused?unread=true")).data
        assert shown["truncated"] == {
            "length": len(raw),
            "read": rows[2]["cut_read"],
            "sha256": rows[2]["cut_sha256"].hex(),
        }
        assert "3 callbacks from Safaricom could not be read" in [
            concern.text for concern in await unused_callbacks(host_visit(gateway))
        ]
        (entry, *_) = (await api.call("GET", "/v1/audit/logs?action=callback.refused")).data
        assert (entry["detail"]["reason"], entry["subject_id"]) == ("size", made["id"])
        replayed = await operator.call("POST", f"/v1/admin/callbacks/{rows[0]['refused_id']}/replay")
        assert (replayed.status, "not kept whole" in replayed.error["message"]) == (409, True)
        # A body of exactly the limit is accepted.
        fits = paid_body(made)
        fits += b" " * (BODY_LIMIT - len(fits))
        assert (await api.call("POST", path, raw=fits)).status == 200
        assert (await api.settled(made["id"]))["status"] == "completed"


async def test_large_body_without_a_valid_token_is_not_stored(harness: Harness) -> None:
    raw = b" " * 70_000
    answer = await send(harness.base, "/v1/cb/stk/nonsense", f"Content-Length: {len(raw)}", raw)
    assert (answer.status, answer.body["errors"][0]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert (await send(harness.base, "/v1/webhooks/mpesa", f"Content-Length: {len(raw)}", raw)).status == 413
    rows = await harness.gateway.db.fetch("SELECT * FROM refused_callback")
    assert {(row["reason"], row["is_trusted"], row["original"], row["cut_read"]) for row in rows} == {
        ("size", False, None, 0)
    }
    assert await unused_callbacks(host_visit(harness.gateway)) != []
    assert not any(
        "could not be read" in concern.text for concern in await unused_callbacks(host_visit(harness.gateway))
    )


async def test_body_over_both_limits_is_stored_up_to_the_larger_limit(values: dict[str, Any]) -> None:
    values["callbacks"], values["http"] = {"max_body_bytes": 1000}, {"max_body_bytes": 2000}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay("254700000020", 500, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        assert (await api.call("POST", url[url.index("/v1/cb") :], raw=b"x" * 2001)).status == 413
        row = await gateway.db.fetchrow("SELECT * FROM refused_callback")
        assert row is not None
        assert (stored_bytes(row, "original"), row["cut_length"], row["cut_read"]) == (b"x" * 2001, 2001, 2001)


async def test_bytes_after_an_oversized_body_are_not_parsed_as_a_request(values: dict[str, Any]) -> None:
    values["callbacks"] = {"max_body_bytes": BODY_LIMIT}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay("254700000020", 500, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        inside = b"POST /v1/webhooks/mpesa HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        raw = b" " * BODY_LIMIT + inside * 2_000
        parts = urlsplit(base)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"POST {url[url.index('/v1/cb') :]} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(raw)}\r\n\r\n"
        try:
            writer.write(head.encode() + raw)
            async with asyncio.timeout(15):
                answered = b""
                with suppress(ConnectionError):
                    while part := await reader.read(65_536):
                        answered += part
        finally:
            writer.close()
        assert re.findall(rb"HTTP/1\.1 (\d+)", answered) == [b"413"]
        rows = await gateway.db.fetch("SELECT reason, subject_id FROM refused_callback")
        assert [(row["reason"], row["subject_id"]) for row in rows] == [("size", made["id"])]


def test_cut_without_announced_length_has_the_length_that_was_read() -> None:
    cut = TruncatedBody.of(b"abc", 3)
    assert (cut.length, cut.read, cut.sha256) == (3, 3, hashlib.sha256(b"abc").digest())


@pytest.mark.parametrize("announced", [2**63 - 1, 2**63, 10**40])
async def test_announced_length_over_bigint_is_stored_as_the_largest_bigint(harness: Harness, announced: int) -> None:
    made, _ = await pending_payment(harness, "announced")
    url = harness.gateway.port(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"]
    )
    incoming = CallbackPost("stk", url.rpartition("/")[2], b"", "127.0.0.1", cut=TruncatedBody.of(b"", announced))
    with pytest.raises(SizeRejected):
        await harness.gateway.port(CallbackInbox).receive(incoming)
    stored_length = await harness.gateway.db.fetchval(
        "SELECT cut_length FROM refused_callback WHERE subject_id = $1", made["id"]
    )
    assert stored_length == 2**63 - 1


KINDS: tuple[str, ...] = ("status", "reversal", "pull", "status-timeout", "reversal-timeout")


async def test_unreadable_body_of_each_other_kind_is_stored(harness: Harness) -> None:
    dispatcher = harness.gateway.services.get(CallbackDispatcher)
    for kind in KINDS:
        made, _ = await pending_payment(harness, kind)
        url = dispatcher.url_for(kind, env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        statuses = {(await post(harness, url[url.index("/v1/cb") :], raw=raw)).status for raw in UNREADABLE.values()}
        found = await accepted_bodies(harness, made["id"]) + [
            raw for _, raw in await refused_bodies(harness, made["id"])
        ]
        if kind.endswith("timeout"):
            # A timeout has no body to read: the second one is a repetition.
            assert (statuses, len(found)) == ({200}, 1)
        else:
            # Callbacks of kind pull are accepted with any object and have no effect.
            assert statuses == ({200, 422} if kind == "pull" else {422})
            assert sorted(found) == sorted(UNREADABLE.values())
        assert (await harness.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"


@pytest.mark.parametrize("digest", [DIGEST, DIGEST.upper()])
def test_digest_of_a_payer_is_not_shown(digest: str) -> None:
    """All numbers of Kenya are hashed in minutes."""
    shown = laid_out(f'{{"MSISDN": "{digest}", "TransID": "TKN4A1B2C3"}}')
    assert digest[:8] not in shown
    assert "TKN4A1B2C3" in shown


@pytest.mark.parametrize("place", range(SHOWN - 70, SHOWN + 1, 7))
def test_digest_of_a_payer_is_not_shown_where_a_long_body_is_cut(place: int) -> None:
    body = "-" * place + DIGEST + "-" * 100
    assert DIGEST[:8] not in laid_out(body)
