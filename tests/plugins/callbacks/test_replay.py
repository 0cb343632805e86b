"""Protects the replay of stored callbacks: it is idempotent, and limited to its env and to administrators."""

import asyncio
import json
from contextvars import Context
from typing import Any

import pytest

from mpesa_gateway.errors import Conflict, NotFound
from mpesa_gateway.security.scopes import ADMIN, Env
from mpesa_gateway.testing.serving import Api, eventually, running_gateway, shop
from mpesa_gateway_callbacks.api import DifferentSubject
from mpesa_gateway_callbacks.errors import ShapeRejected
from mpesa_gateway_callbacks.operator_service import CallbackOperatorService
from mpesa_gateway_payments.events import StkResulted
from tests.conftest import Harness
from tests.plugins.callbacks.test_callbacks import body, pending_payment, post


async def refused_callback(harness: Harness, key: str, code: Any = 0) -> tuple[dict[str, Any], str]:
    """Store a refused callback that a later release could read. Returns its payment and its id."""
    made, url = await pending_payment(harness, key)
    assert (await post(harness, url, raw=b"unreadable " + key.encode())).status == 422
    refused_id = await harness.gateway.db.fetchval(
        "UPDATE refused_callback SET original = $2 WHERE subject_id = $1 RETURNING refused_id",
        made["id"],
        json.dumps(body(made["provider_ref"], code, receipt=f"TKN{made['id'][-7:].upper()}")),
    )
    return made, refused_id


async def all_rows(harness: Harness, *excluded: str) -> dict[str, list[Any]]:
    """Returns the rows of every table that a replay could change, without the audit log."""
    skipped = {"audit", "job_tick", *excluded}
    names = await harness.gateway.db.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    return {
        name: sorted(
            row["row"]
            for row in await harness.gateway.db.fetch(f'SELECT "{name}"::text AS row FROM "{name}"')  # noqa: S608 - its own tables
        )
        for name in sorted(row["relname"] for row in names)
        if name not in skipped and not name.startswith(("audit", "sim_", "attempt", "delivery"))
    }


async def test_replay_of_a_refused_callback_repeated_completes_its_payment_once(harness: Harness) -> None:
    operators = harness.gateway.services.get(CallbackOperatorService)
    made, refused_id = await refused_callback(harness, "a")
    done = await operators.replay(refused_id, actor="a person")
    assert (done.verdict, done.was_done) == ("applied", False)
    assert (await harness.api.settled(made["id"]))["status"] == "completed"
    # The delivery updates the endpoint's row: wait for it before the comparison.
    assert await harness.delivered(1) == ["payment.completed"]
    before = await all_rows(harness)
    for callback_id in (refused_id, done.callback_id, refused_id):
        again = await operators.replay(callback_id, actor="a person")
        assert (again.callback_id, again.verdict, again.was_done) == (done.callback_id, "applied", True)
    assert await all_rows(harness) == before
    actions = [entry.action for entry in (await harness.gateway.audit.page(10, None, None, None)).rows]
    assert (actions.count("callback.replayed"), actions.count("callback.offered")) == (3, 1)


async def test_replay_of_a_refused_callback_concurrent_is_applied_once(harness: Harness) -> None:
    results: list[StkResulted] = []

    @harness.gateway.on(StkResulted)
    async def collect_result(result: StkResulted) -> None:
        results.append(result)

    operators = harness.gateway.services.get(CallbackOperatorService)
    for number, code in enumerate((0, 1032)):
        made, refused_id = await refused_callback(harness, f"k{number}", code)
        done = await asyncio.gather(*(operators.replay(refused_id, actor=f"person {each}") for each in range(8)))
        assert {each.verdict for each in done} == {"applied"}
        assert len({each.callback_id for each in done}) == 1
        rows = await harness.gateway.db.fetch("SELECT * FROM callback WHERE subject_id = $1", made["id"])
        assert [(row["verdict"], row["repeats"]) for row in rows] == [("applied", 0)]
        kinds = await harness.gateway.db.fetch(
            "SELECT kind FROM event WHERE is_public AND event.body LIKE '%' || $1 || '%'", made["id"]
        )
        assert len(kinds) == 1

    async def has_results() -> bool:
        return len(results) >= 2

    assert await eventually(has_results)
    assert sorted(result.result_code for result in results) == ["0", "1032"]
    assert collect_result.__name__ == "collect_result"


