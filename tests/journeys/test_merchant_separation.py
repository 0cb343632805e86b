"""Protects merchants from each other: every route, with ids of another merchant, missing scopes and invalid keys.

The tables of this file name every operation of the route table. A new operation fails here until it is in one of them.
"""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from mpesa_gateway.app import Gateway
from mpesa_gateway.clock import SetClock, SystemClock
from mpesa_gateway.security.scopes import ADMIN
from mpesa_gateway.testing.receiver import Receiver, receiving
from mpesa_gateway.testing.serving import INITIATED, Api, eventually, running_gateway, shop
from tests.asgi import AsgiAnswer, check_refusal, send_request
from tests.routes import Operation, operation, operations

THEIRS = {
    "GET /v1/payments/{payment_id}",
    "POST /v1/payments/{payment_id}/query",
    "POST /v1/payments/{payment_id}/qr",
    "POST /v1/merchant/shortcodes/{shortcode}/qr",
    "POST /v1/payments/mpesa/check-status/{receipt}",
    "GET /v1/payments/mpesa/checks/{check_id}",
    "POST /v1/refunds",
    "GET /v1/refunds/{refund_id}",
    "POST /v1/refunds/{refund_id}/query",
    "GET /v1/payments/mpesa/reconciliations/{run_id}",
    "POST /v1/payments/mpesa/statement-lines/{line_id}/assign",
    "GET /v1/transactions/{transaction_id}",
    "POST /v1/transactions/{transaction_id}/allocate",
    "GET /v1/webhooks/logs/{delivery_id}",
    "POST /v1/webhooks/logs/{delivery_id}/replay",
    "GET /v1/events/{event_id}",
    "GET /v1/merchant/shortcodes/{shortcode}",
    "PUT /v1/merchant/shortcodes/{shortcode}",
    "DELETE /v1/merchant/shortcodes/{shortcode}",
    "POST /v1/merchant/shortcodes/{shortcode}/default",
    "POST /v1/merchant/shortcodes/{shortcode}/verify",
}
"""Operations with an object's id in path or body: an object of another merchant is not found."""

NAMED = (
    "GET /v1/merchant/shortcodes/{shortcode}/c2b",
    "POST /v1/merchant/shortcodes/{shortcode}/c2b",
    "GET /v1/account-numbers/{number}",
    "PUT /v1/account-numbers/{number}",
    "DELETE /v1/account-numbers/{number}",
    "DELETE /v1/merchant/shortcodes/{shortcode}/c2b",
)
"""Operations on what merchants or Safaricom name: another merchant's is not found, its own may have the same name."""

OWN = (
    "GET /v1/merchant/me",
    "GET /v1/merchant/providers",
    "GET /v1/merchant/shortcodes",
    "POST /v1/merchant/providers/mpesa/verify",
    "GET /v1/merchant/webhook",
    "GET /v1/payments",
    "GET /v1/payments/export",
    "GET /v1/refunds",
    "GET /v1/refunds/export",
    "GET /v1/transactions",
    "GET /v1/transactions/export",
    "GET /v1/payments/mpesa/reconciliations",
    "GET /v1/account-numbers",
    "POST /v1/account-numbers",
    "POST /v1/payments/mpesa/pull/register",
    "POST /v1/payments/mpesa/reconcile",
    "GET /v1/webhooks/logs",
    "POST /v1/webhooks/replay",
    "GET /v1/events",
    "GET /v1/audit/logs",
    "POST /v1/merchant/webhook/test",
    "POST /v1/payments",
    "POST /v1/merchant/webhook/rotate",
    "PUT /v1/merchant/webhook",
    "PUT /v1/merchant/webhook/event-types",
    "DELETE /v1/merchant/webhook",
    "PUT /v1/merchant/providers",
    "DELETE /v1/merchant/providers/mpesa",
    "POST /v1/merchant/shortcodes",
)
"""Operations on the caller's own data, ordered so that those which change it come last."""

HOSTS = {
    "GET /v1/admin/merchants",
    "POST /v1/admin/merchants",
    "GET /v1/admin/merchants/{merchant_id}",
    "POST /v1/admin/merchants/{merchant_id}/deactivate",
    "GET /v1/admin/merchants/{merchant_id}/keys",
    "POST /v1/admin/merchants/{merchant_id}/keys",
    "POST /v1/admin/merchants/{merchant_id}/keys/{key_id}/revoke",
    "GET /v1/admin/callbacks",
    "GET /v1/admin/callbacks/refused",
    "POST /v1/admin/callbacks/{callback_id}/replay",
    "POST /v1/admin/refunds/{refund_id}/resolve",
}
"""Operations of the host: a merchant's key is rejected."""

