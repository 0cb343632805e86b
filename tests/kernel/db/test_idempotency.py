"""Protects idempotency keys: one winner, the same answer to each repetition, and no second payment."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpesa_gateway.db.engine import Database
from mpesa_gateway.db.idempotency import (
    Claim,
    KeyInProgress,
    KeyMismatch,
    KeyRequired,
    claim,
    delete_key,
    fingerprint,
    read_key,
    release,
    settle,
)
from mpesa_gateway.db.migrator import find, migrate
from mpesa_gateway.env import Env
from tests.identifiers import identifier

MERCHANT, OTHER_MERCHANT = identifier("mer", 1), identifier("mer", 2)
REFUND = identifier("rfd")
PAYMENTS = [identifier("pay", number) for number in range(30)]

NOW = datetime(2026, 11, 23, 10, 15, tzinfo=UTC)
LEASE = timedelta(seconds=30)

PRINTABLE = st.characters(min_codepoint=32, max_codepoint=126)
VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
BODIES = st.dictionaries(st.text(max_size=10), VALUES | st.lists(VALUES, max_size=3), max_size=5)


@given(st.text(PRINTABLE, min_size=1, max_size=255).filter(str.strip))
def test_read_key_printable_text_is_accepted_as_sent(text: str) -> None:
    assert read_key(text) == text.strip(" ")
    assert read_key(f"  {text}\t") == text.strip(" ")


@given(st.text(max_size=300) | st.text(PRINTABLE, min_size=250, max_size=260) | st.none())
def test_read_key_anything_else_is_refused_with_a_sentence(text: str | None) -> None:
    if text is not None and re.fullmatch(r"[ -~]{1,255}", text.strip()):
        assert read_key(text) == text.strip()
    else:
        with pytest.raises(KeyRequired, match="Idempotency-Key") as refused:
            read_key(text)
        assert refused.value.status == 400


@given(BODIES, st.randoms())
def test_fingerprint_ignores_the_order_of_a_body(body: dict[str, Any], chance: Any) -> None:
    items = list(body.items())
    chance.shuffle(items)
    assert fingerprint("pay", dict(items)) == fingerprint("pay", body)
    assert len(fingerprint("pay", body)) == 16


@given(BODIES, BODIES, st.sampled_from(["pay", "refund"]), st.sampled_from(["pay", "refund"]))
def test_fingerprint_of_another_body_or_operation_differs(
    one: dict[str, Any], two: dict[str, Any], first: str, second: str
) -> None:
    # As JSON: in Python, True equals 1.
    is_same = first == second and repr(sorted(one.items())) == repr(sorted(two.items()))
    assert (fingerprint(first, one) == fingerprint(second, two)) is is_same


@pytest.fixture
async def shops(db: Database) -> Database:
    """Return a database with two merchants."""
    await migrate(db, find("kernel", "mpesa_gateway.db.migrations"))
    await db.execute(
        "INSERT INTO merchant (merchant_id, name, created_at, updated_at) "
        "VALUES ($1, 'One', now(), now()), ($2, 'Two', now(), now())",
        MERCHANT,
        OTHER_MERCHANT,
    )
    return db


async def ask(
    db: Database,
    subject_id: str,
    *,
    at: datetime = NOW,
    body: bytes = bytes(16),
    merchant: str = MERCHANT,
    env: Env = "sandbox",
    operation: str = "payment",
) -> Claim:
    """Claim the key for a subject."""
    async with db.transaction():
        return await claim(
            db,
            merchant_id=merchant,
            env=env,
            key="order 1",
            operation=operation,
            fingerprint=body,
            subject_id=subject_id,
            now=at,
            lease=LEASE,
        )


async def test_claim_of_a_claimed_key_waits_then_returns_the_outcome(shops: Database) -> None:
    assert await ask(shops, PAYMENTS[1]) == Claim(PAYMENTS[1], is_ours=True)
    with pytest.raises(KeyInProgress) as waits:
        await ask(shops, PAYMENTS[2], at=NOW + LEASE - timedelta(microseconds=1))
    assert (waits.value.status, waits.value.retry_after) == (409, 1)
    assert waits.value.problems[0].retryable is True
    await settle(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    assert await ask(shops, PAYMENTS[3]) == Claim(PAYMENTS[1], is_ours=False)


async def test_claim_after_an_expired_lease_returns_the_first_subject(shops: Database) -> None:
    await ask(shops, PAYMENTS[1])
    for late in (LEASE, timedelta(days=400)):
        assert await ask(shops, PAYMENTS[2], at=NOW + late) == Claim(PAYMENTS[1], is_ours=False)


async def test_claim_of_a_released_key_is_for_its_first_subject(shops: Database) -> None:
    await ask(shops, PAYMENTS[1])
    await release(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    later = NOW + timedelta(seconds=10)
    assert await ask(shops, PAYMENTS[2], at=later) == Claim(PAYMENTS[1], is_ours=True)
    with pytest.raises(KeyInProgress):
        await ask(shops, PAYMENTS[3], at=later + LEASE - timedelta(seconds=1))


async def test_claim_with_another_body_is_refused_in_every_state(shops: Database) -> None:
    async def is_refused() -> None:
        with pytest.raises(KeyMismatch) as refused:
            await ask(shops, PAYMENTS[2], body=b"x" * 16)
        assert refused.value.status == 422

    await ask(shops, PAYMENTS[1])
    await is_refused()
    await release(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    await is_refused()
    assert await ask(shops, PAYMENTS[1]) == Claim(PAYMENTS[1], is_ours=True)
    await settle(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    await is_refused()


async def test_release_of_a_settled_key_does_nothing(shops: Database) -> None:
    await ask(shops, PAYMENTS[1])
    await settle(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    await release(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    assert await ask(shops, PAYMENTS[2]) == Claim(PAYMENTS[1], is_ours=False)


async def test_claim_of_another_merchant_is_separate(shops: Database) -> None:
    assert (await ask(shops, PAYMENTS[1])).is_ours
    assert await ask(shops, PAYMENTS[2], merchant=OTHER_MERCHANT, body=b"x" * 16) == Claim(PAYMENTS[2], is_ours=True)
    await settle(shops, merchant_id=OTHER_MERCHANT, env="sandbox", key="order 1")
    with pytest.raises(KeyInProgress):
        await ask(shops, PAYMENTS[3])


async def test_claim_of_another_env_is_separate(shops: Database) -> None:
    assert (await ask(shops, PAYMENTS[1])).is_ours
    assert await ask(shops, PAYMENTS[2], env="live") == Claim(PAYMENTS[2], is_ours=True)
    await settle(shops, merchant_id=MERCHANT, env="live", key="order 1")
    await release(shops, merchant_id=MERCHANT, env="live", key="order 1")
    assert await ask(shops, PAYMENTS[3], env="live") == Claim(PAYMENTS[2], is_ours=False)
    with pytest.raises(KeyInProgress):
        await ask(shops, PAYMENTS[4])
    await delete_key(shops, merchant_id=MERCHANT, env="live", key="order 1")
    assert await ask(shops, PAYMENTS[5], env="live") == Claim(PAYMENTS[5], is_ours=True)


@pytest.mark.parametrize("end", [settle, release, None])
async def test_claim_for_another_operation_is_refused_and_the_operation_named(shops: Database, end: Any) -> None:
    await ask(shops, PAYMENTS[1])
    if end is not None:
        await end(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    with pytest.raises(
        KeyMismatch, match=rf"was used for a payment \({PAYMENTS[1]}\), and this request is a refund"
    ) as refused:
        await ask(shops, REFUND, operation="refund")
    assert refused.value.status == 422
    assert (await ask(shops, REFUND, operation="refund", env="live")).is_ours


@pytest.mark.parametrize("commits", [True, False])
async def test_claims_wait_for_the_first_and_one_wins_only_after_its_rollback(shops: Database, commits: bool) -> None:
    took = asyncio.Event()
    go_on = asyncio.Event()

    async def first() -> None:
        async with shops.transaction():
            assert (await ask(shops, PAYMENTS[0])).is_ours
            took.set()
            await go_on.wait()
            if not commits:
                raise LookupError

    leading = asyncio.create_task(first())
    await took.wait()
    others = [asyncio.create_task(ask(shops, one)) for one in PAYMENTS[1:9]]
    finished, _ = await asyncio.wait(others, timeout=0.5)
    assert not finished
    go_on.set()
    await asyncio.gather(leading, return_exceptions=True)
    ends = await asyncio.gather(*others, return_exceptions=True)
    won = [end for end in ends if isinstance(end, Claim)]
    assert sum(isinstance(end, KeyInProgress) for end in ends) == len(ends) - len(won)
    assert len(won) == (0 if commits else 1)
    assert all(one.is_ours for one in won)
    kept = await shops.fetchval("SELECT array_agg(subject_id) FROM idempotency_key")
    assert kept == ([PAYMENTS[0]] if commits else [won[0].subject_id])


async def test_claims_of_a_released_key_have_one_winner(shops: Database) -> None:
    await ask(shops, PAYMENTS[0])
    await release(shops, merchant_id=MERCHANT, env="sandbox", key="order 1")
    ends = await asyncio.gather(*(ask(shops, one) for one in PAYMENTS), return_exceptions=True)
    assert [end for end in ends if not isinstance(end, KeyInProgress)] == [Claim(PAYMENTS[0], is_ours=True)]
