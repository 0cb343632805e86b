"""Protects against forged callbacks: each is rejected, stored, shown to operator and merchant, and changes nothing."""

import asyncio
from typing import Any

import pytest

from mpesa_gateway.security.scopes import ADMIN, Env
from mpesa_gateway.testing.serving import INITIATED, shop
from mpesa_gateway_callbacks.api import Callbacks
from mpesa_gateway_callbacks.verifier import CallbackVerifier
from tests.conftest import Harness
from tests.daraja import Daraja, result, stk_callback

RECEIPT = "TKN4A1B2C3"
SPECIFIED: dict[str, str] = {
    "stk": "/v1/webhooks/mpesa",
    "status": "/v1/webhooks/mpesa/transactionstatus/result",
    "status-timeout": "/v1/webhooks/mpesa/transactionstatus/timeout",
    "reversal": "/v1/webhooks/mpesa/reversal/result",
    "reversal-timeout": "/v1/webhooks/mpesa/reversal/timeout",
}
"""The addresses of the specification, without a token."""


@pytest.fixture
def values(values: dict[str, Any], daraja: Daraja) -> dict[str, Any]:
    """No status queries."""
    return values | {
        "daraja": {"sandbox_url": daraja.base},
        "payments": {"query_after": [3600], "expire_after": 7200},
        "refunds": {"query_after": [3600]},
    }


