"""Protects the separation of sandbox and live: a key of one env finds and changes nothing of the other."""

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
from tests.asgi import send_request
from tests.journeys.test_merchant_separation import merchant
from tests.ledger import broken_invariants
from tests.worlds import OTHER, RouteWalk, mirror

pytestmark = pytest.mark.as_owner

WITHOUT_ENV = {
    "POST /v1/admin/merchants/{merchant_id}/deactivate": "a merchant is one and the same in both worlds",
}
"""Operations on data without an env; a test of its own covers each."""


ABOUT_MERCHANTS = {
    "GET /v1/admin/merchants/{merchant_id}",
    "GET /v1/admin/merchants/{merchant_id}/keys",
    "POST /v1/admin/merchants/{merchant_id}/keys",
    "PUT /v1/account-numbers/{number}",
}
"""Operations with the id of a merchant, which exists in both envs, or with a number that the caller chooses."""

CHECKED_FIRST = {"PUT /v1/merchant/shortcodes/{shortcode}"}
"""Operations whose body is refused before the look-up: an id is no number."""


@get("/v1/leaks/{payment_id:str}")
async def shows_any(payment_id: FromPath[str], caller: PaymentsRead, gateway: NamedDependency[Any]) -> Success[str]:
    """A route that ignores the env."""
    row = await gateway.db.fetchval(
        "SELECT payment_id FROM payment WHERE merchant_id = $1 AND payment_id = $2", caller.merchant_id, payment_id
    )
    return Success(data=str(row))


@get("/v1/leaks")
async def lists_any(caller: PaymentsRead, gateway: NamedDependency[Any]) -> Success[list[str]]:
    """A list that ignores the env."""
    rows = await gateway.db.fetch("SELECT payment_id FROM payment WHERE merchant_id = $1", caller.merchant_id)
    return Success(data=[row["payment_id"] for row in rows])


@post("/v1/leaks/{thing_id:str}", status_code=404)
async def changes_any(thing_id: FromPath[str], caller: PaymentsWrite, gateway: NamedDependency[Any]) -> Success[str]:
    """A route that returns 404 and changes the object."""
    await gateway.db.execute(
        "UPDATE refund SET updated_at = now() WHERE merchant_id = $1 AND refund_id = $2", caller.merchant_id, thing_id
    )
    return Success(data="nothing")


LEAKY = Plugin(name="leaky", summary="Leaks.", requires=("payments",), routes=(shows_any, lists_any, changes_any))


@dataclass(frozen=True)
class EnvSite:
    """A merchant with every object in both envs, and a key with every scope for each."""

    gateway: Gateway
    base: str
    merchant_id: str
    keys: dict[Env, str]

    async def walk(self, env: Env) -> RouteWalk:
        """Call every operation with the key of one env and the ids of the other."""
        walk = RouteWalk(self.gateway, self.keys[env], env, self.merchant_id)
        await walk.go(WITHOUT_ENV)
        return walk


@pytest.fixture
async def env_site(values: dict[str, Any]) -> AsyncGenerator[EnvSite]:
    values["simulator"]["callback_delay"] = 0.05
    async with (
        running_gateway(values, plugins=(LEAKY,)) as (gateway, base),
        merchant(gateway, base, "600111", "254711000111") as one,
    ):
        # No worker runs any more: every later change was made by a request.
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
        yield EnvSite(gateway, base, merchant_id, keys)


def without_leaky(leaks: list[str]) -> list[str]:
    """Return the leaks except the ones of the deliberately leaky routes."""
    return [leak for leak in leaks if "/v1/leaks" not in leak]


async def test_routes_with_a_key_of_the_other_env_find_and_change_nothing(env_site: EnvSite) -> None:
    for env in ENVS:
        walk = await env_site.walk(env)
        assert without_leaky(walk.leaks) == []
        # The walk finds a route that shows, a route that lists and a route that changes silently.
        assert any("GET /v1/leaks/{payment_id} shows pay_" in leak for leak in walk.leaks), walk.leaks
        assert any("GET /v1/leaks shows pay_" in leak for leak in walk.leaks), walk.leaks
        assert any("POST /v1/leaks/{thing_id} changed refund" in leak for leak in walk.leaks), walk.leaks
        # The walk covers the whole route table; routes with an id answer 404.
        assert len(walk.statuses) > 40
        found = {name.rpartition(" ")[0] for name in walk.statuses if "{" in name and not name.endswith("404")}
        assert {name for name in found if "/v1/leaks" not in name} <= ABOUT_MERCHANTS | CHECKED_FIRST


