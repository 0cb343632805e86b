"""Protects calls to Daraja: the certainty of each outcome, one shared token, and no request sent twice."""

import asyncio
import base64
import gc
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import valkey.asyncio

from mpesa_gateway.clock import Clock, SetClock
from mpesa_gateway.config import DarajaConfig
from mpesa_gateway.daraja.access_tokens import AccessToken, AccessTokens
from mpesa_gateway.daraja.client import (
    DarajaClient,
    DarajaCredentials,
    DarajaFault,
    Initiator,
    NotSent,
    OutcomeUnknown,
    Rejected,
)
from mpesa_gateway.ids import Ids
from mpesa_gateway.money import Kes
from mpesa_gateway.phone import Msisdn
from mpesa_gateway.secret import Secret
from mpesa_gateway.security.sealing import Sealer
from mpesa_gateway.testing.serving import eventually, listening
from mpesa_gateway_payments.operations import (
    STK_PUSH,
    STK_QUERY,
    TRANSACTION_STATUS,
    StkAck,
    StkPush,
    StkQuery,
    TransactionStatus,
)
from mpesa_gateway_reconciliation.operations import PULL_QUERY, PULL_REGISTER, PullQuery, PullRegistration
from mpesa_gateway_refunds.operations import REVERSAL, ReversalRequest
from tests.kernel.scripted import (
    ScriptedRequest,
    ScriptedServer,
    drip,
    reset,
    scripted,
    set_proxy_environment,
    write,
    write_json,
)

TOKEN = "/oauth/v1/generate"
PUSH = "/mpesa/stkpush/v1/processrequest"
QUERY = "/mpesa/stkpushquery/v1/query"

CREDENTIALS = DarajaCredentials(
    env="sandbox",
    consumer_key=Secret("consumer-key-of-tests"),
    consumer_secret=Secret("consumer-secret-of-tests"),
    shortcode="174379",
    passkey=Secret("passkey-of-tests"),
)
ACK = {
    "MerchantRequestID": "29115-34620561-1",
    "CheckoutRequestID": "ws_CO_1",
    "ResponseCode": "0",
    "ResponseDescription": "Success. Request accepted for processing",
    "CustomerMessage": "Success. Request accepted for processing",
}
# 22:30 in UTC is the next day in Nairobi.
NIGHT = datetime(2026, 11, 23, 22, 30, 5, tzinfo=UTC)

Answering = Callable[[ScriptedRequest, asyncio.StreamWriter], Awaitable[None]]


class Daraja:
    """Answers as Daraja does: only the newest of its tokens is valid."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.lifetime: Any = "3599"
        self.pause = 0.0
        self.says: Answering = says(200, ACK)
        self.gives: Answering = self.give

    async def __call__(self, asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        if asked.path.startswith(TOKEN):
            await self.gives(asked, writer)
        elif asked.headers.get("authorization") != f"Bearer {self.given[-1] if self.given else ''}":
            fault = {"requestId": "1", "errorCode": "404.001.03", "errorMessage": "Invalid Access Token"}
            write_json(writer, 404, fault)
        else:
            await self.says(asked, writer)

    async def give(self, _: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.pause)
        self.given.append(f"the-token-number-{len(self.given) + 1}")
        write_json(writer, 200, {"access_token": self.given[-1], "expires_in": self.lifetime})


def says(status: int, content: Any) -> Answering:
    """Return an answer in JSON."""

    async def answer(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        write_json(writer, status, content)

    return answer


def faults(status: int, code: str, message: str = "Something") -> Answering:
    """Return Daraja's error answer."""
    return says(status, {"requestId": "1", "errorCode": code, "errorMessage": message})


def proxy(status: int, code: str, message: str = "said by the proxy") -> Answering:
    """Return the error answer of the API proxy in front of Daraja."""
    return says(status, {"fault": {"faultstring": message, "detail": {"errorcode": code}}})


SOAP_FAULT = {
    "Envelope": {
        "Body": {
            "Fault": {
                "faultcode": "soap:Server",
                "faultstring": "Execution of a callout failed",
                "detail": {"source": {"errorcode": "steps.servicecallout.ExecutionFailed"}},
            }
        }
    }
}