OPEN = {
    "GET /": "the way to the operator pages",
    "GET /health/live": "the process answers",
    "GET /health/ready": "the state of the gateway's parts",
    "POST /v1/webhooks/mpesa": "callbacks: the sender's address is the proof",
    "POST /v1/webhooks/mpesa/{token}": "callbacks: the token is the proof",
    "POST /v1/webhooks/mpesa/{subject}/{ending}": "callbacks: the sender's address is the proof",
    "POST /v1/webhooks/mpesa/{subject}/{ending}/{token}": "callbacks: the token is the proof",
    "POST /v1/cb/{kind}/{token}": "callbacks: the token is the proof",
    "GET /metrics": "Prometheus brings a token, or comes from a network that the settings name",
    "GET /schema": "the API's description",
    "GET /schema/openapi.json": "the API's description",
    "GET /schema/{path}": "nothing",
    "GET /web/{digest}/{name}": "the files that our own pages share",
}
"""Operations without a key, with the reason. The simulator and the operator pages have tests of their own."""

ELSEWHERE = ("/simulator", "/v1/simulator", "/ops")


def test_tenant_tables_name_every_operation() -> None:
    scoped = {str(each) for each in operations() if each.scope is not None}
    assert scoped == THEIRS | {*OWN, *NAMED} | HOSTS
    assert {str(each) for each in operations() if each.scope is ADMIN} == HOSTS
    unscoped = {
        str(each)
        for each in operations()
        if each.scope is None and each.method != "OPTIONS" and not each.path.startswith(ELSEWHERE)
    }
    assert unscoped == set(OPEN)


@dataclass(frozen=True)
class Merchant:
    """A merchant with one object of each kind, and calls with its key."""

    gateway: Gateway
    api: Api
    receiver: Receiver
    ids: dict[str, str]

    async def call_operation(
        self, each: Operation, ids: dict[str, str], body: Any = None, *, query: str = "", key: str = ""
    ) -> AsgiAnswer:
        """Call an operation with this merchant's API key, and a new Idempotency-Key by default."""
        key = key or self.gateway.ids.new("key")
        headers = [(b"x-api-key", (self.api.key or "").encode()), (b"idempotency-key", key.encode())]
        target = "/".join(ids[part[1:-1]] if part.startswith("{") else part for part in each.path.split("/"))
        return await call(self.gateway, each, target + query, headers, body)


async def call(
    gateway: Gateway, each: Operation, target: str, headers: list[tuple[bytes, bytes]], body: Any = None
) -> AsgiAnswer:
    content = () if body is None else (json.dumps(body).encode(),)
    if content:
        headers = [*headers, (b"content-type", b"application/json"), (b"content-length", str(len(content[0])).encode())]
    return await send_request(gateway.asgi, each.method, target.encode(), tuple(headers), content)


