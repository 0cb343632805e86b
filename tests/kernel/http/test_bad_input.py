"""Protects every route from any input: the answer is documented, in the envelope, and never status 500."""

import asyncio
import itertools
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpesa_gateway.app import Gateway
from mpesa_gateway.testing.pytest_plugin import Servers, empty_database, empty_keyspace
from mpesa_gateway.testing.serving import INITIATED, SANDBOX, Api, gateway_values, running_gateway, shop
from mpesa_gateway_callbacks.api import Callbacks
from tests.asgi import AsgiAnswer, Headers, check_refusal, send_request
from tests.routes import Operation, document, installed, operation, operations

DARAJA = ("/simulator/oauth/", "/simulator/mpesa/", "/simulator/pulltransactions/")
"""Paths of the simulator's Daraja."""

FORMS = ("/ops/", "/simulator/touch", "/simulator/hold", "/simulator/let-go", "/simulator/turn")
"""Paths of the forms of pages."""

OPERATIONS = [each for each in operations() if each.method != "OPTIONS"]

TOKENS = (
    b"null",
    b"true",
    b"0",
    b"-0",
    b"-1",
    b"1e400",
    b"-1E+999",
    b"0.1",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"9" * 19,
    b"9" * 5000,
    b"-" + b"9" * 5000,
    b"0." + b"1" * 5000,
    b"01",
    b"0x10",
    b"[]",
    b"{}",
    b"[[[[]]]]",
    b'{"a": {"b": {"c": []}}}',
    b"[" * 20_000 + b"]" * 20_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'""',
    b'" "',
    b'"\\u0000"',
    b'"a\\u0000b"',
    b'"\x00"',
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\\ud83d\\ude00"',
    '"\U0001f600\u202e\u0627\u0644\u0639\u200f\ufeff"'.encode(),
    b'"\xff\xfe"',
    b'"\xed\xa0\x80"',
    b'"' + b"x" * 30_000 + b'"',
    b'"\' OR 1=1; --"',
    b'"../../etc/passwd"',
    b'"{{7*7}}"',
    b'"\\r\\nX-Injected: 1"',
    b'"0001-01-01T00:00:00+14:00"',
    b'"0001-01-01T00:00:00Z"',
    b'"9999-12-31T23:59:59-14:00"',
    b'"9999-12-31T23:59:59Z"',
    b'"2026-02-30T00:00:00Z"',
    b'"http://["',
    b'"http://[::1"',
    b'"https://127.0.0.1:99999/"',
    b'"https://user:word@10.0.0.1/"',
    b'"2547110000011"',
    b"254711000001",
    b'"/"',
    b'"\\\\"',
    b"",
    b"tru",
    b"'a'",
)
"""JSON values, and some texts that are none."""

SEGMENTS = (
    b"%00",
    b"x%00y",
    b"%0a",
    b"%1b%5b31m",
    b"%7f",
    b"%ff%fe",
    b"%ed%a0%80",
    b"%f0%9f%98%80",
    b"%e2%80%ae",
    b"%2e",
    b"%2e%2e",
    b"..",
    b"%2f",
    b"a%2fb",
    b"%5c",
    b"%",
    b"%zz",
    b"%25",
    b"%20",
    b"'%20OR%201=1--",
    b"x" * 8000,
    b"%c3%a9" * 500,
    b"-1",
    b"9" * 400,
    b"*",
    b";",
    b"@",
    b":",
    b"mpesa",
    b"export",
)
"""Segments of a path, as in the request line."""

QUERIES = (
    b"%00=%00",
    b"=",
    b"&&&&",
    b"=&=&=",
    b"a",
    b"%",
    b"%zz=%zz",
    b"%ff=%ff",
    b"limit=%00",
    b"limit=1&limit=2",
    b"limit=" + b"9" * 5000,
    b"limit=1" * 3000,
    b"x=1&" * 3000,
    b"&".join(b"k%d=%d" % (number, number) for number in range(3000)),
    b"cursor=" + b"A" * 20_000,
    b"a[]=1&a[b]=2",
    "\u00e9=\u00e9".encode(),
    b"\xff=\xff",
    b"count=true;limit=1",
)

