"""Sandbox and live never meet: every route, called with a key of the other env, finds nothing and changes nothing."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from mpesa_gateway.app import Gateway
from mpesa_gateway.doctor.ledger import invariants_of
from mpesa_gateway.env import ENVS, Env
from mpesa_gateway.http.envelope import Success
from mpesa_gateway.plugin import Plugin
from mpesa_gateway.testing.serving import Api, running_gateway
from mpesa_gateway_payments.scopes import PaymentsRead, PaymentsWrite
from tests.asgi import ask
from tests.journeys.test_tenants import merchant
from tests.ledger import broken
from tests.worlds import OTHER, Walk, mirror

pytestmark = pytest.mark.as_owner

BOTH_WORLDS = {
    "POST /v1/admin/merchants/{merchant_id}/deactivate": "a merchant is one and the same in both worlds",
}
"""Operations that are about what belongs to no world; a test of its own says what they may do."""


NOT_MISSING = {
    "GET /v1/admin/merchants/{merchant_id}",
    "GET /v1/admin/merchants/{merchant_id}/keys",
    "POST /v1/admin/merchants/{merchant_id}/keys",
}
"""Operations with an id of a merchant, who is in both worlds."""


@get("/v1/leaks/{payment_id:str}")
async def shows_any(payment_id: FromPath[str], caller: PaymentsRead, gateway: NamedDependency[Any]) -> Success[str]:
    """Forgets to look at the env."""
    row = await gateway.db.fetchval(
        "SELECT payment_id FROM payment WHERE merchant_id = $1 AND payment_id = $2", caller.merchant_id, payment_id
    )
    return Success(data=str(row))


@get("/v1/leaks")
async def lists_any(caller: PaymentsRead, gateway: NamedDependency[Any]) -> Success[list[str]]:
    """Forgets to look at the env."""
    rows = await gateway.db.fetch("SELECT payment_id FROM payment WHERE merchant_id = $1", caller.merchant_id)
    return Success(data=[row["payment_id"] for row in rows])


@post("/v1/leaks/{thing_id:str}", status_code=404)
async def changes_any(thing_id: FromPath[str], caller: PaymentsWrite, gateway: NamedDependency[Any]) -> Success[str]:
    """Says that it found nothing, and changes it."""
    await gateway.db.execute(
        "UPDATE refund SET updated_at = now() WHERE merchant_id = $1 AND refund_id = $2", caller.merchant_id, thing_id
    )
    return Success(data="nothing")


LEAKY = Plugin(name="leaky", summary="Leaks.", requires=("payments",), routes=(shows_any, lists_any, changes_any))


@dataclass(frozen=True)
class Worlds:
    """A merchant who has everything in both worlds, and a key with every right for each."""

    gateway: Gateway
    base: str
    merchant_id: str
    keys: dict[Env, str]

    async def walk(self, env: Env) -> Walk:
        """Walk with the key of one env through what is in the other."""
        walk = Walk(self.gateway, self.keys[env], env, self.merchant_id)
        await walk.go(BOTH_WORLDS)
        return walk


@pytest.fixture
async def worlds(values: dict[str, Any]) -> AsyncGenerator[Worlds]:
    values["simulator"]["callback_delay"] = 0.05
    async with (
        running_gateway(values, plugins=(LEAKY,)) as (gateway, base),
        merchant(gateway, base, "600111", "254711000111") as one,
    ):
        # Nobody works any more: whatever changes from here on was changed by a request.
        worker = gateway._in_process_worker  # pyright: ignore[reportPrivateUsage]
        assert worker is not None
        worker.cancel()
        merchant_id = one.ids["merchant_id"]
        keys: dict[Env, str] = {}
        for env in ENVS:
            _, secret = await gateway.api_keys.create(
                merchant_id, name=env, scopes=gateway.scopes.all, env=env, actor="test"
            )
            keys[env] = secret.reveal()
        await mirror(gateway, merchant_id)
        yield Worlds(gateway, base, merchant_id, keys)


def without_leaky(leaks: list[str]) -> list[str]:
    """What leaked but for the routes that are meant to."""
    return [leak for leak in leaks if "/v1/leaks" not in leak]


async def test_every_route_with_a_key_of_the_other_env_finds_nothing_and_changes_nothing(worlds: Worlds) -> None:
    for env in ENVS:
        walk = await worlds.walk(env)
        assert without_leaky(walk.leaks) == []
        # The walk notices what a route shows, what it lists and what it changes without a word.
        assert any("GET /v1/leaks/{payment_id} shows pay_" in leak for leak in walk.leaks), walk.leaks
        assert any("GET /v1/leaks shows pay_" in leak for leak in walk.leaks), walk.leaks
        assert any("POST /v1/leaks/{thing_id} changed refund" in leak for leak in walk.leaks), walk.leaks
        # The routes that it walks are those of the table; those that take an id answer that there is no such thing.
        assert len(walk.statuses) > 40
        found = {name.rpartition(" ")[0] for name in walk.statuses if "{" in name and not name.endswith("404")}
        assert {name for name in found if "/v1/leaks" not in name} <= NOT_MISSING


LISTS = {
    "/v1/payments": "env",
    "/v1/refunds": "env",
    "/v1/events": "env",
    "/v1/webhooks/logs": "env",
    "/v1/payments/mpesa/reconciliations": "env",
    "/v1/admin/callbacks": "env",
    "/v1/audit/logs": "detail",
}


async def test_every_list_and_export_answers_the_keys_world_only(worlds: Worlds) -> None:
    for env in ENVS:
        await answers_its_own(worlds, env)


async def answers_its_own(worlds: Worlds, env: Env) -> None:
    """Every list and export, asked with the key of one env."""
    api = Api(worlds.base, worlds.keys[env])
    for path, where in LISTS.items():
        page = await api.call("GET", f"{path}?limit=100")
        shown = [row.get("env") if where == "env" else row["detail"].get("env", env) for row in page.data]
        assert shown, path
        assert set(shown) == {env}, path
        if path != "/v1/admin/callbacks":
            counted = await api.call("GET", f"{path}?limit=1&count=true")
            assert counted.body["meta"]["total"] >= len(shown), path
        if len(shown) > 1:
            cursor = (await api.call("GET", f"{path}?limit=1")).body["meta"]["next_cursor"]
            other = Api(worlds.base, worlds.keys[OTHER[env]])
            answer = await other.call("GET", f"{path}?cursor={cursor}")
            await other.close()
            if path != "/v1/audit/logs":
                assert (answer.status, answer.error["field"]) == (422, "cursor"), path
    for event in (await api.call("GET", "/v1/events")).data:
        assert event["data"]["env"] == env
    for path in ("/v1/payments/export", "/v1/refunds/export"):
        said = await ask(worlds.gateway.asgi, "GET", path.encode(), ((b"x-api-key", worlds.keys[env].encode()),))
        head, *lines = said.body.decode().splitlines()
        column = head.split(",").index("env")
        assert lines, path
        assert {line.split(",")[column] for line in lines} == {env}
    await api.close()


async def test_every_object_says_its_env_and_no_row_contradicts_its_parent(worlds: Worlds) -> None:
    assert await broken(worlds.gateway) == {}
    for env in ENVS:
        api = Api(worlds.base, worlds.keys[env])
        for path in ("/v1/payments", "/v1/refunds", "/v1/webhooks/logs", "/v1/payments/mpesa/reconciliations"):
            row = (await api.call("GET", path)).data[0]
            assert (await api.call("GET", f"{path}/{row['id']}")).data["env"] == env
        delivery = (await api.call("GET", "/v1/webhooks/logs")).data[0]
        event = (await api.call("GET", f"/v1/webhooks/logs/{delivery['id']}")).data["event"]
        assert (event["env"], event["data"]["env"]) == (env, env)
        assert (await api.call("GET", "/v1/merchant/webhook")).data["env"] == env
        await api.close()


UNIQUE_ACROSS_ENVS = {
    "payment_of_key": "it is of a digest, which is made of the env too",
    "payment_own_reference": "the gateway draws these references, and no two are alike",
    "callback_fingerprint_key": "it is made from the address, which is of one env, or from what M-Pesa named",
    "delivery_event_id_endpoint_id_key": "an event is of one env",
    "reconciliation_run_one_at_a_time": "a receiver is of one env",
    "refund_whole": "a payment is of one env",
    "shortcode_merchant_id_receiver_id_key": "a receiver is of one env",
    "transaction_subject": "a payment, refund or payout is of one env",
    "webhook_endpoint_address_id_key": "an address is of one endpoint",
}
"""Unique indexes without the env of their row, and why that is right. Keys of one id column need no reason."""

_WITHOUT_ENV = """
SELECT pg_class.relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE relnamespace = current_schema()::regnamespace AND indisunique AND NOT indisprimary
    AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = indrelid AND attname = 'env' AND attnum > 0)
    AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = indrelid AND attname = 'env' AND attnum = ANY(indkey))