@asynccontextmanager
async def merchant(gateway: Gateway, base: str, shortcode: str, phone: str) -> AsyncGenerator[Merchant]:
    """Return a merchant with an object of every kind that can be read."""
    async with receiving() as receiver, shop(gateway, base, webhook_url=receiver.url) as api:
        credentials = INITIATED | {
            "mpesa": INITIATED["mpesa"] | {"shortcode": shortcode, "consumer_key": f"consumer-{shortcode}"}
        }
        assert (await api.call("PUT", "/v1/merchant/providers", credentials)).status == 200
        body = {"metadata": {"cart": f"of-{shortcode}"}}
        payment = (await api.pay(phone, 500, key=f"key-{shortcode}", **body)).data
        payment = await api.settled(payment["id"], "completed")
        await receiver.wait_for(1)
        walk_in = {"phone": phone, "amount": 77, "shortcode": shortcode, "reference": "walk-in"}
        assert (await api.call("POST", "/simulator/control/ledger", walk_in)).status == 200
        assert (await api.call("POST", "/v1/payments/mpesa/pull/register")).status == 200
        run = (await api.call("POST", "/v1/payments/mpesa/reconcile", {})).data
        rows = (await api.call("GET", f"/v1/payments/mpesa/reconciliations/{run['id']}")).data["rows"]
        check = (await api.call("POST", f"/v1/payments/mpesa/check-status/{payment['id']}")).data

        async def answered() -> bool:
            found = (await api.call("GET", f"/v1/payments/mpesa/checks/{check['check_id']}")).data
            return bool(found["finished_at"])

        await eventually(answered)
        refund = (
            await api.call(
                "POST", "/v1/refunds", {"payment_id": payment["id"], "amount": 100}, headers={"Idempotency-Key": "r"}
            )
        ).data
        await receiver.wait_for(1, kind="payment.reversed")

        async def delivered() -> Any:
            log = (await api.call("GET", "/v1/webhooks/logs")).data
            return log if len(log) == 2 and all(each["status"] == "delivered" for each in log) else None

        delivery = (await eventually(delivered))[0]
        me = (await api.call("GET", "/v1/merchant/me")).data
        ids = {
            "merchant_id": me["id"],
            "key_id": me["key"]["id"],
            "payment_id": payment["id"],
            "receipt": payment["id"],
            "refund_id": refund["id"],
            "check_id": check["check_id"],
            "run_id": run["id"],
            "line_id": next(row["id"] for row in rows if row["finding"] == "not_found"),
            "transaction_id": (await api.call("GET", "/v1/transactions?allocated=false")).data[0]["id"],
            "delivery_id": delivery["id"],
            "event_id": delivery["event_id"],
            "callback_id": await gateway.db.fetchval(
                "SELECT callback_id FROM callback WHERE merchant_id = $1 ORDER BY callback_id DESC LIMIT 1", me["id"]
            ),
            "proof": payment["receipt"],
            "phone": phone,
            "key": f"key-{shortcode}",
            "shortcode": shortcode,
        }
        yield Merchant(gateway, api, receiver, ids)


@dataclass(frozen=True)
class TwoMerchants:
    """Two merchants of one gateway."""

    gateway: Gateway
    one: Merchant
    other: Merchant


@pytest.fixture
async def merchants(values: dict[str, Any]) -> AsyncGenerator[TwoMerchants]:
    values["simulator"]["callback_delay"] = 0.05
    async with (
        running_gateway(values) as (gateway, base),
        merchant(gateway, base, "600111", "254711000111") as one,
        merchant(gateway, base, "600222", "254722000222") as other,
    ):
        yield TwoMerchants(gateway, one, other)


BODIES: dict[str, Callable[[Merchant, dict[str, str]], Any]] = {
    "POST /v1/payments/{payment_id}/qr": lambda _, __: {},
    "POST /v1/merchant/shortcodes/{shortcode}/qr": lambda _, __: {"amount": 1},
    "POST /v1/refunds": lambda _, ids: {"payment_id": ids["payment_id"]},
    "POST /v1/transactions/{transaction_id}/allocate": lambda _, ids: {"payment_id": ids["payment_id"]},
    "PUT /v1/merchant/shortcodes/{shortcode}": lambda _, ids: INITIATED["mpesa"] | {"shortcode": ids["shortcode"]},
    "POST /v1/payments/mpesa/statement-lines/{line_id}/assign": lambda own, ids: {
        "payment_id": own.ids["payment_id"] if ids["line_id"] != own.ids["line_id"] else ids["payment_id"]
    },
}
"""Bodies of operations; ``ids`` are the ids of another merchant in them."""


def missing_ids(ids: dict[str, str]) -> dict[str, str]:
    """Return well-formed ids that do not exist."""
    return {name: f"{value[:4]}{'0' * (len(value) - 4)}" for name, value in ids.items()}


def without_id(answer: AsgiAnswer) -> tuple[int, Any]:
    """Return an answer without its request id."""
    return answer.status, {name: value for name, value in answer.json.items() if name != "request_id"}


async def everything_of(gateway: Gateway, merchant_id: str) -> dict[str, list[str]]:
    """Return every row of a merchant in every table, without the last use of its keys."""
    tables = await gateway.db.fetch(
        "SELECT table_name FROM information_schema.columns "
        "WHERE table_schema = current_schema() AND column_name = 'merchant_id' ORDER BY table_name"
    )
    found: dict[str, list[str]] = {}
    for row in tables:
        name = row["table_name"]
        rows = await gateway.db.fetch(
            f"SELECT (to_jsonb(each) - 'last_used_at')::text AS text FROM {name} AS each "  # noqa: S608 - names from the catalogue
            "WHERE merchant_id = $1 ORDER BY 1",
            merchant_id,
        )
        found[name] = [each["text"] for each in rows]
    assert sum(map(len, found.values())) > 15
    return found