TEXTS = (
    b"%00",
    b"x%00y",
    b"%ff%fe",
    b"%ed%a0%80",
    b"%e2%80%ae%f0%9f%98%80",
    b"null",
    b"[]",
    b"NaN",
    b"-1",
    b"1e400",
    b"9" * 400,
    b"0." + b"1" * 400,
    b"%d9%a3",
    b"0001-01-01T00:00:00%2b14:00",
    b"9999-12-31T23:59:59-14:00",
    b"2026-02-30",
    b"x" * 5000,
    b"'%20OR%201=1--",
)
"""Values of parameters, as in the request line."""

HEADERS: tuple[Headers, ...] = (
    (),
    ((b"content-type", b""),),
    ((b"content-type", b"application/json; charset=utf-16"),),
    ((b"content-type", b"application/json"), (b"content-type", b"text/plain")),
    ((b"content-type", b"\xff\xfe"),),
    ((b"content-type", b"multipart/form-data"),),
    ((b"content-type", b"multipart/form-data; boundary=x"), (b"origin", b"http://gateway")),
    ((b"content-type", b"multipart/form-data; boundary=" + b"x" * 5000), (b"origin", b"http://gateway")),
    ((b"content-type", b"application/x-www-form-urlencoded"), (b"origin", b"http://gateway")),
    ((b"content-type", b"application/x-www-form-urlencoded; charset=nonsense"), (b"origin", b"http://gateway")),
    ((b"content-length", b"-1"),),
    ((b"content-length", b"ten"),),
    ((b"content-length", b"9" * 500),),
    ((b"accept", b"\xff"),),
    ((b"accept", b"text/html"),),
    ((b"accept", b"application/xml;q=nonsense,,,;;"),),
    ((b"accept-encoding", b"gzip;q=0,*;q=-1"),),
    ((b"cookie", b"mpesa_gateway_ops=\xff\x00;;;=;a"),),
    ((b"cookie", b"mpesa_gateway_ops=" + b"0" * 64),),
    ((b"idempotency-key", b"\xff"),),
    ((b"idempotency-key", b"x" * 5000),),
    ((b"idempotency-key", b"a"), (b"idempotency-key", b"b")),
    ((b"x-request-id", b"\xff\n"),),
    ((b"x-forwarded-for", b"nonsense, , ,\xff"),),
    ((b"authorization", b"Basic \xff\xff"),),
    ((b"authorization", b"Basic " + b"A" * 4000),),
    ((b"authorization", b"Bearer"),),
    ((b"x-mpesa-signature", b"\xff"),),
    ((b"range", b"bytes=0-,-,5"),),
    ((b"if-none-match", b"\xff"),),
    tuple((b"x-filler-%d" % number, b"y") for number in range(3000)),
)


@dataclass(frozen=True)
class RunningGateway:
    """A served gateway with every plugin, its event loop, and a shop's key with all scopes."""

    runner: asyncio.Runner
    gateway: Gateway
    api: Api

    def say(
        self, operation: Operation, target: bytes, headers: Headers = (), body: tuple[bytes, ...] = ()
    ) -> AsgiAnswer:
        """Send one request with the key."""
        return self.runner.run(send_request(self.gateway.asgi, operation.method, target, (*self.keyed, *headers), body))

    @property
    def keyed(self) -> Headers:
        """The key as a header."""
        return ((b"x-api-key", (self.api.key or "").encode()),)