class Victim:
    """A merchant with a pending payment, a completed one, a status query and a refund: the targets of a forger."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.pending: Any = None
        self.paid: Any = None
        self.check: Any = None
        self.refund: Any = None

    @classmethod
    async def of(cls, harness: Harness, receipt: str = RECEIPT) -> "Victim":
        victim = cls(harness)
        assert (await harness.api.call("PUT", "/v1/merchant/providers", INITIATED)).status == 200
        victim.pending = (await harness.api.pay("254711000001", 500, key="pending")).data
        victim.paid = (await harness.api.pay("254711000002", 60, key="paid")).data
        body = stk_callback(victim.paid["provider_ref"], amount=60, receipt=receipt)
        assert (await victim.post("stk", body)).status == 200
        victim.check = (await harness.api.call("POST", f"/v1/payments/mpesa/check-status/{victim.pending['id']}")).data
        victim.refund = (await harness.api.call("POST", "/v1/refunds", {"payment_id": victim.paid["id"]})).data
        return victim

    def subject(self, kind: str) -> str:
        """Return the id that a callback of this kind refers to."""
        subjects = {"status": self.check and self.check["check_id"], "reversal": self.refund and self.refund["id"]}
        if kind == "pull":
            return str(self.paid["merchant_id"])
        if kind == "stk":
            return str(self.pending["id"] if self.check else self.paid["id"])
        return str(subjects[kind.partition("-")[0]])

    def path(self, kind: str, env: Env = "sandbox", subject_id: str | None = None) -> str:
        """Return the path that Daraja posts to."""
        url = self.harness.gateway.services.get(Callbacks).url_for(
            kind, env=env, merchant_id=self.paid["merchant_id"], subject_id=subject_id or self.subject(kind)
        )
        return url.removeprefix(self.harness.base)

    def forged_body(self, kind: str, receipt: str = "FORGED0001") -> dict[str, Any]:
        """Return a forged body."""
        if kind == "stk":
            return stk_callback(self.pending["provider_ref"], receipt=receipt)
        if kind == "status":
            return result(0, says={"ReceiptNo": receipt, "TransactionStatus": "Completed", "Amount": "500"})
        if kind == "reversal":
            return result(0, transaction_id=receipt, says={"Amount": "60", "OriginalTransactionID": RECEIPT})
        return result(1)

    async def post(self, kind: str, body: Any, path: str | None = None, **headers: str) -> Any:
        return await self.harness.api.call("POST", path or self.path(kind), body, headers=headers)

    async def state(self) -> dict[str, Any]:
        """Return everything that a forged callback could change."""
        db = self.harness.gateway.db
        return {
            table: [dict(row) for row in await db.fetch(f"SELECT * FROM {table} ORDER BY 1")]  # noqa: S608
            for table in ("payment", "payment_step", "status_check", "refund", "event", "callback")
        }


KINDS: tuple[str, ...] = ("stk", "status", "status-timeout", "reversal", "reversal-timeout", "pull")


def broken(path: str) -> str:
    """Return the path with another last letter."""
    return path[:-1] + ("0" if path[-1] != "0" else "1")


async def test_forged_callback_of_any_kind_is_rejected_and_changes_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Above this rate forgeries are counted and not stored.
    monkeypatch.setattr("mpesa_gateway_callbacks.refusals._STORED_A_SECOND", 1000)
    victim = await Victim.of(harness)
    before = await victim.state()
    expected: list[tuple[str, str]] = []
    for kind in KINDS:
        forged_body, path = victim.forged_body(kind), victim.path(kind)
        other: str = "pull" if kind == "stk" else "stk"
        tries: list[tuple[int, str, str, dict[str, str]]] = [
            (404, "token", broken(path), {}),
            (404, "token", path.rpartition("/")[0] + "/nonsense", {}),
            # A valid token for another callback kind; tokens of results are valid at every result address.
            (404, "token", victim.path(other).replace(f"/cb/{other}/", f"/cb/{kind}/"), {}),
            # Live callbacks are accepted from Safaricom's addresses only, and no header makes this machine one of them.
            (403, "source", victim.path(kind, "live"), {"X-Forwarded-For": "196.201.214.200"}),
            (401, "signature", path, {"X-Mpesa-Signature": "Zm9yZ2Vk"}),
        ]
        if kind in SPECIFIED:
            tries.append((403, "source", SPECIFIED[kind], {}))
        for status, reason, where, headers in tries:
            answer = await victim.post(kind, forged_body, where, **headers)
            assert (answer.status, answer.error["code"]) == (status, "CALLBACK_REFUSED"), (kind, where)
            if where != victim.path(kind, "live"):
                # A sandbox key does not see callbacks about live payments.
                expected.append((kind, reason))
        if not kind.endswith("-timeout"):
            # Any body at a timeout address is a timeout.
            answer = await harness.api.call("POST", path, raw=b"not a callback at all")
            assert answer.status == 422
            expected.append((kind, "shape"))
    assert await victim.state() == before
    async with shop(harness.gateway, harness.base, scopes=(ADMIN,), is_configured=False) as operator:
        shown = (await operator.call("GET", "/v1/admin/callbacks/refused?limit=100")).data
        assert [(one["kind"], one["reason"]) for one in reversed(shown)] == expected
        assert {one["source"] for one in shown} == {"127.0.0.1"}
        assert any("FORGED0001" in one["body"] for one in shown)
        own = {one["merchant_id"] for one in shown if one["reason"] in {"signature", "shape"}}
        assert own == {victim.paid["merchant_id"]}
        assert (await harness.api.call("GET", "/v1/admin/callbacks/refused")).status == 403


async def test_rejected_callback_is_in_the_audit_log_of_its_merchant_only(harness: Harness) -> None:
    victim = await Victim.of(harness)
    assert (await victim.post("stk", victim.forged_body("stk"), **{"X-Mpesa-Signature": "Zm9yZ2Vk"})).status == 401
    (entry,) = (await harness.api.call("GET", "/v1/audit/logs?action=callback.refused")).data
    assert entry["detail"] == {
        "env": "sandbox",
        "kind": "stk",
        "reason": "signature",
        "refused_id": entry["detail"]["refused_id"],
    }
    assert entry["subject_id"] == victim.pending["id"]
    async with shop(harness.gateway, harness.base) as other:
        assert (await other.call("GET", "/v1/audit/logs?action=callback.refused")).data == []


async def test_replayed_callback_gets_the_same_answer_and_changes_nothing(harness: Harness) -> None:
    victim = await Victim.of(harness)
    for kind in ("stk", "status", "reversal"):
        forged_body = victim.forged_body(kind, receipt=f"TRUE00000{KINDS.index(kind)}")
        if kind == "status":
            # The STK callback has completed the payment: the status query finds its own receipt and changes nothing.
            forged_body = victim.forged_body(kind, receipt="TRUE000000")
        assert (await victim.post(kind, forged_body)).status == 200
        before = await victim.state()
        answers = await asyncio.gather(*(victim.post(kind, forged_body) for _ in range(5)))
        assert [answer.body for answer in answers] == [{"ResultCode": 0, "ResultDesc": "Accepted"}] * 5
        after = await victim.state()
        repeats = [row.pop("repeats") for row in after["callback"] if row["kind"] == kind]
        assert 5 in repeats
        for row in before["callback"]:
            row.pop("repeats", None)
        for row in after["callback"]:
            row.pop("repeats", None)
        assert after == before
    repeated = (await harness.api.call("GET", "/v1/audit/logs?action=callback.repeated&limit=100")).data
    # One entry of each kind per interval; the callbacks themselves count the repetitions.
    assert [entry["detail"]["kind"] for entry in repeated] == ["reversal", "status", "stk"]
    kinds = [one.headers["x-event-type"] for one in await harness.receiver.wait_for(3)]
    assert sorted(kinds) == ["payment.completed", "payment.completed", "payment.reversed"]


def every_address_allowed(_: CallbackVerifier, __: str) -> None:
    """Every address is on the allowlist."""


async def test_callback_at_address_of_the_other_env_changes_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No supported path creates such an address: this is the last check if one did."""
    victim = await Victim.of(harness)
    monkeypatch.setattr(CallbackVerifier, "_check_listed", every_address_allowed)
    before = await victim.state()
    for kind in KINDS:
        answer = await victim.post(kind, victim.forged_body(kind), victim.path(kind, "live"))
        if kind != "pull":
            assert (answer.status, answer.error["code"]) == (403, "CALLBACK_REFUSED"), kind
    after = await victim.state()
    assert {name: rows for name, rows in after.items() if name != "callback"} == {
        name: rows for name, rows in before.items() if name != "callback"
    }