async def test_objects_of_another_merchant_are_not_found(merchants: TwoMerchants) -> None:
    one, other = merchants.one, merchants.other
    before = await everything_of(merchants.gateway, one.ids["merchant_id"])
    for name in sorted(THEIRS):
        each = operation(name)
        mixtures = [one.ids]
        if "line_id" in each.parameters:
            # Their own statement line, and a payment of another merchant.
            mixtures.append(one.ids | {"line_id": other.ids["line_id"]})
        for ids in mixtures:
            body = BODIES[name](other, ids) if each.body else None
            answer = await other.call_operation(each, ids, body)
            assert (answer.status, answer.codes) == (404, ["NOT_FOUND"]), (name, answer)
            assert check_refusal(answer)
            # The answer equals the answer for an id that never existed.
            missing = missing_ids(ids) if ids is one.ids else ids | {"payment_id": missing_ids(ids)["payment_id"]}
            body = BODIES[name](other, missing) if each.body else None
            assert without_id(await other.call_operation(each, missing, body)) == without_id(answer), name
    assert await everything_of(merchants.gateway, one.ids["merchant_id"]) == before
    for name in sorted(THEIRS, key=lambda each: (each.startswith("DELETE"), each)):
        # The owner finds them.
        own = await one.call_operation(operation(name), one.ids, BODIES[name](one, one.ids) if name in BODIES else None)
        assert own.status != 404, (name, own)


async def test_names_of_another_merchant_are_not_found(merchants: TwoMerchants) -> None:
    one, other = merchants.one, merchants.other
    assert (await one.api.call("PUT", "/v1/account-numbers/HOUSE", {"expected": 900})).status == 200
    ids = one.ids | {"number": "HOUSE"}
    before = await everything_of(merchants.gateway, one.ids["merchant_id"])
    for name in NAMED:
        answer = await other.call_operation(operation(name), ids, {} if operation(name).body else None)
        assert answer.status == (200 if name.startswith(("PUT", "DELETE /v1/acc")) else 404), name
    assert await everything_of(merchants.gateway, one.ids["merchant_id"]) == before
    for name in NAMED:
        own = await one.call_operation(operation(name), ids, {} if operation(name).body else None)
        assert own.status == (404 if name == NAMED[0] else 200), (name, own)


OWN_BODIES: dict[str, Any] = {
    "POST /v1/account-numbers": {"account_numbers": [{"number": "A7"}]},
    "POST /v1/payments": {"amount": 500, "phone": "254711000111", "metadata": {"cart": "of-600111"}},
    "POST /v1/payments/mpesa/reconcile": {},
    "POST /v1/webhooks/replay": {"since": "2020-01-01T00:00:00Z"},
    "PUT /v1/merchant/webhook": {"webhook_url": "https://shop.example.co.ke/hooks"},
    "PUT /v1/merchant/webhook/event-types": {"event_types": ["payment.completed"]},
    "PUT /v1/merchant/providers": INITIATED,
    "POST /v1/merchant/shortcodes": INITIATED["mpesa"] | {"shortcode": "600333"},
}

QUERIES = (
    "",
    "?count=true",
    "?payment_id={payment_id}",
    "?search={payment_id}",
    "?search={proof}",
    "?search={phone}",
    "?search={key}",
    "?phone={phone}",
    "?type=payment.completed",
    "?event_type=payment.completed",
    "?since=2020-01-01T00:00:00Z",
)


async def test_lists_and_settings_show_the_own_merchant_only(merchants: TwoMerchants) -> None:
    one, other = merchants.one, merchants.other
    before = await everything_of(merchants.gateway, one.ids["merchant_id"])
    secret = {name: value for name, value in one.ids.items() if name != "receipt"}
    for name in OWN:
        each = operation(name)
        fields = () if each.query is None else each.query.__struct_fields__
        for query in QUERIES:
            query_string = query.format(**one.ids)
            if query and query[1:].partition("=")[0] not in fields:
                continue
            answer = await other.call_operation(each, {}, OWN_BODIES.get(name), query=query_string, key=one.ids["key"])
            assert answer.status < 300, (name, answer)
            text = answer.body.decode()
            if name == "POST /v1/payments":
                # The same idempotency key and request of another merchant make a separate payment.
                assert answer.json["data"]["id"] not in set(one.ids.values())
                assert answer.json["data"]["merchant_id"] == other.ids["merchant_id"]
                text = text.replace(one.ids["phone"], "").replace(one.ids["key"], "").replace("of-600111", "")
            elif "count=true" in query:
                assert answer.json["meta"]["total"] == len(answer.json["data"])
            shown = {found for found, value in secret.items() if value in text}
            # No other key can repeat the request.
            assert shown == set(), (name, query, shown)
    assert await everything_of(merchants.gateway, one.ids["merchant_id"]) == before


