"""Bodies of every kind at a valid token: kept, answered, and never a stalled event loop."""

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
from mpesa_gateway_callbacks.pages import unused
from tests.conftest import Town
from tests.plugins.callbacks.test_callbacks import asked, body, post

MOST = 200_000
"""Bytes that are taken of a body at a valid token, in the tests of larger ones."""


@asynccontextmanager
async def pulse() -> AsyncGenerator[list[float]]:
    """The longest time in seconds, so far, that the event loop did nothing else."""
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
    """One POST byte for byte. What the server says is read also where it takes no more of the body."""
    parts = urlsplit(base)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"POST {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n{head}\r\n\r\n".encode() + content)
        async with asyncio.timeout(15):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.title(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
            said = await reader.readexactly(int(headers["Content-Length"]))
        return Answer(int(lines[0].split(" ")[1]), headers, json.loads(said))
    finally:
        writer.close()


@asynccontextmanager
async def admin(gateway: Gateway, base: str) -> AsyncGenerator[Api]:
    """A client with a sandbox key that administers the gateway."""
    async with shop(gateway, base, scopes=(ADMIN,), is_configured=False) as api:
        yield api


def kept(row: Row, column: str) -> bytes:
    """The bytes of a callback as they are kept."""
    return bytes(row["body_bytes"]) if row["body_bytes"] is not None else str(row[column]).encode()


async def accepted(town: Town, payment_id: str) -> list[bytes]:
    """What was accepted about a payment."""
    rows = await town.gateway.db.fetch("SELECT body, body_bytes FROM callback WHERE subject_id = $1", payment_id)
    return [kept(row, "body") for row in rows]


async def refused(town: Town, payment_id: str) -> list[tuple[str, bytes]]:
    """Why and what was refused about a payment."""
    rows = await town.gateway.db.fetch(
        "SELECT reason, original, body_bytes FROM refused_callback WHERE subject_id = $1 AND is_trusted", payment_id
    )
    return [(row["reason"], kept(row, "original")) for row in rows]


def paid(made: dict[str, Any], **changes: Any) -> bytes:
    """The callback of a payment that was paid."""
    return json.dumps(body(made["provider_ref"], receipt=f"TKN{made['id'][-7:].upper()}", **changes)).encode()


READ: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "UTF-16 without mark": lambda raw: raw.decode().encode("utf-16-be"),
    "UTF-32": lambda raw: raw.decode().encode("utf-32"),
    "white space around": lambda raw: b" \r\n\t" + raw + b"\n\n",
    "surrogates": lambda raw: raw.replace(b"said", b"\\ud83d\\ude00 \\ud800 \\udc00 \xed\xa0\x80"),
    "NUL": lambda raw: raw.replace(b"said", b"\\u0000 \x00"),
    "NaN beside": lambda raw: raw.replace(b'{"Body"', b'{"x": [NaN, Infinity, -Infinity], "Body"'),
    "huge integer beside": lambda raw: raw.replace(b'{"Body"', b'{"x": ' + b"9" * 5000 + b', "Body"'),
    "300 kB of more": lambda raw: raw.replace(b'{"Body"', b'{"x": "' + b"x" * 300_000 + b'", "Body"'),
    "300 kB of items": lambda raw: raw.replace(b'"Item": [', b'"Item": [' + b"{}, " * 75_000),
    "deep beside": lambda raw: raw.replace(b'{"Body"', b'{"x": ' + b"[" * 200 + b"]" * 200 + b', "Body"'),
    "equal doubles": lambda raw: raw.replace(b'"ResultCode": 0', b'"ResultCode": 0, "ResultCode": "0"'),
}
"""What a body of a paid payment may look like and still be read."""