@pytest.fixture(scope="module")
def running(servers: Servers) -> Iterator[RunningGateway]:
    with empty_database(servers) as database_url, asyncio.Runner() as runner:
        values = gateway_values(
            database_url,
            empty_keyspace(servers),
            daraja={"timeout": 1.0, "connect_timeout": 1.0},
            limits={"auth_failures": 1_000_000, "requests_per_second": 100_000, "burst": 1_000_000},
            worker={"in_process": False},
            plugins=installed(),
        )
        stack = AsyncExitStack()

        async def enter() -> RunningGateway:
            gateway, base = await stack.enter_async_context(running_gateway(values))
            api = await stack.enter_async_context(shop(gateway, base, scopes=gateway.scopes.all))
            assert (await api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
            return RunningGateway(runner, gateway, api)

        running = runner.run(enter())
        try:
            yield running
        finally:
            runner.run(stack.aclose())


def is_well_answered(operation: Operation, said: AsgiAnswer) -> bool:
    """Return True for an answer that the document describes. Raises AssertionError otherwise."""
    assert said.header(b"x-request-id"), (operation, said)
    if operation.is_shown and said.status != 400:
        # 400 is for input that is no HTTP; only some calls document it for more.
        assert str(said.status) in document()["paths"][operation.path][operation.method.lower()]["responses"], (
            operation,
            said,
        )
    kind = said.header(b"content-type")
    if operation.path.startswith(DARAJA):
        # The simulator's faults are Daraja's, some with status 500.
        assert said.status < 500 or "errorCode" in said.json, (operation, said)
        return True
    assert said.status != 500, (operation, said)
    if said.status >= 400 and not kind.startswith(b"text/html"):
        assert kind == b"application/json", (operation, said)
        assert check_refusal(said)
    return True


def placed(operation: Operation, *segments: bytes) -> bytes:
    """Return the operation's path with these segments as its parameters, the last of them repeated."""
    waiting = [*segments]

    def next_one() -> bytes:
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return b"/".join(next_one() if part.startswith("{") else part.encode() for part in operation.path.split("/"))


@pytest.mark.parametrize("query", [b"never=5", b"%6eever", b"never=", b"never=1&never=2", b"a=b&never=5"])
def test_every_call_with_an_unknown_parameter_is_refused_by_name(running: RunningGateway, query: bytes) -> None:
    """An amount of a refund in the query string would otherwise refund the whole payment."""
    for each in OPERATIONS:
        if each.scope is None:
            continue
        said = running.say(each, placed(each, b"x") + b"?" + query, ((b"content-type", b"application/json"),), (b"{}",))
        assert said.status == 422, (str(each), said)
        problems = said.json["errors"]
        assert ("never", True) in [(one.get("field"), "unknown parameter" in one["message"]) for one in problems], each


def test_call_with_an_empty_query_string_is_accepted(running: RunningGateway) -> None:
    for query in (b"?", b"?&&"):
        assert running.say(operation("GET /v1/merchant/me"), b"/v1/merchant/me" + query).status == 200


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.parameters], ids=str)
def test_every_path_with_any_segment_is_well_answered(running: RunningGateway, operation: Operation) -> None:
    for segment in SEGMENTS:
        for segments in {(segment,), (segment, b"x"), (b"x", segment)}:
            assert is_well_answered(operation, running.say(operation, placed(operation, *segments)))


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_call_with_any_query_and_header_is_well_answered(running: RunningGateway, operation: Operation) -> None:
    target = placed(operation, b"x")
    queries = [b"", *QUERIES]
    if operation.query is not None:
        for name in operation.query.__struct_fields__:
            queries += [f"{name}=".encode() + text for text in TEXTS]
    for query in queries:
        assert is_well_answered(operation, running.say(operation, target + b"?" + query))
    for headers in HEADERS:
        assert is_well_answered(operation, running.say(operation, target, headers, (b"{}",)))