async def test_cursor_of_another_merchant_pages_the_own_list(merchants: TwoMerchants) -> None:
    for number in range(3):
        await merchants.one.api.pay("254711000111", 5, key=f"more-{number}")
    for path in ("/v1/payments", "/v1/events", "/v1/webhooks/logs", "/v1/audit/logs"):
        page = await merchants.one.api.call("GET", f"{path}?limit=1")
        cursor = page.body["meta"]["next_cursor"]
        assert cursor, path
        answer = await merchants.other.api.call("GET", f"{path}?cursor={cursor}")
        assert answer.status == 200
        text = json.dumps(answer.body)
        assert not [name for name, value in merchants.one.ids.items() if name != "receipt" and value in text]


async def test_host_operations_with_a_merchant_key_are_rejected(merchants: TwoMerchants) -> None:
    for name in sorted(HOSTS):
        for ids in (merchants.one.ids, merchants.other.ids):
            answer = await merchants.other.call_operation(operation(name), ids, {})
            assert (answer.status, answer.codes) == (403, ["AUTH_INSUFFICIENT_SCOPE"]), name
            assert "admin" in answer.json["errors"][0]["message"]


SCOPED = [each for each in operations() if each.scope is not None]


def target_of(each: Operation) -> str:
    return "/".join("x" if part.startswith("{") else part for part in each.path.split("/"))


async def test_missing_scope_is_named_before_any_lookup(values: dict[str, Any]) -> None:
    async with running_gateway(values) as (gateway, base):
        for missing in gateway.scopes.all:
            rights = tuple(scope for scope in gateway.scopes.all if scope is not missing)
            async with shop(gateway, base, scopes=rights, is_configured=False) as api:
                headers = [(b"x-api-key", (api.key or "").encode())]
                lacking = [each for each in SCOPED if each.scope is missing]
                assert lacking, missing
                for each in lacking:
                    bodies: tuple[Any, ...] = (None, {}, "nonsense")
                    for body in bodies:
                        answer = await call(gateway, each, target_of(each), headers, body)
                        assert (answer.status, answer.codes) == (403, ["AUTH_INSUFFICIENT_SCOPE"]), each
                        assert f" {missing.name}:" in answer.json["errors"][0]["message"]
                        assert check_refusal(answer)
                for each in SCOPED:
                    if each.scope is not missing and each.method == "GET":
                        assert (await call(gateway, each, target_of(each), headers)).status != 403, each


