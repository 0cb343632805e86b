"""Protects deadlines: late work delays no caller, and is bounded."""

import asyncio

import pytest

from mpesa_gateway.deadline import Deadline, DeadlineExceeded


async def stubborn(ended: asyncio.Event, goes: asyncio.Event) -> str:
    """Work that does not end when it is cancelled, as a query on a stalled connection."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await goes.wait()
        ended.set()
        raise
    return "never"


async def value(result: str) -> str:
    await asyncio.sleep(0)
    return result


async def error() -> str:
    raise LookupError("no such thing")


async def test_deadline_returns_the_result_or_raises_the_error() -> None:
    deadline = Deadline(5, most=2)
    assert await deadline.run(value("done")) == "done"
    with pytest.raises(LookupError, match="no such thing"):
        await deadline.run(error())


async def test_deadline_does_not_wait_for_late_work_to_end() -> None:
    deadline, ended, goes = Deadline(0.01, most=1), asyncio.Event(), asyncio.Event()
    with pytest.raises(DeadlineExceeded, match="no result in"):
        await deadline.run(stubborn(ended, goes))
    assert not ended.is_set()
    # It still counts until it has ended.
    with pytest.raises(DeadlineExceeded, match="1 pieces of work"):
        await deadline.run(value("done"))
    goes.set()
    await ended.wait()
    await asyncio.sleep(0)
    assert await deadline.run(value("done")) == "done"


async def test_deadline_of_a_cancelled_caller_cancels_the_work() -> None:
    deadline, ended, goes = Deadline(60, most=1), asyncio.Event(), asyncio.Event()
    goes.set()
    caller = asyncio.create_task(deadline.run(stubborn(ended, goes)))
    await asyncio.sleep(0.01)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await ended.wait()


async def test_deadline_stopped_ends_its_work() -> None:
    deadline, ended, goes = Deadline(60, most=1), asyncio.Event(), asyncio.Event()
    goes.set()
    caller = asyncio.create_task(deadline.run(stubborn(ended, goes)))
    await asyncio.sleep(0.01)
    await deadline.stop()
    assert ended.is_set()
    with pytest.raises(asyncio.CancelledError):
        await caller