BODIES = (
    (b"",),
    (b"{",),
    (b"[]",),
    (b"null",),
    (b'"text"',),
    (b"{}",),
    (b"\xef\xbb\xbf{}",),
    ("{}".encode("utf-16"),),
    (b"\x00" * 1000,),
    (b"\xff" * 1000,),
    (b"{" * 60_000,),
    (b"[" * 65_000,),
    (b'{"a":' * 13_000,),
    (b"[" * 100_000,),
    (b"[" * 100_000 + b"]" * 100_000,),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000,),
    (b" " * 65_536,),
    (b" " * 65_537,),
    tuple(b" " * 4096 for _ in range(1000)),
    (b"x" * 5_000_000,),
    tuple(b"{" for _ in range(500)),
    (b"a=1&a=2&%00=%ff&=&",),
    (b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n\xff\xfe\r\n--x--\r\n',),
    (b'--x\r\nContent-Disposition: form-data; name="\xff"; filename="\x00"\r\n\r\n1\r\n--x--\r\n',),
    (b"--x\r\nContent-Type: nonsense; charset=nonsense\r\n\r\n1\r\n",),
    (b'{"Body": {"stkCallback": []}}',),
    (b'{"Body": {"stkCallback": {"ResultCode": {}, "CallbackMetadata": {"Item": [[[]]]}}}}',),
    (b'{"Result": {"ResultCode": 0, "ResultParameters": {"ResultParameter": {"Key": [], "Value": {}}}}}',),
    (b'{"Result": {"ResultCode": ' + b"9" * 5000 + b"}}",),
)
"""Whole bodies, in the pieces in which they arrive."""

WITH_BODY = [each for each in OPERATIONS if each.method in {"POST", "PUT", "PATCH"}]