async def test_body_that_can_be_read_completes_its_payment_and_is_kept_whole(town: Town) -> None:
    for name, change in READ.items():
        made, url = await asked(town, name.replace(" ", "-"))
        raw = change(paid(made))
        async with pulse() as longest:
            assert (await post(town, url, raw=raw)).status == 200, name
        assert longest[0] < 1, (name, longest)
        found = (await town.api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (found["status"], found["mismatch"]) == ("completed", None), name
        assert await accepted(town, made["id"]) == [raw], name
    assert await town.gateway.db.fetchval("SELECT count(*) FROM refused_callback") == 0
    # Nor does a list or a page stall on them.
    async with admin(town.gateway, town.base) as operator, pulse() as longest:
        rows = (await operator.call("GET", "/v1/admin/callbacks?limit=100")).data
        assert len(rows) == len(READ)
        assert max(len(row["body"]) for row in rows) < 100_000
    assert longest[0] < 1


UNREAD: dict[str, bytes] = {
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


async def test_body_that_cannot_be_read_is_refused_and_kept_whole(town: Town) -> None:
    for name, raw in UNREAD.items():
        made, url = await asked(town, name.replace(" ", "-").replace(",", ""))
        async with pulse() as longest:
            answer = await post(town, url, raw=raw)
        assert (answer.status, answer.error["code"]) == (422, "CALLBACK_REFUSED"), name
        assert longest[0] < 1, (name, longest)
        assert await refused(town, made["id"]) == [("shape", raw)], name
        assert (await town.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending", name
    async with admin(town.gateway, town.base) as operator, pulse() as longest:
        page = await operator.call("GET", "/v1/admin/callbacks/refused?limit=100&unread=true")
        assert len(page.data) == len(UNREAD)
    assert longest[0] < 1
    concerns = [concern.text for concern in await unused(town.gateway, "sandbox")]
    assert f"{len(UNREAD)} callbacks from Safaricom could not be read" in concerns
    assert await unused(town.gateway, "live") == []


HEADERS: list[dict[str, str]] = [
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "multipart/form-data"},
    {"Content-Type": "text/xml; charset=utf-16"},
    {"Content-Type": "nonsense"},
    {"Content-Type": "application/json; charset=latin-1"},
]


async def test_content_type_of_a_callback_is_not_looked_at(town: Town) -> None:
    for number, headers in enumerate(HEADERS):
        made, url = await asked(town, f"k{number}")
        assert (await post(town, url, raw=paid(made), headers=headers)).status == 200, headers
        assert (await town.api.settled(made["id"]))["status"] == "completed"
    made, url = await asked(town, "none")
    raw = paid(made)
    answer = await send(town.base, url.removeprefix(town.base), f"Content-Length: {len(raw)}", raw)
    assert (answer.status, answer.body["ResultCode"]) == (200, 0)
    assert (await town.api.settled(made["id"]))["status"] == "completed"


async def test_body_with_a_content_encoding_is_kept_as_it_came(town: Town) -> None:
    """No sender is known to compress: what comes so at a valid token is kept, and not taken for a callback."""
    made, url = await asked(town, "a")
    raw = gzip.compress(paid(made))
    answer = await post(town, url, raw=raw, headers={"Content-Encoding": "gzip"})
    assert answer.status in {415, 422}
    assert await refused(town, made["id"]) == [("shape", raw)]


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


async def test_body_that_contradicts_itself_is_kept_and_moves_nothing(town: Town) -> None:
    for name, change in DOUBLED.items():
        made, url = await asked(town, name.replace(" ", "-").replace(",", ""))
        raw = change(paid(made))
        answer = await post(town, url, raw=raw)
        assert (answer.status, answer.error["code"]) == (422, "CALLBACK_REFUSED"), name
        assert await refused(town, made["id"]) == [("doubled", raw)], name
        assert (await town.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending", name
        # A true callback afterwards is not mistaken for it.
        assert (await post(town, url, raw=paid(made))).status == 200
        assert (await town.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "completed", name
    entries = (await town.api.call("GET", "/v1/audit/logs?action=callback.refused")).data
    assert {entry["detail"]["reason"] for entry in entries} == {"doubled"}


AMOUNTS = {"1,000.00": True, "1000.0": True, " 1000 ": True, "1 000": False, "KES 1000": False, "1,000": False}


async def test_amount_in_any_one_notation_completes_and_any_other_is_held_for_a_person(town: Town) -> None:
    for number, (written, is_read) in enumerate(AMOUNTS.items()):
        made = (await town.api.pay("254700000020", 1000, key=f"k{number}")).data
        dispatcher = town.gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        assert (await post(town, f"/v1/cb{url.partition('/v1/cb')[2]}", raw=paid(made, amount=written))).status == 200
        found = (await town.api.call("GET", f"/v1/payments/{made['id']}")).data
        if is_read:
            assert (found["status"], found["mismatch"]) == ("completed", None), written
        else:
            assert found["status"] == "pending", written
            assert (found["mismatch"]["of"], found["mismatch"]["received_amount"]) == ("amount", written)


async def test_body_beyond_the_bound_is_kept_in_part_told_and_not_answered_as_accepted(values: dict[str, Any]) -> None:
    values["callbacks"] = {"max_body_bytes": MOST}
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8"]}
    async with (
        running_gateway(values) as (gateway, base),
        shop(gateway, base) as api,
        admin(gateway, base) as operator,
    ):
        made = (await api.pay("254700000020", 500, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        path = url[url.index("/v1/cb") :]
        raw = paid(made).replace(b'{"Body"', b'{"x": "' + b"x" * MOST + b'", "Body"')
        announced = await api.call("POST", path, raw=raw)
        assert (announced.status, announced.error["code"]) == (413, "PAYLOAD_TOO_LARGE")
        chunks = b"".join(
            b"%x\r\n" % len(raw[at : at + 9999]) + raw[at : at + 9999] + b"\r\n" for at in range(0, len(raw), 9999)
        )
        streamed = await send(base, path, "Transfer-Encoding: chunked", chunks + b"0\r\n\r\n")
        assert streamed.status == 413
        # From a listed address without a token, too.
        listed = await api.call("POST", "/v1/webhooks/mpesa", raw=raw, headers={"X-Forwarded-For": "196.201.214.200"})
        assert listed.status == 413
        rows = await gateway.db.fetch("SELECT * FROM refused_callback ORDER BY at, refused_id")
        assert [row["subject_id"] for row in rows] == [made["id"], made["id"], None]
        for row in rows:
            assert (row["reason"], row["is_trusted"]) == ("size", True)
            assert kept(row, "original") == raw[:KEPT_OF_LARGER]
            assert MOST < row["cut_read"] <= row["cut_length"] <= len(raw)
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
            concern.text for concern in await unused(gateway, "sandbox")
        ]
        (entry, *_) = (await api.call("GET", "/v1/audit/logs?action=callback.refused")).data
        assert (entry["detail"]["reason"], entry["subject_id"]) == ("size", made["id"])
        replayed = await operator.call("POST", f"/v1/admin/callbacks/{rows[0]['refused_id']}/replay")
        assert (replayed.status, "not kept whole" in replayed.error["message"]) == (409, True)
        # Just so much is read.
        fits = paid(made)
        fits += b" " * (MOST - len(fits))
        assert (await api.call("POST", path, raw=fits)).status == 200
        assert (await api.settled(made["id"]))["status"] == "completed"


async def test_large_body_of_a_stranger_is_hardly_kept(town: Town) -> None:
    raw = b" " * 70_000
    answer = await send(town.base, "/v1/cb/stk/nonsense", f"Content-Length: {len(raw)}", raw)
    assert (answer.status, answer.body["errors"][0]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert (await send(town.base, "/v1/webhooks/mpesa", f"Content-Length: {len(raw)}", raw)).status == 413
    rows = await town.gateway.db.fetch("SELECT * FROM refused_callback")
    assert {(row["reason"], row["is_trusted"], row["original"], row["cut_read"]) for row in rows} == {
        ("size", False, None, 0)
    }
    assert await unused(town.gateway, "sandbox") != []
    assert not any("could not be read" in concern.text for concern in await unused(town.gateway, "sandbox"))


async def test_beginning_is_kept_where_the_bound_for_all_is_the_larger_one(values: dict[str, Any]) -> None:
    values["callbacks"], values["http"] = {"max_body_bytes": 1000}, {"max_body_bytes": 2000}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay("254700000020", 500, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        assert (await api.call("POST", url[url.index("/v1/cb") :], raw=b"x" * 2001)).status == 413
        row = await gateway.db.fetchrow("SELECT * FROM refused_callback")
        assert row is not None
        assert (kept(row, "original"), row["cut_length"], row["cut_read"]) == (b"x" * 2001, 2001, 2001)


async def test_what_follows_a_body_beyond_the_bound_is_no_request_of_its_own(values: dict[str, Any]) -> None:
    values["callbacks"] = {"max_body_bytes": MOST}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay("254700000020", 500, key="a")).data
        dispatcher = gateway.services.get(CallbackDispatcher)
        url = dispatcher.url_for("stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        inside = b"POST /v1/webhooks/mpesa HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        raw = b" " * MOST + inside * 2_000
        parts = urlsplit(base)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"POST {url[url.index('/v1/cb') :]} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(raw)}\r\n\r\n"
        try:
            writer.write(head.encode() + raw)
            async with asyncio.timeout(15):
                said = b""
                with suppress(ConnectionError):
                    while part := await reader.read(65_536):
                        said += part
        finally:
            writer.close()
        assert re.findall(rb"HTTP/1\.1 (\d+)", said) == [b"413"]
        rows = await gateway.db.fetch("SELECT reason, subject_id FROM refused_callback")
        assert [(row["reason"], row["subject_id"]) for row in rows] == [("size", made["id"])]


def test_cut_of_no_length_is_what_was_read() -> None:
    cut = TruncatedBody.of(b"abc", 3)
    assert (cut.length, cut.read, cut.sha256) == (3, 3, hashlib.sha256(b"abc").digest())


@pytest.mark.parametrize("announced", [2**63 - 1, 2**63, 10**40])
async def test_callback_that_announces_more_than_a_column_takes_is_kept(town: Town, announced: int) -> None:
    made, _ = await asked(town, "announced")
    url = town.gateway.port(Callbacks).url_for(
        "stk", env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"]
    )
    incoming = CallbackPost("stk", url.rpartition("/")[2], b"", "127.0.0.1", cut=TruncatedBody.of(b"", announced))
    with pytest.raises(SizeRejected):
        await town.gateway.port(CallbackInbox).receive(incoming)
    kept = await town.gateway.db.fetchval("SELECT cut_length FROM refused_callback WHERE subject_id = $1", made["id"])
    assert kept == 2**63 - 1


KINDS: tuple[str, ...] = ("status", "reversal", "pull", "status-timeout", "reversal-timeout")


async def test_body_of_another_kind_is_kept_at_its_token(town: Town) -> None:
    dispatcher = town.gateway.services.get(CallbackDispatcher)
    for kind in KINDS:
        made, _ = await asked(town, kind)
        url = dispatcher.url_for(kind, env="sandbox", merchant_id=made["merchant_id"], subject_id=made["id"])
        statuses = {(await post(town, url[url.index("/v1/cb") :], raw=raw)).status for raw in UNREAD.values()}
        found = await accepted(town, made["id"]) + [raw for _, raw in await refused(town, made["id"])]
        if kind.endswith("timeout"):
            # Whatever it says, it is a timeout, and every other one a repetition of it.
            assert (statuses, len(found)) == ({200}, 1)
        else:
            # Of kind pull, any object is taken and means nothing.
            assert statuses == ({200, 422} if kind == "pull" else {422})
            assert sorted(found) == sorted(UNREAD.values())
        assert (await town.api.call("GET", f"/v1/payments/{made['id']}")).data["status"] == "pending"
