"""A Daraja scripted by the test, word for word, that records its requests."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import msgspec

from mpesa_gateway.app import Gateway
from mpesa_gateway.client_ip import read_networks
from mpesa_gateway.clock import EAT
from mpesa_gateway.testing.serving import eventually
from mpesa_gateway_callbacks.verifier import CallbackVerifier
from tests.kernel.scripted import ScriptedRequest, scripted, write

PATHS = {
    "/oauth/v1/generate": "oauth",
    "/mpesa/stkpush/v1/processrequest": "stkpush",
    "/mpesa/stkpushquery/v1/query": "stkquery",
    "/mpesa/transactionstatus/v1/query": "transactionstatus",
    "/mpesa/reversal/v1/request": "reversal",
    "/pulltransactions/v1/register": "pullregister",
    "/pulltransactions/v1/query": "pullquery",
    "/mpesa/c2b/v1/registerurl": "c2bregister1",
    "/mpesa/c2b/v2/registerurl": "c2bregister2",
}

DarajaAnswer = tuple[int, Any]
"""An HTTP status, and JSON (or bytes, sent as they are)."""


def fault(code: str, message: str, status: int = 500) -> DarajaAnswer:
    """Return an answer in Daraja's error format."""
    return status, {"requestId": "r-1", "errorCode": code, "errorMessage": message}


PROCESSING = fault("500.001.1001", "The transaction is being processed")


C2B_REGISTERED: DarajaAnswer = (
    200,
    {"OriginatorCoversationID": "o-1", "ResponseCode": "0", "ResponseDescription": "Success"},
)


def stk_result(code: str, text: str = "said") -> DarajaAnswer:
    """Return the state of a push, as STK query reports it."""
    return 200, {"ResponseCode": "0", "ResponseDescription": "ok", "ResultCode": code, "ResultDesc": text}