LISTS = {
    "/v1/payments": "env",
    "/v1/refunds": "env",
    "/v1/transactions": "env",
    "/v1/events": "env",
    "/v1/webhooks/logs": "env",
    "/v1/payments/mpesa/reconciliations": "env",
    "/v1/admin/callbacks": "env",
    "/v1/audit/logs": "detail",
}


async def test_lists_and_exports_show_the_env_of_the_key_only(env_site: EnvSite) -> None:
    for env in ENVS:
        await check_own_env(env_site, env)


async def check_own_env(env_site: EnvSite, env: Env) -> None:
    """Call every list and export with the key of one env."""
    api = Api(env_site.base, env_site.keys[env])
    for path, column in LISTS.items():
        page = await api.call("GET", f"{path}?limit=100")
        shown = [row.get("env") if column == "env" else row["detail"].get("env", env) for row in page.data]
        assert shown, path
        assert set(shown) == {env}, path
        if path != "/v1/admin/callbacks":
            counted = await api.call("GET", f"{path}?limit=1&count=true")
            assert counted.body["meta"]["total"] >= len(shown), path
        if len(shown) > 1:
            cursor = (await api.call("GET", f"{path}?limit=1")).body["meta"]["next_cursor"]
            other = Api(env_site.base, env_site.keys[OTHER[env]])
            answer = await other.call("GET", f"{path}?cursor={cursor}")
            await other.close()
            if path != "/v1/audit/logs":
                assert (answer.status, answer.error["field"]) == (422, "cursor"), path
    for event in (await api.call("GET", "/v1/events")).data:
        assert event["data"]["env"] == env
    for path in ("/v1/payments/export", "/v1/refunds/export", "/v1/transactions/export"):
        key = ((b"x-api-key", env_site.keys[env].encode()),)
        exported = await send_request(env_site.gateway.asgi, "GET", path.encode(), key)
        head, *rows = exported.body.decode().splitlines()
        position = head.split(",").index("env")
        assert rows, path
        assert {row.split(",")[position] for row in rows} == {env}
    await api.close()


async def test_objects_show_their_env_and_rows_have_the_env_of_their_parent(env_site: EnvSite) -> None:
    assert await broken_invariants(env_site.gateway) == {}
    for env in ENVS:
        api = Api(env_site.base, env_site.keys[env])
        for path in ("/v1/payments", "/v1/refunds", "/v1/webhooks/logs", "/v1/payments/mpesa/reconciliations"):
            row = (await api.call("GET", path)).data[0]
            assert (await api.call("GET", f"{path}/{row['id']}")).data["env"] == env
        delivery = (await api.call("GET", "/v1/webhooks/logs")).data[0]
        event = (await api.call("GET", f"/v1/webhooks/logs/{delivery['id']}")).data["event"]
        assert (event["env"], event["data"]["env"]) == (env, env)
        assert (await api.call("GET", "/v1/merchant/webhook")).data["env"] == env
        await api.close()


UNIQUE_ACROSS_ENVS = {
    "account_number_is_once": "a receiver is of one env",
    "c2b_address_token_digest_key": "it is of a random token",
    "payment_of_key": "it is of a digest, which is made of the env too",
    "payment_own_reference": "the gateway draws these references, and no two are alike",
    "callback_fingerprint_key": "it is made from the address, which is of one env, or from what M-Pesa named",
    "delivery_event_id_endpoint_id_key": "an event is of one env",
    "reconciliation_run_one_at_a_time": "a receiver is of one env",
    "refund_whole": "a payment is of one env",
    "refund_whole_of_transaction": "a transaction is of one env",
    "shortcode_merchant_id_receiver_id_key": "a receiver is of one env",
    "transaction_subject": "a payment, refund or payout is of one env",
    "webhook_endpoint_address_id_key": "an address is of one endpoint",
}
"""Unique indexes without the env of their row, with the reason. Indexes on one id column need none."""