"""


async def test_what_is_unique_is_so_in_each_env(worlds: Worlds) -> None:
    found = await worlds.gateway.db.fetch(_WITHOUT_ENV)
    assert {row["relname"] for row in found} == set(UNIQUE_ACROSS_ENVS)


async def test_a_sandbox_admin_key_touches_no_merchant_who_is_live(worlds: Worlds) -> None:
    path = f"/v1/admin/merchants/{worlds.merchant_id}"
    api = Api(worlds.base, worlds.keys["sandbox"])
    assert (await api.call("POST", f"{path}/deactivate", {"confirm": worlds.merchant_id})).status == 409
    answer = await api.call("POST", f"{path}/keys", {"name": "till", "env": "live"})
    assert (answer.status, answer.error["field"]) == (422, "env")
    made = await api.call("POST", f"{path}/keys", {"name": "till"})
    assert made.data["key"]["env"] == "sandbox"
    assert {key["env"] for key in (await api.call("GET", f"{path}/keys")).data} == {"sandbox"}
    await api.close()


BENT = [
    ("UPDATE refund SET env = 'live', reversal_receipt = NULL, idempotency_key = NULL", "refunds.fits_its_payment"),
    ("UPDATE status_check SET env = 'live'", "payments.env_is_its_payments"),
    ("UPDATE idempotency_key SET env = 'live', key = key || 'x'", "payments.env_is_its_payments"),
    ("UPDATE event SET env = 'live'", "webhooks.delivery_is_its_events"),
    ("UPDATE delivery SET env = 'live'", "webhooks.delivery_is_its_events"),
    ("UPDATE transaction SET env = 'live', receipt = 'X' || receipt", "reconciliation.env_is_its_runs"),
    ("UPDATE reconciliation_run SET env = 'live'", "reconciliation.env_is_its_runs"),
]
"""Statements that move a row to another env than its parent's, and the invariant that notices."""