@pytest.mark.parametrize("operation", WITH_BODY, ids=str)
def test_every_call_with_any_body_is_well_answered(running: RunningGateway, operation: Operation) -> None:
    kinds = [b"application/json"]
    if operation.path.startswith(FORMS):
        kinds = [b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"]
    for kind in kinds:
        headers = ((b"content-type", kind), (b"origin", b"http://gateway"))
        for body in BODIES:
            assert is_well_answered(operation, running.say(operation, placed(operation, b"stk", b"x"), headers, body))


def fields_of(kind: type[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each field of a body, with fields of nested structs."""
    for field in msgspec.structs.fields(kind):
        yield (*path, field.encode_name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from fields_of(field.type, (*path, field.encode_name))


def with_field(example: Any, path: tuple[str, ...], token: bytes) -> bytes:
    """Return the example as JSON, with these bytes as the value of one field."""
    name, *rest = path
    inner = with_field(example.get(name, {}), tuple(rest), token) if rest else token
    members = {key: json.dumps(value).encode() for key, value in example.items()} | {name: inner}
    return b"{" + b", ".join(json.dumps(key).encode() + b": " + value for key, value in members.items()) + b"}"


JSON = (b"content-type", b"application/json")


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.body is not None], ids=str)
def test_every_field_with_any_value_is_well_answered(running: RunningGateway, operation: Operation) -> None:
    kind = operation.body
    assert kind is not None
    example: dict[str, Any] = dict(kind.EXAMPLE)  # type: ignore[attr-defined]
    keys = itertools.count()
    for path in (*fields_of(kind), ("unknown",), ("",), ("x" * 5000,), ("\x00",)):
        for token in TOKENS:
            body = with_field(example, path, token)
            headers = (JSON, (b"idempotency-key", f"k{next(keys)}".encode()))
            assert is_well_answered(operation, running.say(operation, placed(operation, b"x"), headers, (body,)))
        once = with_field(example, path, b"1")
        headers = (JSON, (b"idempotency-key", f"k{next(keys)}".encode()))
        twice = (once[:-1], b", ", once[1:])
        assert is_well_answered(operation, running.say(operation, placed(operation, b"x"), headers, twice))


MEMBERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_call_with_random_input_is_well_answered(running: RunningGateway, operation: Operation) -> None:
    names = [] if operation.body is None else [*operation.body.__struct_fields__]
    objects = st.dictionaries(st.sampled_from(names) if names else st.text(max_size=8), MEMBERS, max_size=6)

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(
        segment=st.text(min_size=1, max_size=30).map(
            lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="").encode()
        ),
        query=st.binary(max_size=100),
        headers=st.lists(
            st.tuples(
                st.sampled_from([b"content-type", b"accept", b"x-request-id", b"idempotency-key"]),
                st.binary(max_size=40),
            ),
            max_size=3,
        ).map(tuple),
        body=st.lists(st.binary(max_size=200), max_size=4).map(tuple)
        | objects.map(lambda content: (json.dumps(content).encode(),)),
    )
    def any_request(segment: bytes, query: bytes, headers: Headers, body: tuple[bytes, ...]) -> None:
        target = placed(operation, segment) + b"?" + query
        assert is_well_answered(operation, running.say(operation, target, headers, body))

    any_request()


CALLBACKS = {
    "stk": {
        "Body": {
            "stkCallback": {
                "MerchantRequestID": "29115-34620561-1",
                "CheckoutRequestID": "ws_CO_191220191020363925",
                "ResultCode": 0,
                "ResultDesc": "The service request is processed successfully.",
                "CallbackMetadata": {"Item": [{"Name": "Amount", "Value": 1}, {"Name": "Balance"}]},
            }
        }
    },
    "status": {
        "Result": {
            "ResultType": 0,
            "ResultCode": 0,
            "ResultDesc": "done",
            "OriginatorConversationID": "10571-7910404-1",
            "ConversationID": "AG_20191219_00004e48cf7e3533f581",
            "TransactionID": "NLJ41HAY6Q",
            "ResultParameters": {"ResultParameter": [{"Key": "Amount", "Value": "1"}]},
        }
    },
}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON value."""
    yield path
    for name in members_of(content):
        yield from places(content[name], (*path, name))


def members_of(content: Any) -> list[Any]:
    """Return the names or indexes inside a JSON value."""
    whole: Any = content
    return list(whole) if isinstance(content, dict) else list(range(len(whole))) if isinstance(content, list) else []


def put(content: Any, path: tuple[Any, ...], token: bytes) -> bytes:
    """Return a JSON value with these bytes at one of its paths."""
    if not path:
        return token
    parts = [
        (name, put(content[name], path[1:], token) if name == path[0] else json.dumps(content[name]).encode())
        for name in members_of(content)
    ]
    if isinstance(content, dict):
        return b"{" + b", ".join(json.dumps(name).encode() + b": " + part for name, part in parts) + b"}"
    return b"[" + b", ".join(part for _, part in parts) + b"]"


@pytest.mark.parametrize("kind", ["stk", "status", "status-timeout", "reversal", "reversal-timeout", "pull"])
def test_every_callback_at_our_address_is_well_answered(running: RunningGateway, kind: Any) -> None:
    inbox = running.gateway.services.get(Callbacks)
    prefix = {"stk": "pay", "pull": "mer"}.get(kind, "chk" if kind.startswith("status") else "rfd")
    example = CALLBACKS["stk" if kind == "stk" else "status"]
    neutral = operation("POST /v1/cb/{kind}/{token}")
    for path in places(example):
        for token in TOKENS if kind in {"stk", "status"} else TOKENS[:: len(kind)]:
            subject = running.gateway.ids.new(prefix)
            url = inbox.url_for(kind, env="sandbox", merchant_id=running.gateway.ids.new("mer"), subject_id=subject)
            said = running.say(neutral, urlsplit(url).path.encode(), (JSON,), (put(example, path, token),))
            assert is_well_answered(neutral, said)
            assert said.status in {200, 422}, said


def test_every_request_to_the_simulator_is_well_answered(running: RunningGateway) -> None:
    pair = b64encode(b"key:secret")
    oauth = operation("GET /simulator/oauth/v1/generate")
    target = b"/simulator/oauth/v1/generate?grant_type=client_credentials"
    for text in (
        b"",
        b"Basic",
        b"Basic \xff",
        b"Basic " + b64encode(b"\x00:\x00"),
        b"Basic " + b64encode(b"\xff:\xff"),
    ):
        assert is_well_answered(oauth, running.say(oauth, target, ((b"authorization", text),)))
    issued = running.say(oauth, target, ((b"authorization", b"Basic " + pair),))
    headers = ((b"authorization", b"Bearer " + issued.json["access_token"].encode()),)
    moment = "20261124120000"
    signed = {
        "BusinessShortCode": "174379",
        "Password": b64encode(f"174379{SANDBOX['mpesa']['passkey']}{moment}".encode()).decode(),
        "Timestamp": moment,
    }
    addresses = {"ResultURL": "http://127.0.0.1:1/", "QueueTimeOutURL": "http://127.0.0.1:1/"}
    initiator = {
        "Initiator": "testapi",
        "SecurityCredential": INITIATED["mpesa"]["security_credential"],
        "Remarks": "none",
        "Occasion": "",
    }
    asked: dict[str, dict[str, Any]] = {
        "/simulator/mpesa/stkpush/v1/processrequest": signed
        | {
            "TransactionType": "CustomerPayBillOnline",
            "Amount": 1,
            "PartyA": "254700000005",
            "PartyB": "174379",
            "PhoneNumber": "254700000005",
            "CallBackURL": "http://127.0.0.1:1/",
            "AccountReference": "x",
            "TransactionDesc": "x",
        },
        "/simulator/mpesa/stkpushquery/v1/query": signed | {"CheckoutRequestID": "ws_CO_1"},
        "/simulator/mpesa/transactionstatus/v1/query": initiator
        | addresses
        | {
            "CommandID": "TransactionStatusQuery",
            "TransactionID": "NLJ41HAY6Q",
            "PartyA": "174379",
            "IdentifierType": "4",
        },
        "/simulator/mpesa/reversal/v1/request": initiator
        | addresses
        | {
            "CommandID": "TransactionReversal",
            "TransactionID": "NLJ41HAY6Q",
            "Amount": 1,
            "ReceiverParty": "174379",
            "RecieverIdentifierType": "11",
        },
        "/simulator/pulltransactions/v1/register": {
            "ShortCode": "174379",
            "RequestType": "Pull",
            "NominatedNumber": "254708374149",
            "CallBackURL": "http://127.0.0.1:1/",
        },
        **{
            f"/simulator/mpesa/c2b/{version}/registerurl": {
                "ShortCode": "174379",
                "ResponseType": "Completed",
                "ConfirmationURL": "http://127.0.0.1:1/",
                "ValidationURL": "http://127.0.0.1:1/",
            }
            for version in ("v1", "v2")
        },
        **{
            f"/simulator/mpesa/c2b/{version}/simulate": {
                "ShortCode": "174379",
                "CommandID": "CustomerPayBillOnline",
                "Amount": 1,
                "Msisdn": "254708374149",
                "BillRefNumber": "HOUSE 7B",
            }
            for version in ("v1", "v2")
        },
        "/simulator/mpesa/qrcode/v1/generate": {
            "MerchantName": "Duka",
            "RefNo": "HOUSE 7B",
            "Amount": 1,
            "TrxCode": "PB",
            "CPI": "174379",
            "Size": "300",
        },
        "/simulator/pulltransactions/v1/query": {
            "ShortCode": "174379",
            "StartDate": f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%d %H:%M:%S}",
            "EndDate": f"{datetime.now(UTC) + timedelta(hours=9):%Y-%m-%d %H:%M:%S}",
            "OffSetValue": "0",
        },
    }
    assert {*asked, oauth.path} == {each.path for each in OPERATIONS if each.path.startswith(DARAJA)}
    for path, example in asked.items():
        one = operation(f"POST {path}")
        for place in places(example):
            for token in TOKENS:
                assert is_well_answered(one, running.say(one, path.encode(), headers, (put(example, place, token),)))