async def test_callback_at_address_of_another_merchant_changes_nothing(harness: Harness, daraja: Daraja) -> None:
    victim = await Victim.of(harness)
    async with shop(harness.gateway, harness.base) as api:
        forger = await Victim.of(Harness(harness.gateway, harness.base, api, harness.receiver), receipt="OTHER00001")
        before = await victim.state()
        for kind in ("stk", "status", "reversal"):
            # Their own address, with a body about our request.
            forged_body = victim.forged_body(kind)
            if kind != "stk":
                handle = await harness.gateway.db.fetchval(
                    "SELECT originator_conversation_id FROM refund WHERE refund_id = $1", victim.refund["id"]
                )
                forged_body["Result"]["OriginatorConversationID"] = handle
            answer = await forger.post(kind, forged_body)
            assert (answer.status, answer.error["code"]) == (403, "CALLBACK_REFUSED"), kind
            # Their own address, with our subject inserted.
            mine, theirs = victim.subject(kind), forger.subject(kind)
            strange = forger.path(kind).replace(theirs[4:], mine[4:])
            if strange != forger.path(kind):
                assert (await forger.post(kind, victim.forged_body(kind), strange)).status == 404
            # A token for their merchant and our request, which no supported path issues.
            url = harness.gateway.services.get(Callbacks).url_for(
                kind, env="sandbox", merchant_id=forger.paid["merchant_id"], subject_id=mine
            )
            answer = await api.call("POST", url.removeprefix(harness.base), victim.forged_body(kind))
            assert (answer.status, answer.error["code"]) == (403, "CALLBACK_REFUSED"), kind
        assert await victim.state() == before
    assert len(daraja.requests_of("reversal")) == 2