class Undone(Exception):
    """Ends a transaction, so that nothing of it stays."""


async def test_a_row_of_another_env_than_its_parent_is_noticed(worlds: Worlds) -> None:
    db = worlds.gateway.db
    asked = {f"{owner}.{invariant.name}": invariant.sql for owner, invariant in invariants_of(worlds.gateway)}
    for statement, name in BENT:
        with suppress(Undone):
            async with db.transaction():
                await db.execute("SET LOCAL session_replication_role = replica")
                await db.execute(f"{statement} WHERE env = 'sandbox'")
                assert await db.fetch(asked[name]), (statement, name)
                raise Undone


async def test_postgres_refuses_a_child_of_another_env_than_its_parent(worlds: Worlds) -> None:
    db = worlds.gateway.db
    for statement in (
        "UPDATE status_check SET env = 'live' WHERE env = 'sandbox'",
        (
            "INSERT INTO statement_note (transaction_id, merchant_id, env, moments, amount_text, is_timed, is_of_till, "
            "created_at, settled_at, finding, payment_id) "
            "SELECT transaction_id, merchant_id, env, ARRAY[now()], '', true, false, now(), now(), 'recovered', "
            "(SELECT payment_id FROM payment WHERE env = 'live') FROM transaction WHERE env = 'sandbox' "
            "ON CONFLICT (transaction_id) DO UPDATE SET payment_id = excluded.payment_id, finding = 'recovered'"
        ),
        "UPDATE delivery SET env = 'live' WHERE env = 'sandbox'",
        "UPDATE webhook_endpoint SET env = 'live', is_active = false WHERE env = 'sandbox'",
        "UPDATE refund SET env = 'live', idempotency_key = NULL, reversal_receipt = NULL WHERE env = 'sandbox'",
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await db.execute(statement)