_WITHOUT_ENV = """
SELECT pg_class.relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE relnamespace = current_schema()::regnamespace AND indisunique AND NOT indisprimary
    AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = indrelid AND attname = 'env' AND attnum > 0)
    AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = indrelid AND attname = 'env' AND attnum = ANY(indkey))
"""


async def test_unique_values_are_unique_per_env(env_site: EnvSite) -> None:
    found = await env_site.gateway.db.fetch(_WITHOUT_ENV)
    assert {row["relname"] for row in found} == set(UNIQUE_ACROSS_ENVS)


async def test_sandbox_admin_key_changes_no_live_merchant(env_site: EnvSite) -> None:
    path = f"/v1/admin/merchants/{env_site.merchant_id}"
    api = Api(env_site.base, env_site.keys["sandbox"])
    assert (await api.call("POST", f"{path}/deactivate", {"confirm": env_site.merchant_id})).status == 409
    answer = await api.call("POST", f"{path}/keys", {"name": "till", "env": "live"})
    assert (answer.status, answer.error["field"]) == (422, "env")
    made = await api.call("POST", f"{path}/keys", {"name": "till"})
    assert made.data["key"]["env"] == "sandbox"
    assert {key["env"] for key in (await api.call("GET", f"{path}/keys")).data} == {"sandbox"}
    await api.close()


CHANGED_ENVS = [
    ("UPDATE refund SET env = 'live', reversal_receipt = NULL, idempotency_key = NULL", "refunds.fits_its_payment"),
    ("UPDATE status_check SET env = 'live'", "payments.env_is_its_payments"),
    ("UPDATE idempotency_key SET env = 'live'", "payments.env_is_its_payments"),
    ("UPDATE event SET env = 'live'", "webhooks.delivery_is_its_events"),
    ("UPDATE delivery SET env = 'live'", "webhooks.delivery_is_its_events"),
    ("UPDATE transaction SET env = 'live', receipt = 'X' || receipt", "reconciliation.env_is_its_runs"),
    ("UPDATE reconciliation_run SET env = 'live'", "reconciliation.env_is_its_runs"),
]
"""Statements that move a row to another env than its parent's, and the invariant that finds it."""


class RolledBack(Exception):
    """Rolls back a transaction."""


async def test_row_with_another_env_than_its_parent_is_found(env_site: EnvSite) -> None:
    db = env_site.gateway.db
    invariants = {f"{owner}.{invariant.name}": invariant.sql for owner, invariant in invariants_of(env_site.gateway)}
    for statement, name in CHANGED_ENVS:
        with suppress(RolledBack):
            async with db.transaction():
                await db.execute("SET LOCAL session_replication_role = replica")
                await db.execute(f"{statement} WHERE env = 'sandbox'")
                assert await db.fetch(invariants[name]), (statement, name)
                raise RolledBack


async def test_row_with_another_env_than_its_parent_is_rejected_by_postgres(env_site: EnvSite) -> None:
    db = env_site.gateway.db
    for statement in (
        "UPDATE status_check SET env = 'live' WHERE env = 'sandbox'",
        (
            "INSERT INTO statement_note (transaction_id, receiver_id, merchant_id, env, moments, amount_text, "
            "is_timed, is_of_till, created_at, settled_at, finding, payment_id) "
            "SELECT transaction_id, receiver_id, merchant_id, env, ARRAY[now()], '', true, false, now(), now(), "
            "'recovered', (SELECT payment_id FROM payment WHERE env = 'live') FROM transaction WHERE env = 'sandbox' "
            "ON CONFLICT (transaction_id) DO UPDATE SET payment_id = excluded.payment_id, finding = 'recovered'"
        ),
        "UPDATE delivery SET env = 'live' WHERE env = 'sandbox'",
        "UPDATE webhook_endpoint SET env = 'live', is_active = false WHERE env = 'sandbox'",
        "UPDATE refund SET env = 'live', idempotency_key = NULL, reversal_receipt = NULL WHERE env = 'sandbox'",
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await db.execute(statement)