@dataclass
class Daraja:
    """The answers of each operation: the next scripted answer, else the usual one."""

    base: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    answers: dict[str, list[DarajaAnswer | Callable[[dict[str, Any]], DarajaAnswer]]] = field(
        default_factory=dict[str, list[DarajaAnswer | Callable[[dict[str, Any]], DarajaAnswer]]]
    )
    held: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    held_of: dict[str, str] = field(default_factory=dict[str, str])
    _number: int = 0

    def add_answers(self, operation: str, *answers: DarajaAnswer | Callable[[dict[str, Any]], DarajaAnswer]) -> None:
        """Append the next answers of an operation."""
        self.answers.setdefault(operation, []).extend(answers)

    def hold(self, operation: str, of: str = "") -> asyncio.Event:
        """Delay the answers to requests that contain ``of`` until the event is set."""
        self.held[operation] = asyncio.Event()
        self.held_of[operation] = of
        return self.held[operation]

    def requests_of(self, operation: str) -> list[dict[str, Any]]:
        """Return the request bodies of an operation."""
        return [body for name, body in self.asked if name == operation]

    async def wait_for_requests(self, operation: str, count: int = 1, patience: float = 15.0) -> list[dict[str, Any]]:
        """Wait for ``count`` requests of an operation. Raises TimeoutError after ``patience`` seconds."""

        async def is_asked() -> bool:
            return len(self.requests_of(operation)) >= count

        await eventually(is_asked, patience)
        return self.requests_of(operation)

    async def answer(self, one: ScriptedRequest, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        operation = PATHS[one.path.partition("?")[0]]
        body: dict[str, Any] = msgspec.json.decode(one.body) if one.body else {}
        self.asked.append((operation, body))
        if operation in self.held and self.held_of.get(operation, "") in f"{one.headers}{body}":
            await self.held[operation].wait()
        line = self.answers.get(operation)
        said = line.pop(0) if line else self._usual(operation)
        status, content = said(body) if callable(said) else said
        if operation == "stkquery" and isinstance(content, dict) and "ResultCode" in content:
            # The answer names the push of the request, unless the test sets another.
            named: dict[str, Any] = {"CheckoutRequestID": body.get("CheckoutRequestID")}
            content = named | cast("dict[str, Any]", content)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        write(writer, status, raw, Content_Type="application/json")

    def _usual(self, operation: str) -> DarajaAnswer:
        self._number += 1
        number = self._number
        usual: dict[str, DarajaAnswer] = {
            "oauth": (200, {"access_token": "token-of-tests", "expires_in": "3599"}),
            "stkpush": (
                200,
                {
                    "MerchantRequestID": f"m-{number}",
                    "CheckoutRequestID": f"ws_CO_{number}",
                    "ResponseCode": "0",
                    "ResponseDescription": "Success",
                    "CustomerMessage": "Success",
                },
            ),
            "stkquery": PROCESSING,
            "transactionstatus": ack(number),
            "reversal": ack(number),
            "pullregister": (200, {"ResponseStatus": "1000", "ShortCode": "174379", "ResponseDescription": "done"}),
            "c2bregister1": C2B_REGISTERED,
            "c2bregister2": C2B_REGISTERED,
            "pullquery": (200, {"ResponseCode": "1001", "ResponseMessage": "No transactions", "Response": [[]]}),
        }
        return usual[operation]


def ack(number: int) -> DarajaAnswer:
    """Return the acknowledgement of a status query or a reversal."""
    return 200, {
        "OriginatorConversationID": f"o-{number}",
        "ConversationID": f"AG_{number}",
        "ResponseCode": "0",
        "ResponseDescription": "Accept the service request successfully.",
    }


def stk_callback(
    handle: str | None,
    code: Any = 0,
    *,
    amount: Any = 500,
    receipt: str | None = "TKN4A1B2C3",
    phone: Any = None,
    has_metadata: bool = True,
) -> dict[str, Any]:
    """Return an STK callback in Daraja's format."""
    callback: dict[str, Any] = {"MerchantRequestID": "m", "ResultCode": code, "ResultDesc": "said"}
    if handle is not None:
        callback["CheckoutRequestID"] = handle
    if code in {0, "0"} and has_metadata:
        values = {"Amount": amount, "MpesaReceiptNumber": receipt, "PhoneNumber": phone}
        items = [{"Name": name, "Value": value} for name, value in values.items() if value is not None]
        callback["CallbackMetadata"] = {"Item": items}
    return {"Body": {"stkCallback": callback}}


def c2b_body(
    receipt: str = "TKN4A1B2C3",
    amount: Any = "500.00",
    account: str | None = "",
    shortcode: str = "174379",
    phone: Any = "2547 ***** 149",
    **more: Any,
) -> dict[str, Any]:
    """Return a C2B confirmation or validation request in Safaricom's format. None omits a field."""
    body: dict[str, Any] = {
        "TransactionType": "Pay Bill",
        "TransID": receipt,
        "TransTime": f"{datetime.now(EAT):%Y%m%d%H%M%S}",
        "TransAmount": amount,
        "BusinessShortCode": shortcode,
        "BillRefNumber": account,
        "InvoiceNumber": "",
        "OrgAccountBalance": "49197.00",
        "ThirdPartyTransID": "",
        "MSISDN": phone,
        "FirstName": "JANE",
    } | more
    return {name: value for name, value in body.items() if value is not None}


def result(
    code: Any = 0,
    text: str = "said",
    *,
    kind: int = 0,
    originator: str | None = None,
    conversation: str | None = None,
    transaction_id: str | None = None,
    says: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the result of a status query or a reversal in Daraja's format; ``says`` are its parameters."""
    content: dict[str, Any] = {"ResultType": kind, "ResultCode": code, "ResultDesc": text}
    ids = {
        "OriginatorConversationID": originator,
        "ConversationID": conversation,
        "TransactionID": transaction_id,
    }
    content |= {name: value for name, value in ids.items() if value is not None}
    if says:
        found = [{"Key": name, "Value": value} for name, value in says.items()]
        content["ResultParameters"] = {"ResultParameter": found}
    return {"Result": content}


@asynccontextmanager
async def scripted_daraja() -> AsyncGenerator[Daraja]:
    """Yield a scripted Daraja on a free port."""
    daraja = Daraja()
    async with scripted(daraja.answer) as server:
        daraja.base = server.base
        yield daraja


def list_loopback(gateway: Gateway) -> None:
    """Put this machine's addresses on the allowlist of callbacks."""
    verifier: Any = gateway.services.get(CallbackVerifier)
    verifier._allowlist = (*verifier._allowlist, *read_networks(("127.0.0.0/8",), "test"))
    verifier._listed.cache_clear()