async def test_invalid_keys_are_all_rejected_with_the_same_answer(values: dict[str, Any]) -> None:
    clock = SetClock(SystemClock().now())
    values["limits"]["auth_failures"] = 1_000_000
    async with running_gateway(values, clock=clock) as (gateway, _):

        async def key(**more: Any) -> tuple[str, str, str]:
            merchant = await gateway.merchants.create("Shop", actor="test")
            made, secret = await gateway.api_keys.create(
                merchant.merchant_id, name="test", scopes=gateway.scopes.all, env="sandbox", actor="test", **more
            )
            return merchant.merchant_id, made.key_id, secret.reveal()

        good = (await key())[2]
        revoked_of, revoked_id, revoked = await key()
        _, _, expired = await key(expires_at=clock.now() + timedelta(seconds=10))
        deactivated_of, _, deactivated = await key()
        for text in (good, revoked, expired, deactivated):
            answer = await call(gateway, operation("GET /v1/payments"), "/v1/payments", [(b"x-api-key", text.encode())])
            assert answer.status == 200
        await gateway.api_keys.revoke(revoked_of, revoked_id, actor="test")
        await gateway.merchants.deactivate(deactivated_of, actor="test")
        clock.advance(timedelta(seconds=11))
        last = "0" if good[-1] != "0" else "1"
        shown = {
            "revoked": revoked,
            "expired": expired,
            "of a deactivated merchant": deactivated,
            "another secret": good[:-1] + last,
            "another's secret": good[:24] + revoked[24:],
            "unknown": "sk_test_" + "0" * 48,
            "for the other environment": good.replace("sk_test_", "sk_live_"),
        }
        malformed = ("", "nonsense", good.upper(), good + "0", f"Bearer {good}", f" {good}x", good[:-1], "sk_test_")
        for each in SCOPED:
            bare = await call(gateway, each, target_of(each), [], {})
            assert (bare.status, bare.codes) == (401, ["AUTH_INVALID_KEY"]), each
            assert check_refusal(bare)
            for text in malformed:
                answer = await call(gateway, each, target_of(each), [(b"x-api-key", text.encode())], {})
                assert (answer.status, answer.codes) == (401, ["AUTH_INVALID_KEY"]), (each, text)
                (error,) = answer.json["errors"]
                assert error["message"].startswith("this is not a key of this gateway"), (each, text)
                assert not text.strip() or text == "sk_test_" or text not in error["message"], (each, text)
            answers = {
                what: without_id(await call(gateway, each, target_of(each), [(b"x-api-key", text.encode())], "x"))
                for what, text in shown.items()
            }
            for what, (status, content) in answers.items():
                assert (status, content["errors"][0]["code"]) == (401, "AUTH_INVALID_KEY"), (each, what)
                assert content == answers["unknown"][1], (each, what)


ASKS_DARAJA = {
    "POST /v1/payments/{payment_id}/qr",
    "POST /v1/merchant/shortcodes/{shortcode}/qr",
    "POST /v1/merchant/providers/mpesa/verify",
    "POST /v1/merchant/shortcodes/{shortcode}/verify",
    "POST /v1/payments",
    "POST /v1/payments/{payment_id}/query",
    "POST /v1/payments/mpesa/check-status/{receipt}",
    "POST /v1/refunds",
    "POST /v1/refunds/{refund_id}/query",
    "POST /v1/payments/mpesa/pull/register",
    "POST /v1/payments/mpesa/reconcile",
}
"""Operations that call Daraja with the stored credentials."""


async def test_live_key_of_a_sandbox_merchant_changes_nothing(merchants: TwoMerchants) -> None:
    one = merchants.one
    _, secret = await merchants.gateway.api_keys.create(
        one.ids["merchant_id"], name="live", scopes=merchants.gateway.scopes.all, env="live", actor="test"
    )
    live = Merchant(merchants.gateway, Api(one.api.base, secret.reveal()), one.receiver, one.ids)
    before = await everything_of(merchants.gateway, one.ids["merchant_id"])
    pushes = await merchants.gateway.db.fetchval("SELECT count(*) FROM sim_push")
    bodies = OWN_BODIES | {
        "POST /v1/refunds": {"payment_id": one.ids["payment_id"]},
        "POST /v1/payments/{payment_id}/qr": {},
        "POST /v1/merchant/shortcodes/{shortcode}/qr": {"amount": 1},
    }
    for name in sorted(ASKS_DARAJA):
        answer = await live.call_operation(operation(name), one.ids, bodies.get(name))
        # The key does not find sandbox objects, and live has no credentials for new ones.
        about = bodies.get(name) if name in bodies and "payment_id" in bodies[name] else None
        is_about_one = about is not None or "{" in name
        expected = (404, ["NOT_FOUND"]) if is_about_one else (422, ["PROVIDER_NOT_CONFIGURED"])
        assert (answer.status, answer.codes) == expected, (name, answer)
        assert is_about_one or "no M-Pesa credentials for live" in answer.json["errors"][0]["message"], name
    for body in (INITIATED, INITIATED | {"mpesa": INITIATED["mpesa"] | {"env": "live"}}):
        answer = await live.call_operation(operation("PUT /v1/merchant/providers"), {}, body)
        assert (answer.status, answer.codes[0]) == (422, "VALIDATION_ERROR")
        assert "mpesa.env" in [problem["field"] for problem in answer.json["errors"]]
    answer = await live.call_operation(operation("PUT /v1/merchant/webhook"), {}, {"webhook_url": one.receiver.url})
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "webhook_url")
    await live.api.close()
    assert await everything_of(merchants.gateway, one.ids["merchant_id"]) == before
    assert await merchants.gateway.db.fetchval("SELECT count(*) FROM sim_push") == pushes