async def test_replay_of_a_waiting_callback_concurrent_is_applied_once(values: dict[str, Any]) -> None:
    values["security"] |= {"trusted_proxies": ["127.0.0.0/8"]}
    values["worker"] = {"in_process": False}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        made = (await api.pay("254700000020", key="a")).data
        listed = {"X-Forwarded-For": "196.201.214.200"}
        assert (await api.call("POST", "/v1/webhooks/mpesa", body("ws_CO_early", 1032), headers=listed)).status == 200
        await gateway.db.execute("UPDATE payment SET checkout_request_id = 'ws_CO_early'")
        callback_id = await gateway.db.fetchval("SELECT callback_id FROM callback WHERE verdict = 'waiting'")
        operators = gateway.services.get(CallbackOperatorService)
        tasks = [
            asyncio.create_task(operators.replay(callback_id, actor="a person"), context=Context()) for _ in range(8)
        ]
        done = await asyncio.gather(*tasks)
        assert {each.verdict for each in done} == {"applied"}
        assert [each.was_done for each in done].count(False) == 1
        found = (await api.call("GET", f"/v1/payments/{made['id']}")).data
        assert (found["status"], found["failure_reason"]) == ("failed", "cancelled_by_user")
        assert [step["kind"] for step in found["timeline"]].count("failed") == 1


async def test_replay_skips_no_check_but_that_of_the_source(harness: Harness) -> None:
    operators = harness.gateway.services.get(CallbackOperatorService)
    made, url = await pending_payment(harness, "a")
    other, _ = await pending_payment(harness, "b")
    assert (await post(harness, url, body(other["provider_ref"]))).status == 403
    assert (await post(harness, url, raw=b"{}")).status == 422
    assert (await post(harness, url[:-5] + "00000", body(made["provider_ref"]))).status == 404
    assert (await post(harness, "/v1/webhooks/mpesa", body(made["provider_ref"]))).status == 403
    ids = {
        row["reason"]: row["refused_id"]
        for row in await harness.gateway.db.fetch("SELECT reason, refused_id FROM refused_callback")
    }
    before = await all_rows(harness)
    for reason, vouches, kind in (
        ("subject", True, DifferentSubject),
        ("shape", True, ShapeRejected),
        ("token", True, Conflict),
        ("source", False, Conflict),
    ):
        for _ in range(2):
            with pytest.raises(kind):
                await operators.replay(ids[reason], actor="a person", vouches=vouches)
    assert await all_rows(harness) == before
    done = await operators.replay(ids["source"], actor="a person", vouches=True)
    assert (done.verdict, (await harness.api.settled(made["id"]))["status"]) == ("applied", "completed")
    for missing in ("cbk_01jd0000000000000000000000", "ref_01jd0000000000000000000000", "pay_1", ""):
        with pytest.raises(NotFound):
            await operators.replay(missing, actor="a person")


def admin_client(harness: Harness, env: Env) -> Any:
    return shop(harness.gateway, harness.base, scopes=(ADMIN,), env=env, is_configured=False)


async def replay(api: Api, callback_id: str) -> tuple[int, Any]:
    """Replay by HTTP. Returns the status, and the data or the error code."""
    answer = await api.call("POST", f"/v1/admin/callbacks/{callback_id}/replay")
    return answer.status, answer.body.get("data") or answer.error["code"]