def writes(status: int, body: bytes, **headers: str) -> Answering:
    """Return an answer in bytes."""

    async def answer(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        write(writer, status, body, **headers)

    return answer


async def breaks_off(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def answers_slowly(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
    await drip(writer, 200, 0.05)


def client_of(
    base: str, cache: Any = None, *, clock: Clock | None = None, key: bytes = b"k" * 32, timeout: float = 5.0
) -> DarajaClient:
    config = DarajaConfig(sandbox_url=base, live_url="http://127.0.0.1:9", connect_timeout=timeout, timeout=timeout)
    return DarajaClient(
        config, clock=clock or SetClock(NIGHT), ids=Ids(SetClock(NIGHT)), valkey=cache, sealer=Sealer([key])
    )


async def breaks_a_chunk(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}")
    await writer.drain()
    writer.close()


async def breaks_a_header(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}")
    await writer.drain()
    writer.close()


async def switches_protocols(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
    await writer.drain()
    writer.close()


UNREADABLE: list[Answering] = [
    breaks_a_chunk,
    breaks_a_header,
    switches_protocols,
    writes(302, b"", Location="http://[bad"),
    writes(200, b"not deflated", Content_Encoding="deflate"),
    writes(200, b"not zipped", Content_Encoding="gzip"),
    writes(200, b"[" * 100_000),
    writes(200, b'{"ResponseCode": ' + b"9" * 5000 + b"}"),
]
"""Answers that make the library or our parser raise."""


@asynccontextmanager
async def started(*clients: DarajaClient) -> AsyncGenerator[None]:
    for one in clients:
        await one.start()
    try:
        yield
    finally:
        for one in clients:
            await one.close()


@asynccontextmanager
async def daraja_client(**options: Any) -> AsyncGenerator[tuple[Daraja, ScriptedServer, DarajaClient]]:
    """Yield a scripted Daraja, its server, and a client of it."""
    daraja = Daraja()
    async with scripted(daraja) as server:
        client = client_of(server.base, **options)
        async with started(client):
            yield daraja, server, client


@asynccontextmanager
async def cache_at(url: str) -> AsyncGenerator[Any]:
    cache: Any = valkey.asyncio.from_url(url)  # type: ignore[no-untyped-call]
    try:
        yield cache
    finally:
        await cache.aclose()


async def push(client: DarajaClient, credentials: DarajaCredentials = CREDENTIALS) -> StkAck:
    request = StkPush(
        amount=Kes(500),
        phone=Msisdn.parse("254711000001"),
        callback_url="https://pay.example.co.ke/v1/cb/stk/token",
        account_reference="ORDER-1",
        description="Shoes",
    )
    return await client.call(STK_PUSH, credentials, request)


async def fault_of(kind: type[DarajaFault], client: DarajaClient) -> DarajaFault:
    """Return the fault of exactly this kind that a push ends in."""
    with pytest.raises(kind) as failed:
        await push(client)
    shown = f"{failed.value} {failed.value.provider} {failed.value.__dict__}"
    for secret in ("consumer-secret", "passkey-of", "the-token-number", "254711000001"):
        assert secret not in shown
    return failed.value


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_stk_push_has_darajas_fields_in_nairobi_time() -> None:
    async with daraja_client() as (_, server, client):
        ack = await push(client)
        assert ack == StkAck(
            merchant_request_id="29115-34620561-1",
            checkout_request_id="ws_CO_1",
        )
        (fetch,), (asked,) = server.of(TOKEN), server.of(PUSH)
    assert (fetch.method, fetch.path) == ("GET", TOKEN + "?grant_type=client_credentials")
    pair = base64.b64encode(b"consumer-key-of-tests:consumer-secret-of-tests").decode()
    assert fetch.headers["authorization"] == f"Basic {pair}"
    assert (asked.method, asked.headers["authorization"]) == ("POST", "Bearer the-token-number-1")
    assert asked.headers["content-type"].startswith("application/json")
    assert json.loads(asked.body) == {
        "BusinessShortCode": "174379",
        "Password": base64.b64encode(b"174379" + b"passkey-of-tests" + b"20261124013005").decode(),
        "Timestamp": "20261124013005",
        "TransactionType": "CustomerPayBillOnline",
        "Amount": 500,
        "PartyA": "254711000001",
        "PartyB": "174379",
        "PhoneNumber": "254711000001",
        "CallBackURL": "https://pay.example.co.ke/v1/cb/stk/token",
        "AccountReference": "ORDER-1",
        "TransactionDesc": "Shoes",
    }
    assert type(json.loads(asked.body)["Amount"]) is int


async def test_stk_push_to_a_till_names_the_store_and_the_till() -> None:
    async with daraja_client() as (_, server, client):
        await push(client, replace(CREDENTIALS, till_number="600001"))
        sent = json.loads(server.of(PUSH)[0].body)
    assert (sent["TransactionType"], sent["BusinessShortCode"], sent["PartyB"]) == (
        "CustomerBuyGoodsOnline",
        "174379",
        "600001",
    )


async def test_stk_query_has_the_same_password_and_reads_its_result_as_text() -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.says = says(200, {"ResponseCode": "0", "ResultCode": "1032", "ResultDesc": "Request cancelled by user"})
        answer = await client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1"))
        assert json.loads(server.of(QUERY)[0].body) == {
            "BusinessShortCode": "174379",
            "Password": base64.b64encode(b"174379passkey-of-tests20261124013005").decode(),
            "Timestamp": "20261124013005",
            "CheckoutRequestID": "ws_CO_1",
        }
        assert (answer.outcome.failure_reason, answer.result_desc) == ("cancelled_by_user", "Request cancelled by user")
        daraja.says = says(200, {"ResponseCode": "0", "ResultCode": 0, "ResultDesc": "Done"})
        assert (await client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1"))).outcome.is_paid


# -- the outcome of a push ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answering", "kind", "code"),
    [
        # not accepted
        (says(200, ACK | {"ResponseCode": "1"}), Rejected, "1"),
        (says(200, ACK | {"ResponseCode": 17}), Rejected, "17"),
        # faults that state that nothing was done
        (faults(400, "400.002.02", "Bad Request - Invalid PhoneNumber"), Rejected, "400.002.02"),
        (faults(400, "400.002.05"), Rejected, "400.002.05"),
        (faults(400, "400.003.02"), Rejected, "400.003.02"),
        (faults(403, "403.002.1001", "You are not authorized to initiate"), Rejected, "403.002.1001"),
        (faults(404, "404.001.01"), Rejected, "404.001.01"),
        (faults(404, "404.001.04"), Rejected, "404.001.04"),
        (faults(405, "405.001"), Rejected, "405.001"),
        (faults(400, "400.777.77"), Rejected, "400.777.77"),
        (faults(500, "500.001.1001", "Wrong credentials"), Rejected, "500.001.1001"),
        (faults(500, "500.001.1001", "Merchant does not exist"), Rejected, "500.001.1001"),
        (faults(500, "500.001.1001", "Unable to lock subscriber"), Rejected, "500.001.1001"),
        (faults(500, "500.001.1001", "[CBS - ] No ICCID found"), Rejected, "500.001.1001"),
        (faults(500, "500.002.1001", "Duplicate OriginatorConversationID"), OutcomeUnknown, "500.002.1001"),
        (faults(500, "500.002.1001", "System internal error."), OutcomeUnknown, "500.002.1001"),
        (faults(500, "500.002.1001", "The service is under maintenance just now"), NotSent, "500.002.1001"),
        # busy: nothing was done, and the request may be retried
        (faults(500, "500.003.02", "Spike arrest violation"), NotSent, "500.003.02"),
        (faults(429, "500.003.02", "System is busy"), NotSent, "500.003.02"),
        (faults(500, "500.003.02", "System is busy"), OutcomeUnknown, "500.003.02"),
        (faults(429, "429.001.01", "Too many requests"), NotSent, "429.001.01"),
        (proxy(429, "policies.ratelimit.SpikeArrestViolation"), NotSent, "policies.ratelimit.SpikeArrestViolation"),
        (proxy(500, "policies.ratelimit.SpikeArrestViolation"), NotSent, "policies.ratelimit.SpikeArrestViolation"),
        (proxy(200, "policies.ratelimit.QuotaViolation"), NotSent, "policies.ratelimit.QuotaViolation"),
        (says(429, {}), NotSent, "http_429"),
        (writes(429, b""), NotSent, "http_429"),
        (writes(429, b"<html>Slow down</html>", Content_Type="text/html"), NotSent, "http_429"),
        (
            proxy(504, "messaging.adaptors.http.flow.GatewayTimeout"),
            OutcomeUnknown,
            "messaging.adaptors.http.flow.GatewayTimeout",
        ),
        (says(500, SOAP_FAULT), OutcomeUnknown, "steps.servicecallout.ExecutionFailed"),
        (says(200, ACK | {"ResponseCode": "15"}), OutcomeUnknown, "15"),
        (says(200, ACK | {"ResponseCode": 100000000}), OutcomeUnknown, "100000000"),
        (faults(500, "500.003.03", "Quota violation"), NotSent, "500.003.03"),
        # everything else has an unknown outcome
        (faults(500, "500.003.1001", "Internal Server Error"), OutcomeUnknown, "500.003.1001"),
        (faults(500, "500.001.1001", "The transaction is being processed"), OutcomeUnknown, "500.001.1001"),
        (faults(500, "500.001.1001", "Something else"), OutcomeUnknown, "500.001.1001"),
        (faults(500, "500.777.77"), OutcomeUnknown, "500.777.77"),
        (faults(200, "500.003.1001"), OutcomeUnknown, "500.003.1001"),
        (says(500, {}), OutcomeUnknown, "http_500"),
        (says(400, {"fault": {"faultstring": "Bad"}}), OutcomeUnknown, "http_400"),
        (says(500, ACK | {"ResponseCode": "1"}), OutcomeUnknown, "http_500"),
        (says(200, {}), OutcomeUnknown, None),
        (says(200, ACK | {"CheckoutRequestID": " "}), OutcomeUnknown, None),
        (says(200, ACK | {"ResponseCode": "500.003.1001"}), OutcomeUnknown, "500.003.1001"),
        (says(200, ACK | {"ResponseCode": "100000005"}), OutcomeUnknown, "100000005"),
        (says(429, {"fault": "Rate limit quota violation"}), NotSent, "http_429"),
        (
            says(500, {"fault": {"faultstring": "Rate limit quota violation. Quota limit exceeded"}}),
            NotSent,
            "http_500",
        ),
        (says(500, {"fault": "Spike arrest violation. Allowed rate : 5ps"}), NotSent, "http_500"),
        (says(200, {"errorMessage": "Spike arrest violation"}), NotSent, "http_200"),
        (says(500, {"ErrorCode": "500.003.03", "ErrorMessage": "Quota"}), NotSent, "500.003.03"),
        (faults(500, "500.002.1001", "Service is currently under maintainance"), NotSent, "500.002.1001"),
        (says(200, ACK | {"CheckoutRequestID": None}), OutcomeUnknown, None),
        (says(200, [ACK]), OutcomeUnknown, None),
        (says(200, "accepted"), OutcomeUnknown, None),
        (writes(200, b"<html>Under maintenance</html>", Content_Type="text/html"), OutcomeUnknown, None),
        (writes(200, b""), OutcomeUnknown, None),
        (writes(204, b""), OutcomeUnknown, None),
        (writes(200, b'{"ResponseCode": "0", "Merch'), OutcomeUnknown, None),
        (writes(403, b"<html>Incident 123-456</html>", Content_Type="text/html"), OutcomeUnknown, None),
        (writes(401, b""), OutcomeUnknown, None),
        (writes(502, b"<html>Bad gateway</html>", Content_Type="text/html"), OutcomeUnknown, None),
        (writes(503, b""), OutcomeUnknown, None),
        (writes(504, b""), OutcomeUnknown, None),
        (writes(302, b"", Location="/elsewhere"), OutcomeUnknown, None),
        (writes(307, b"", Location="/elsewhere"), OutcomeUnknown, None),
        (breaks_off, OutcomeUnknown, None),
    ],
)
async def test_stk_push_fault_has_its_certainty_and_is_not_repeated(
    answering: Answering, kind: type[DarajaFault], code: str | None
) -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.says = answering
        fault = await fault_of(kind, client)
        assert fault.code == code
        assert (len(server.of(PUSH)), len(server.of(TOKEN)), len(server.asked)) == (1, 1, 2)
    assert (fault.provider is None) == (fault.code is None)
    assert kind is not NotSent or (fault.retryable and fault.retry_after)


async def test_stk_push_refusal_has_darajas_text_without_phone_numbers() -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.says = faults(400, "400.002.02", "Bad Request - Invalid PartyA 254711000001")
        fault = await fault_of(Rejected, client)
        assert fault.provider is not None
        assert fault.provider["errorCode"] == "400.002.02"
        assert "Invalid PartyA" in fault.provider["errorMessage"]
        assert fault.provider["mitigation"]
        assert (fault.retryable, fault.failure_reason) == (False, "rejected_by_provider")
        daraja.says = faults(500, "500.001.1001", "Unable to lock subscriber")
        fault = await fault_of(Rejected, client)
        assert (fault.retryable, fault.failure_reason) == (True, "duplicate_in_progress")
        daraja.says = faults(500, "500.003.02", "Spike arrest violation")
        fault = await fault_of(NotSent, client)
        assert fault.retryable
        assert fault.retry_after
        daraja.says = says(200, ACK | {"ResponseCode": "1", "ResponseDescription": "no 254711000001"})
        fault = await fault_of(Rejected, client)
        assert fault.provider_message == "no 2547****001"


async def test_stk_push_with_a_slow_answer_times_out_with_unknown_outcome() -> None:
    async with daraja_client(timeout=0.5) as (daraja, server, client):
        daraja.says = answers_slowly
        # Without a timeout, it would last for minutes.
        async with asyncio.timeout(60):
            await fault_of(OutcomeUnknown, client)
        assert len(server.of(PUSH)) == 1
        # The rest of that answer is not read as the next one.
        daraja.says = says(200, ACK)
        assert (await push(client)).checkout_request_id == "ws_CO_1"


async def test_stk_push_without_a_listener_is_not_sent(valkey_url: str) -> None:
    with listening() as free:
        base = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with cache_at(valkey_url) as cache:
        client = client_of(base, cache)
        async with started(client):
            fault = await fault_of(NotSent, client)
            assert fault.retry_after
            # Nor with a token, if the push itself finds no listener.
            await share(cache, base, "from-another-process")
            fault = await fault_of(NotSent, client)
            assert fault.retry_after


async def test_stk_push_of_a_client_that_was_not_started_is_not_sent() -> None:
    async with scripted(Daraja()) as server:
        await fault_of(NotSent, client_of(server.base))
        assert server.connections == 0


async def test_connection_closed_by_daraja_is_not_used_again() -> None:
    async def then_closes(_: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        write_json(writer, 200, ACK)
        writer.close()

    async with daraja_client() as (daraja, server, client):
        daraja.says = then_closes
        for _ in range(3):
            await push(client)
            await asyncio.sleep(0.05)
        assert len(server.of(PUSH)) == 3


async def test_stk_push_ignores_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(Daraja()) as proxy:
        set_proxy_environment(proxy.base, monkeypatch)
        async with daraja_client() as (_, _, client):
            await push(client)
        assert proxy.connections == 0


async def test_stk_push_ack_without_merchant_request_id_keeps_the_checkout_request_id() -> None:
    async with daraja_client() as (daraja, _, client):
        for missing in (None, "", " "):
            daraja.says = says(200, ACK | {"MerchantRequestID": missing})
            assert await push(client) == StkAck(merchant_request_id=None, checkout_request_id="ws_CO_1")


NAMED = [
    says(500, ACK),
    says(202, ACK),
    says(400, ACK),
    says(429, ACK),
    says(200, ACK | {"ResponseCode": None}),
    says(500, ACK | {"errorCode": "500.003.1001", "errorMessage": "Internal Server Error"}),
]
"""Answers that name a push, with missing or extra fields."""


@pytest.mark.parametrize("answering", NAMED)
async def test_stk_push_answer_that_names_the_push_keeps_its_name(answering: Answering) -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.says = answering
        assert (await push(client)).checkout_request_id == "ws_CO_1"
        assert len(server.of(PUSH)) == 1


def says_twice(name: str, *values: str) -> Answering:
    """Return an acknowledgement with one field repeated."""
    others = {field: value for field, value in ACK.items() if field != name}
    fields = [*((field, json.dumps(value)) for field, value in others.items()), *((name, value) for value in values)]
    body = "{" + ", ".join(f'"{field}": {value}' for field, value in fields) + "}"
    return writes(200, body.encode(), Content_Type="application/json")


async def test_stk_push_ack_that_contradicts_itself_keeps_only_an_unambiguous_name() -> None:
    async with daraja_client() as (daraja, server, client):
        for values in (('"0"', '"1"'), ('"1"', '"0"'), ('"0"', "0")):
            daraja.says = says_twice("ResponseCode", *values)
            assert (await push(client)).checkout_request_id == "ws_CO_1"
        daraja.says = says_twice("CheckoutRequestID", '"ws_CO_1"', '"ws_CO_2"')
        await fault_of(OutcomeUnknown, client)
        assert len(server.of(PUSH)) == 4


async def test_stk_query_answer_that_contradicts_itself_proves_nothing() -> None:
    async with daraja_client() as (daraja, _, client):
        for first, second in (('"0"', '"1032"'), ('"1032"', '"0"')):
            names = '"ResponseCode": "0", "CheckoutRequestID": "ws_CO_1"'
            said = f'{{{names}, "ResultCode": {first}, "ResultCode": {second}}}'
            daraja.says = writes(200, said.encode(), Content_Type="application/json")
            with pytest.raises(DarajaFault):
                await client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1"))


@pytest.mark.parametrize("operation", ["transaction_status", "reverse"])
async def test_conversation_of_an_answer_with_an_unusual_status_is_kept(operation: str) -> None:
    said = {"OriginatorConversationID": "o", "ConversationID": "AG", "ResponseCode": "0"}
    for status in (202, 400, 429, 500):
        async with daraja_client() as (daraja, _, client):
            daraja.says = says(status, said)
            assert (await call(client, operation)).conversation_id == "AG"


@pytest.mark.parametrize("answering", [writes(401, b""), writes(401, b"<html>"), says(401, {"error": "invalid_token"})])
async def test_token_after_any_401_is_dropped(answering: Answering) -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.says = answering
        await fault_of(OutcomeUnknown, client)
        daraja.says = says(200, ACK)
        await push(client)
        assert (len(server.of(PUSH)), len(server.of(TOKEN))) == (2, 2)


async def test_token_after_a_message_without_a_code_is_renewed() -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.says = says(200, {"requestId": "1", "errorMessage": "Invalid Access Token"})
        await fault_of(NotSent, client)
        assert (len(server.of(PUSH)), len(server.of(TOKEN))) == (2, 2)


@pytest.mark.parametrize("code", ["1", 1, "500.001.1001", "500.003.1001", "17"])
@pytest.mark.parametrize("result", ["0", "1032"])
async def test_stk_query_answer_that_was_not_accepted_proves_nothing(code: Any, result: str) -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.says = says(200, {"ResponseCode": code, "ResultCode": result, "ResultDesc": "said"})
        with pytest.raises(DarajaFault):
            await client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1"))


@pytest.mark.parametrize("code", ["0", 0, 0.0, "0.0", "00000000", "000", " 0 ", -0.0])
async def test_ack_with_any_zero_is_accepted(code: Any) -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.says = says(200, ACK | {"ResponseCode": code})
        assert (await push(client)).checkout_request_id == "ws_CO_1"
        ids = {"OriginatorConversationID": "o-1", "ConversationID": "AG_1"}
        daraja.says = says(200, ids | {"ResponseCode": code, "ResponseDescription": "ok"})
        for operation in ("reverse", "transaction_status"):
            assert (await call(client, operation)).response_code == "0"
        assert len(server.of(TOKEN)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"ResponseCode": "0", "CheckoutRequestID": "ws_CO_1", "CustomerMessage": "Caf\xe9"}',
        b'\xef\xbb\xbf{"ResponseCode": "0", "CheckoutRequestID": "ws_CO_1"}',
        b'{"ResponseCode": "0", "CheckoutRequestID": "ws_CO_1", "CustomerMessage": "a\tb"}\r\n<!-- x -->',
        b'{"ResponseCode": "0", "CheckoutRequestID": "ws_CO_1", "CustomerMessage": "\\ud800"}',
    ],
)
async def test_stk_push_ack_that_is_not_strict_json_is_read(body: bytes) -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.says = writes(200, body, Content_Type="application/json")
        assert (await push(client)).checkout_request_id == "ws_CO_1"


@pytest.mark.parametrize(("header", "seconds"), [("30", 30), ("99999", 300), ("0", 1), ("soon", 10), ("-3", 10)])
async def test_rate_limit_retry_after_is_honoured_within_bounds(header: str, seconds: int) -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.says = writes(429, b"", Retry_After=header)
        assert (await fault_of(NotSent, client)).retry_after == seconds


async def test_fault_text_carries_no_secret_of_the_call() -> None:
    async with daraja_client() as (daraja, server, client):
        await push(client)
        sent = json.loads(server.of(PUSH)[0].body)["Password"]
        basic = base64.b64encode(b"consumer-key-of-tests:consumer-secret-of-tests").decode()
        for secret in ("the-token-number-1", sent, "consumer-secret-of-tests", "passkey-of-tests"):
            daraja.says = faults(400, "400.002.02", f"Bad Request {secret} for 0711 000 001\r\n\x1b[31m{basic}")
            fault = await fault_of(Rejected, client)
            assert fault.provider_message is not None
            assert secret not in fault.provider_message
            assert "000 001" not in fault.provider_message
            assert fault.provider_message.isprintable()
        daraja.says = faults(400, "400.002.02", "x" * 10_000)
        assert len((await fault_of(Rejected, client)).provider_message or "") == 300


# -- status queries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answering",
    [
        faults(500, "500.001.1001", "The transaction is being processed"),
        faults(200, "500.001.1001", "The transaction is being processed"),
        faults(500, "500.001.1001", "The transaction does not exist"),
        says(200, {"ResponseCode": "0", "ResultCode": "4999", "ResultDesc": "Under processing"}),
        says(200, {"ResponseCode": "0", "ResultCode": 4999, "ResultDesc": "The transaction is still under processing"}),
        # Trouble of M-Pesa, and unknown codes, do not end a push.
        says(200, {"ResponseCode": "0", "ResultCode": "9999", "ResultDesc": "An error occurred"}),
        says(200, {"ResponseCode": "0", "ResultCode": 9999.0}),
        says(200, {"ResponseCode": "0", "ResultCode": "26", "ResultDesc": "System busy"}),
        says(200, {"ResponseCode": "0", "ResultCode": "7777", "ResultDesc": "A new kind of trouble"}),
        says(200, {"ResponseCode": "0", "ResultCode": "SFC_IC9999"}),
    ],
)
async def test_stk_query_of_an_open_prompt_is_pending(answering: Answering) -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.says = answering
        outcome = (await client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1"))).outcome
    assert (outcome.is_pending, outcome.is_paid) == (True, False)


@pytest.mark.parametrize(
    ("answering", "kind"),
    [
        (says(200, {"ResponseCode": "0"}), OutcomeUnknown),
        (says(200, {"ResponseCode": "0", "ResultCode": None}), OutcomeUnknown),
        (writes(200, b"<html></html>"), OutcomeUnknown),
        (writes(503, b""), OutcomeUnknown),
        (breaks_off, OutcomeUnknown),
        (faults(500, "500.003.02", "Spike arrest violation"), NotSent),
        (faults(400, "400.002.02", "Invalid CheckoutRequestID"), Rejected),
    ],
)
async def test_stk_query_without_a_result_proves_nothing(answering: Answering, kind: type[DarajaFault]) -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.says = answering
        with pytest.raises(kind):
            await client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1"))


# -- unexpected errors -------------------------------------------------------------------------------------------------


async def call(client: DarajaClient, operation: str) -> Any:
    """One call of any operation, with the credentials of these tests."""
    initiator = Initiator("testapi", Secret("encrypted"))
    to: dict[str, Any] = {"result_url": "https://pay.example/1", "timeout_url": "https://pay.example/2", "remarks": "r"}
    if operation == "stk_push":
        return await push(client)
    if operation == "stk_query":
        return await client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1"))
    if operation == "transaction_status":
        status = TransactionStatus(initiator=initiator, receipt="TKN4A1B2C3", conversation_id=None, **to)
        return await client.call(TRANSACTION_STATUS, CREDENTIALS, status)
    if operation == "reverse":
        reversal = ReversalRequest(initiator=initiator, receipt="TKN4A1B2C3", amount=Kes(500), **to)
        return await client.call(REVERSAL, CREDENTIALS, reversal)
    if operation == "pull_register":
        number = Msisdn.parse("254708374149")
        registration = PullRegistration(nominated_number=number, callback_url="https://pay.example/3")
        return await client.call(PULL_REGISTER, CREDENTIALS, registration)
    return await client.call(PULL_QUERY, CREDENTIALS, PullQuery(start=NIGHT - timedelta(hours=2), end=NIGHT, offset=0))


OPERATIONS = ("stk_push", "stk_query", "transaction_status", "reverse", "pull_register", "pull_query")


TAKEN: dict[str, Any] = ACK | {
    "OriginatorConversationID": "o-1",
    "ConversationID": "AG_1",
    "ResultCode": "0",
    "ResponseStatus": "1000",
    "Response": [[]],
}
"""An answer that every operation accepts."""


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_with_an_invalid_token_renews_it_once_and_is_repeated_once(operation: str) -> None:
    async with daraja_client() as (daraja, server, client):
        await push(client)

        async def refuses_the_first(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
            if asked.headers["authorization"].endswith("-1"):
                text = "Error Occurred - Invalid Access Token - the-token-number-1"
                await faults(401, "401.002.01", text)(asked, writer)
            else:
                write_json(writer, 200, TAKEN)

        daraja.says = refuses_the_first
        await call(client, operation)
        assert (len(daraja.given), len(server.asked)) == (2, 5)
        daraja.says = faults(401, "401.002.01", "Error Occurred - Invalid Access Token - the-token-number-2")
        with pytest.raises(NotSent) as refused:
            await call(client, operation)
        assert "the-token" not in f"{refused.value.provider}"
        # The invalid token is not kept.
        daraja.says = says(200, TAKEN)
        await call(client, operation)
        assert server.asked[-1].headers["authorization"].endswith(f"-{len(daraja.given)}")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_refused_by_the_proxy_was_not_sent(operation: str) -> None:
    async with daraja_client() as (daraja, _, client):
        for status in (429, 500):
            daraja.says = proxy(status, "policies.ratelimit.SpikeArrestViolation")
            with pytest.raises(NotSent) as refused:
                await call(client, operation)
            assert (refused.value.retryable, refused.value.retry_after) == (True, 10)


# The library does not close a connection with an unreadable answer; the garbage collector does, at the end of these
# tests.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("answering", UNREADABLE)
async def test_operation_with_unreadable_answer_has_unknown_outcome(
    answering: Answering,
) -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.says = answering
        for operation in OPERATIONS:
            with pytest.raises(OutcomeUnknown):
                await call(client, operation)
        # No part of such an answer is read as the next one.
        daraja.says = says(200, ACK)
        assert (await push(client)).checkout_request_id == "ws_CO_1"
    gc.collect()


@pytest.mark.parametrize("kind", [RecursionError, ValueError, TypeError, KeyError, ZeroDivisionError, MemoryError])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_operation_with_unexpected_library_error_has_unknown_outcome(
    operation: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with daraja_client() as (_, _, client):
        await push(client)

        async def fail(*_: Any, **__: Any) -> None:
            raise kind("with 254711000001 in it")

        monkeypatch.setattr("niquests.AsyncSession.request", fail)
        with pytest.raises(OutcomeUnknown) as failed:
            await call(client, operation)
        assert "254711000001" not in str(failed.value)


# The library does not close a connection with an unreadable answer; the garbage collector does, at the end of these
# tests.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("answering", UNREADABLE)
async def test_token_with_unreadable_answer_means_not_sent(answering: Answering) -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.gives = answering
        for operation in OPERATIONS:
            with pytest.raises(NotSent):
                await call(client, operation)
        with pytest.raises(NotSent):
            await client.verify(CREDENTIALS)
        assert not server.of(PUSH)
    gc.collect()


@pytest.mark.parametrize("lifetime", ["\u00b2", "9" * 5000, "9" * 20, -1, 0, "", [], {}])
async def test_token_with_an_invalid_lifetime_is_used_for_an_hour_at_most(lifetime: Any) -> None:
    async with daraja_client() as (daraja, _, client):
        daraja.lifetime = lifetime
        assert (await push(client)).checkout_request_id == "ws_CO_1"
        until = await client.token_expiry(CREDENTIALS)
        assert until is not None
        assert timedelta(0) < until - NIGHT <= timedelta(hours=1)


async def test_call_of_an_account_with_too_many_open_calls_is_not_sent() -> None:
    async with scripted(Daraja()) as server:
        config = DarajaConfig(sandbox_url=server.base, live_url="http://127.0.0.1:9", max_concurrent_per_key=2)
        client = DarajaClient(
            config, clock=SetClock(NIGHT), ids=Ids(SetClock(NIGHT)), valkey=None, sealer=Sealer([b"k" * 32])
        )
        daraja = server.answer
        assert isinstance(daraja, Daraja)
        async with started(client):
            daraja.says = answers_slowly
            hanging = [asyncio.create_task(push(client)) for _ in range(2)]

            async def both_wait() -> bool:
                return len(server.of(PUSH)) == 2

            await eventually(both_wait)
            assert (await fault_of(NotSent, client)).retry_after
            assert len(server.of(PUSH)) == 2
            # Another account has its own limit.
            daraja.says = says(200, ACK)
            other = replace(CREDENTIALS, consumer_key=Secret("another-consumer-key"))
            assert (await push(client, other)).checkout_request_id == "ws_CO_1"
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)
            # Cancelled calls free their slots.
            daraja.given.clear()
            await client.verify(CREDENTIALS)
            assert (await push(client)).checkout_request_id == "ws_CO_1"


async def test_cancelled_call_raises_cancelled_error() -> None:
    async with daraja_client() as (daraja, server, client):
        await push(client)
        daraja.says = answers_slowly
        work = asyncio.create_task(client.call(STK_QUERY, CREDENTIALS, StkQuery("ws_CO_1")))
        await eventually(lambda: _is_asked(server, QUERY))
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work


async def _is_asked(server: ScriptedServer, path: str) -> bool:
    return bool(server.of(path))


# -- the token ---------------------------------------------------------------------------------------------------------


async def share(cache: Any, base: str, text: str) -> None:
    """Store a token in the shared cache, as another process would."""
    tokens = AccessTokens(SetClock(NIGHT), cache, Sealer([b"k" * 32]), "mpesa", secrets.token_bytes)
    owner = AccessTokens.owner(base, CREDENTIALS.consumer_key.reveal(), CREDENTIALS.consumer_secret.reveal())
    await tokens.put(owner, AccessToken(text, NIGHT + timedelta(minutes=50)))


async def test_token_is_shared_by_many_calls() -> None:
    async with daraja_client() as (daraja, server, client):
        await asyncio.gather(*(push(client) for _ in range(10)))
        await push(client)
        assert (len(server.of(TOKEN)), len(server.of(PUSH)), len(daraja.given)) == (1, 11, 1)


INVALID_TOKEN: list[tuple[str, Answering]] = [
    *(
        (code, faults(status, code, "Invalid Access Token"))
        for code, status in (("401.001", 401), ("404.001.03", 404), ("400.003.01", 400), ("404.001.03", 200))
    ),
    ("401.002.01", faults(401, "401.002.01", "Error Occurred - Invalid Access Token - abc")),
    ("401.003.01", faults(401, "401.003.01", "Error Occurred: Invalid API call as no apiproduct match found")),
    ("401", faults(401, "401", "Invalid Access Token")),
    ("500.001.1001", faults(200, "500.001.1001", "Invalid Access Token")),
    (
        "keymanagement.service.invalid_access_token",
        proxy(401, "keymanagement.service.invalid_access_token", "the token is not valid"),
    ),
    ("1", says(200, ACK | {"ResponseCode": "1", "ResponseDescription": "Invalid Access Token"})),
]


@pytest.mark.parametrize(("code", "refuses"), INVALID_TOKEN)
async def test_token_that_is_invalid_is_replaced_and_the_call_repeated_once(code: str, refuses: Answering) -> None:
    async with daraja_client() as (daraja, server, client):
        await push(client)

        async def refuses_the_first(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
            if asked.headers["authorization"].endswith("-1"):
                await refuses(asked, writer)
            else:
                write_json(writer, 200, ACK)

        daraja.says = refuses_the_first
        assert (await push(client)).checkout_request_id == "ws_CO_1"
        bearers = [asked.headers["authorization"][-1] for asked in server.of(PUSH)]
        assert (bearers, len(daraja.given)) == (["1", "1", "2"], 2)
        assert server.of(PUSH)[1].body == server.of(PUSH)[2].body
        # If the new token is invalid too, it ends there: nothing was done.
        daraja.says = refuses
        fault = await fault_of(NotSent, client)
        assert fault.code == code
        assert "abc" not in (fault.provider_message or "")
        assert (len(server.of(PUSH)), len(daraja.given)) == (5, 3)
        # The rejected token is not tried again.
        daraja.says = says(200, ACK)
        await push(client)
        assert server.of(PUSH)[-1].headers["authorization"].endswith("-4")


async def test_token_of_twenty_calls_in_two_processes_is_fetched_once(valkey_url: str) -> None:
    daraja = Daraja()
    daraja.pause = 0.3
    async with scripted(daraja) as server, cache_at(valkey_url) as one, cache_at(valkey_url) as other:
        first, second = client_of(server.base, one), client_of(server.base, other)
        async with started(first, second):
            await asyncio.gather(*(push(client) for client in (first, second) * 10))
        assert (len(daraja.given), len(server.of(TOKEN)), len(server.of(PUSH))) == (1, 1, 20)
        # A process that starts later uses the cached token.
        third = client_of(server.base, one)
        async with started(third):
            await push(third)
        assert len(server.of(TOKEN)) == 1


async def test_token_refused_for_twenty_calls_is_fetched_once(valkey_url: str) -> None:
    daraja = Daraja()
    daraja.pause = 0.2
    async with scripted(daraja) as server, cache_at(valkey_url) as one, cache_at(valkey_url) as other:
        first, second = client_of(server.base, one), client_of(server.base, other)
        async with started(first, second):
            await asyncio.gather(push(first), push(second))
            daraja.given.append("the-token-of-another-client")
            await asyncio.gather(*(push(client) for client in (first, second) * 10))
        assert len(server.of(TOKEN)) == 2


async def test_token_replaced_by_another_process_is_used(valkey_url: str) -> None:
    daraja = Daraja()
    async with scripted(daraja) as server, cache_at(valkey_url) as cache:
        first, second = client_of(server.base, cache), client_of(server.base, cache)
        async with started(first, second):
            await push(first)
            await second.verify(CREDENTIALS)
            await push(first)
            await push(second)
        assert len(server.of(TOKEN)) == 2
        assert [asked.headers["authorization"][-1] for asked in server.of(PUSH)] == ["1", "1", "2", "2"]


async def test_tokens_of_two_merchants_are_kept_apart(valkey_url: str) -> None:
    async with cache_at(valkey_url) as cache, daraja_client(cache=cache) as (daraja, server, client):
        await push(client)
        other = replace(CREDENTIALS, consumer_key=Secret("another-key"))
        await push(client, other)
        assert len(daraja.given) == 2
        assert [asked.headers["authorization"][-1] for asked in server.of(PUSH)] == ["1", "2"]


async def test_token_in_valkey_is_sealed(valkey_url: str) -> None:
    async with cache_at(valkey_url) as cache, daraja_client(cache=cache) as (daraja, server, client):
        await push(client)
        names = [name async for name in cache.scan_iter()]
        kept = {name: await cache.dump(name) for name in names}
        values = {name: await cache.get(name) for name in names}
        assert len(names) == 1, "the token, and no lock left behind"
        assert 0 < await cache.ttl(names[0]) <= 3599 - 300
        for text in (daraja.given[0], "consumer-key", "consumer-secret", server.base):
            for encoded in (text.encode(), base64.b64encode(text.encode()).rstrip(b"=")[:-2]):
                assert encoded not in b"".join(names) + b"".join(kept.values()) + b"".join(values.values())
        # A process with another master key cannot open it, and fetches its own.
        stranger = client_of(server.base, cache, key=b"x" * 32)
        async with started(stranger):
            await push(stranger)
        assert len(daraja.given) == 2
        # Any other cached value is ignored.
        await cache.set(names[0], b"nonsense")
        newcomer = client_of(server.base, cache)
        async with started(newcomer):
            await push(newcomer)
        assert len(daraja.given) == 3


async def test_token_without_valkey_is_kept_by_each_process() -> None:
    daraja = Daraja()
    with listening() as free:
        url = f"valkey://127.0.0.1:{free.getsockname()[1]}/0"
    async with scripted(daraja) as server, cache_at(url) as dead:
        for cache in (None, dead):
            client = client_of(server.base, cache)
            async with started(client):
                await asyncio.gather(*(push(client) for _ in range(5)))
                await client.verify(CREDENTIALS)
                await push(client)
    assert len(daraja.given) == 4


async def test_token_with_an_unresponsive_valkey_is_fetched_soon() -> None:
    asked: list[bytes] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while heard := await reader.read(4096):
            asked.append(heard)
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"valkey://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        async with cache_at(url) as cache, daraja_client(cache=cache) as (_, _, client):
            async with asyncio.timeout(60):
                await push(client)
            assert asked
            asked.clear()
            await push(client)
            assert not asked, "the token that was fetched is used, and Valkey not asked for it"


async def test_token_with_the_lock_of_a_dead_process_is_fetched_soon(valkey_url: str) -> None:
    async with cache_at(valkey_url) as cache, daraja_client(cache=cache) as (daraja, server, client):
        owner = AccessTokens.owner(server.base, CREDENTIALS.consumer_key.reveal(), CREDENTIALS.consumer_secret.reveal())
        lock = f"mpesa:daraja_token:{owner}:lock"
        await cache.set(lock, b"of the dead", px=300)
        held: list[bytes | None] = []

        async def gives(asked: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
            held.append(await cache.get(lock))
            await daraja.give(asked, writer)

        daraja.gives = gives
        async with asyncio.timeout(60):
            await push(client)
        assert len(daraja.given) == 1
        assert held[0] not in {None, b"of the dead"}, "fetched only once the lock was ours"


@pytest.mark.parametrize(
    ("lifetime", "used"),
    [
        ("3599", 3299),
        (3599, 3299),
        ("3599.0", 3299),
        ("60", 30),
        (None, 3299),
        ("soon", 3299),
        (600, 300),
        ("99999999999999999999", 3299),
        (10**30, 3299),
        (1e9, 3299),
        ("1e99", 3299),
        (-5, 3299),
        (0, 5),
        ([], 3299),
    ],
)
async def test_token_is_replaced_before_it_ends(lifetime: Any, used: int) -> None:
    clock = SetClock(NIGHT)
    async with daraja_client(clock=clock) as (daraja, _, client):
        daraja.lifetime = lifetime
        await push(client)
        clock.advance(timedelta(seconds=used - 1))
        await push(client)
        assert len(daraja.given) == 1
        clock.advance(timedelta(seconds=1))
        await push(client)
        assert len(daraja.given) == 2


@pytest.mark.parametrize(
    ("answering", "kind"),
    [
        # Only Daraja's own JSON blames the credentials.
        (writes(400, b""), NotSent),
        (writes(401, b""), NotSent),
        (writes(403, b"<html>no</html>"), NotSent),
        (writes(403, b""), NotSent),
        (writes(401, b"<html>no</html>", Content_Type="text/html"), NotSent),
        (says(403, {}), NotSent),
        (says(401, {"error": "denied by the firewall"}), NotSent),
        (faults(401, "401.003.01", "Invalid Access Token"), Rejected),
        (faults(400, "400.003.01", "Invalid Access Token"), Rejected),
        (faults(404, "404.001.03", "Invalid Access Token"), Rejected),
        (faults(401, "401.777.77", "No such consumer"), Rejected),
        (proxy(401, "keymanagement.service.invalid_client"), Rejected),
        (proxy(429, "policies.ratelimit.SpikeArrestViolation"), NotSent),
        (proxy(500, "policies.ratelimit.SpikeArrestViolation"), NotSent),
        (writes(429, b""), NotSent),
        (faults(500, "500.002.1001", "Service is currently under maintenance"), NotSent),
        (faults(400, "400.008.01", "Invalid Authentication passed"), Rejected),
        (faults(400, "400.008.02", "Invalid grant type passed"), Rejected),
        (faults(401, "401.002.01"), Rejected),
        (faults(500, "500.003.02", "Spike arrest violation"), NotSent),
        (faults(429, "500.003.03", "Quota violation"), NotSent),
        (faults(500, "500.003.1001", "Internal Server Error"), NotSent),
        (writes(500, b""), NotSent),
        (writes(503, b""), NotSent),
        (writes(200, b""), NotSent),
        (writes(200, b"<html>Under maintenance</html>", Content_Type="text/html"), NotSent),
        (writes(302, b"", Location="/elsewhere"), NotSent),
        (says(200, {"expires_in": "3599"}), NotSent),
        (says(200, {"access_token": "", "expires_in": "3599"}), NotSent),
        (says(200, ["token"]), NotSent),
        (says(200, {"access_token": "line\nbreak", "expires_in": "3599"}), NotSent),
        (says(200, {"access_token": "line-break-at-the-end\r\n", "expires_in": "3599"}), NotSent),
        (says(200, {"access_token": "nul\x00", "expires_in": "3599"}), NotSent),
        (says(200, {"access_token": "two words", "expires_in": "3599"}), NotSent),
        (says(200, {"access_token": "t\u00f6ken", "expires_in": "3599"}), NotSent),
        (says(200, {"access_token": 12345, "expires_in": "3599"}), NotSent),
        (says(200, {"access_token": "x" * 5000, "expires_in": "3599"}), NotSent),
        (says(401, {"access_token": "token", "expires_in": "3599"}), NotSent),
        (breaks_off, NotSent),
    ],
)
async def test_call_without_a_token_is_not_sent(answering: Answering, kind: type[DarajaFault]) -> None:
    async with daraja_client() as (daraja, server, client):
        daraja.gives = answering
        fault = await fault_of(kind, client)
        assert kind is Rejected or fault.retry_after
        with pytest.raises(kind):
            await client.verify(CREDENTIALS)
        assert (len(server.of(TOKEN)), len(server.of(PUSH))) == (2, 0), "asked once for each call"
        # A failure is not cached.
        daraja.gives = daraja.give
        assert (await push(client)).checkout_request_id == "ws_CO_1"


async def test_token_with_a_slow_answer_times_out_and_nothing_was_sent() -> None:
    async with daraja_client(timeout=0.5) as (daraja, server, client):
        daraja.gives = answers_slowly
        # Without a timeout, it would last for minutes.
        async with asyncio.timeout(60):
            await fault_of(NotSent, client)
        assert server.of(PUSH) == []


async def test_verify_stores_a_token_that_later_calls_use(valkey_url: str) -> None:
    async with cache_at(valkey_url) as cache, daraja_client(cache=cache) as (daraja, server, client):
        await push(client)
        await client.verify(CREDENTIALS)
        await push(client)
        assert len(daraja.given) == 2
        assert [asked.headers["authorization"][-1] for asked in server.of(PUSH)] == ["1", "2"]
