"""Protects requests before routing: one spelling of addresses, bodies in time, and an id in every answer."""

import asyncio
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.testing.serving import gateway_values, running_gateway
from mpesa_gateway_simulator.root_routes import DARAJA, ROOT
from tests.asgi import check_refusal, send_request
from tests.conftest import Harness
from tests.routes import operations_of

ODD_PATHS = [
    "//ops",
    "/ops//login",
    "/v1/payments//",
    "/./ops",
    "/../ops",
    "/v1/..",
    "/v1/.",
    "/v1/payments/a\\b",
    "/v1/payments/a\x00",
    "/v1/payments/a\nb",
    "/v1/payments/a\x7f",
    "/v1/payments/\ud800",
]
"""Paths of a careless client or an attacker."""


async def test_unusual_path_is_not_found(harness: Harness) -> None:
    for path in ODD_PATHS:
        said = await send_request(harness.gateway.asgi, "GET", b"/", path=path)
        assert (said.status, said.codes) == (404, ["NOT_FOUND"]), path
        assert check_refusal(said), path


async def test_encoded_slash_is_not_found(harness: Harness) -> None:
    for target in (b"/v1%2fmerchant", b"/v1%2Fmerchant", b"/v1/payments/a%5cb", b"/%2e%2e/ops", b"/v1/payments/%00"):
        said = await send_request(harness.gateway.asgi, "GET", target)
        assert (said.status, said.codes) == (404, ["NOT_FOUND"]), target


async def test_path_with_a_trailing_slash_is_found(harness: Harness) -> None:
    said = await send_request(harness.gateway.asgi, "GET", b"/health/live")
    assert said.status == 200
    assert (await send_request(harness.gateway.asgi, "GET", b"/health/live/")).status == 200


async def test_query_that_is_not_ascii_is_refused(harness: Harness) -> None:
    said = await send_request(harness.gateway.asgi, "GET", "/v1/payments?search=\u00e9".encode())
    assert (said.status, said.codes) == (400, ["VALIDATION_ERROR"])
    assert check_refusal(said)


ONCE = [
    "X-API-Key",
    "Idempotency-Key",
    "Content-Type",
    "Authorization",
    "Origin",
    "Host",
    "Content-Length",
    "Content-Encoding",
]


@pytest.mark.parametrize("name", ONCE)
async def test_deciding_header_sent_twice_is_refused(harness: Harness, name: str) -> None:
    key = harness.api.key
    assert key is not None
    sent = {"x-api-key": key, "idempotency-key": "order-1", "content-type": "application/json", "content-length": "2"}
    header = name.lower().encode()
    value = sent.get(name.lower(), "x").encode()
    usual = tuple((each.encode(), text.encode()) for each, text in sent.items() if each != name.lower())
    for values in ((value, value), (value, b"another"), (b"", value)):
        headers = (*usual, *((header, one) for one in values))
        said = await send_request(harness.gateway.asgi, "POST", b"/v1/payments", headers, (b"{}",))
        assert (said.status, said.codes) == (400, ["VALIDATION_ERROR"]), values
        assert name.title() in said.json["errors"][0]["message"]
        assert check_refusal(said)


async def test_header_that_may_be_repeated_is_accepted(harness: Harness) -> None:
    headers = (
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-for", b"192.0.2.2"),
        (b"accept", b"a"),
        (b"accept", b"b"),
    )
    assert (await send_request(harness.gateway.asgi, "GET", b"/health/live", headers)).status == 200


class EndlessBody:
    """A body without an end, or a client that disconnects."""

    def __init__(self, *, leaves: bool) -> None:
        self.leaves = leaves
        self.sent: list[dict[str, Any]] = []
        self.asked = 0

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.leaves and self.asked > 2:
            return {"type": "http.disconnect"}
        if not self.leaves and self.asked > 3:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def posts(self, gateway: Gateway, path: str, key: str) -> tuple[int, dict[bytes, bytes]]:
        """Send it; return the status and the headers of the answer."""
        headers = [(b"content-type", b"application/json"), (b"x-api-key", key.encode()), (b"idempotency-key", b"a")]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [*headers, (b"transfer-encoding", b"chunked")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        async with asyncio.timeout(30):
            await gateway.asgi(scope, self.receive, self.send)
        return self.sent[0]["status"], dict(self.sent[0]["headers"])


async def test_slow_body_is_answered_in_time_at_every_mount_path(values: dict[str, Any]) -> None:
    async with running_gateway(values | {"http": {"body_timeout": 0.2}}) as (gateway, _):
        for path in ("/v1/webhooks/mpesa", "/simulator/mpesa/stkpush/v1/processrequest"):
            endless = EndlessBody(leaves=False)
            status, headers = await endless.posts(gateway, path, "")
            assert status == 408, path
            assert headers[b"connection"] == b"close"
            assert b"REQUEST_TIMEOUT" in endless.sent[1]["body"]


async def test_client_that_disconnects_before_its_body_is_no_error(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = await EndlessBody(leaves=True).posts(harness.gateway, "/v1/payments", harness.api.key or "")
    assert status == 400
    assert "unexpected_error" not in capsys.readouterr().out
    assert (await harness.api.call("GET", "/v1/payments")).data == []


async def test_gateway_that_is_not_started_answers_with_an_id_and_a_next_step() -> None:
    gateway = Gateway(GatewayConfig.from_values(gateway_values("postgresql://nowhere", "redis://nowhere")))
    said = await send_request(gateway.asgi, "GET", b"/v1/payments")
    assert (said.status, said.codes) == (503, ["SERVICE_UNAVAILABLE"])
    assert check_refusal(said)
    assert int(said.header(b"retry-after")) > 0
    assert "lifespan=gateway.lifespan" in said.json["errors"][0]["message"]


async def test_every_path_lists_its_methods(harness: Harness) -> None:
    taken: dict[str, set[str]] = {}
    for each in operations_of(harness.gateway):
        taken.setdefault(each.path, set()).add(each.method)
    for path, methods in taken.items():
        target = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
        said = await send_request(harness.gateway.asgi, "OPTIONS", target.encode())
        assert (said.status, said.body) == (204, b"")
        expected = {*methods, *(["HEAD"] if "GET" in methods else [])}
        assert set(said.header(b"allow").decode().split(", ")) == expected, path
        refused = await send_request(harness.gateway.asgi, "TRACE", target.encode())
        # The simulator's Daraja refuses as Daraja does.
        is_daraja = path.removeprefix(ROOT) in DARAJA
        code = refused.json["errorCode"] if is_daraja else refused.codes[0]
        assert (refused.status, code) == (405, "405.001" if is_daraja else "METHOD_NOT_ALLOWED")
        assert set(refused.header(b"allow").decode().split(", ")) == expected


async def test_unknown_path_beside_the_document_is_not_found(harness: Harness) -> None:
    for target in (b"/schema/nothing", b"/schema/swagger", b"/schema/openapi.yaml"):
        said = await send_request(harness.gateway.asgi, "GET", target)
        assert (said.status, said.codes) == (404, ["NOT_FOUND"])
        assert check_refusal(said)