async def test_replay_route_accepts_an_admin_key_of_the_callbacks_env_only(harness: Harness) -> None:
    made, refused_id = await refused_callback(harness, "a")
    before = await all_rows(harness, "api_key", "merchant")
    async with (
        admin_client(harness, "sandbox") as sandbox,
        admin_client(harness, "live") as live,
        shop(
            harness.gateway, harness.base, scopes=harness.gateway.scopes.of_merchants, is_configured=False
        ) as stranger,
    ):
        # A merchant's key may not replay, not even the merchant's own callback.
        for api in (stranger, harness.api):
            assert await replay(api, refused_id) == (403, "AUTH_INSUFFICIENT_SCOPE")
        assert await replay(live, refused_id) == (404, "NOT_FOUND")
        assert await all_rows(harness, "api_key", "merchant") == before
        status, data = await replay(sandbox, refused_id)
        assert (status, data["verdict"], data["was_done"], data["id"]) == (200, "applied", False, refused_id)
        assert (await harness.api.settled(made["id"]))["status"] == "completed"
        assert await replay(sandbox, data["callback_id"]) == (
            200,
            data | {"id": data["callback_id"], "was_done": True},
        )
        assert await replay(live, data["callback_id"]) == (404, "NOT_FOUND")
        for nothing in ("cbk_01jd0000000000000000000000", "ref_", "x", "%00"):
            assert (await sandbox.call("POST", f"/v1/admin/callbacks/{nothing}/replay")).status == 404
    (entry, *_) = (await harness.gateway.audit.page(1, None, "callback.replayed", None)).rows
    assert (entry.subject_id, entry.actor.partition(":")[0]) == (refused_id, "key")


async def test_replay_route_of_a_callback_without_env_needs_a_live_key(values: dict[str, Any]) -> None:
    values["callbacks"] = {"enforce_allowlist": "never"}
    async with running_gateway(values) as (gateway, base), shop(gateway, base) as api:
        assert (await api.call("POST", "/v1/webhooks/mpesa", body("ws_CO_early"))).status == 200
        callback_id = await gateway.db.fetchval("SELECT callback_id FROM callback WHERE env IS NULL")
        async with (
            shop(gateway, base, scopes=(ADMIN,), is_configured=False) as sandbox,
            shop(gateway, base, scopes=(ADMIN,), env="live", is_configured=False) as live,
        ):
            assert await replay(sandbox, callback_id) == (409, "CONFLICT")
            status, data = await replay(live, callback_id)
            assert (status, data["verdict"]) == (200, "waiting")


async def test_callback_lists_filter_by_kind_time_and_unread(harness: Harness) -> None:
    made, url = await pending_payment(harness, "a")
    assert (await post(harness, url, body(made["provider_ref"]))).status == 200
    _, refused_id = await refused_callback(harness, "b")
    async with admin_client(harness, "sandbox") as api:
        for path, count in (
            ("?unread=true", 0),
            ("?kind=stk", 1),
            ("?kind=status", 0),
            ("?verdict=applied&kind=stk&since=2020-01-01", 1),
            ("?since=2100-01-01", 0),
            ("?until=2020-01-01", 0),
            ("/refused?unread=true&kind=stk&since=2020-01-01&until=2100-01-01", 1),
            ("/refused?kind=pull", 0),
        ):
            assert len((await api.call("GET", f"/v1/admin/callbacks{path}")).data) == count, path
        for path in ("?kind=other", "?unread=perhaps", "/refused?since=yesterday"):
            assert (await api.call("GET", f"/v1/admin/callbacks{path}")).status == 422
        assert (await replay(api, refused_id))[0] == 200
        assert (await api.call("GET", "/v1/admin/callbacks/refused?unread=true")).data == []
        (shown,) = (await api.call("GET", "/v1/admin/callbacks/refused")).data
        assert shown["callback_id"].startswith("cbk_")
        assert shown["replayed_at"] is not None
