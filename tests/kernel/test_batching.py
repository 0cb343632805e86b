"""Protects batching: concurrent items run in one batch, each gets its result, and none waits for others."""

import asyncio
from collections.abc import Sequence

import pytest

from mpesa_gateway.batching import Batcher


class Doubler:
    """Doubles numbers and records each batch."""

    def __init__(self, *, is_slow: bool = True) -> None:
        self.served: list[list[int]] = []
        self._pauses = 3 if is_slow else 0

    async def serve(self, numbers: Sequence[int]) -> list[int | Exception]:
        """Return twice each number; 13 is refused."""
        self.served.append(list(numbers))
        for _ in range(self._pauses):
            await asyncio.sleep(0)
        return [ValueError("thirteen") if number == 13 else number * 2 for number in numbers]


async def test_batch_of_one_runs_at_once_and_later_items_follow_together() -> None:
    doubler = Doubler()
    table = Batcher(doubler.serve, lanes=1)

    async def late(number: int) -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await table.submit(number)

    assert await asyncio.gather(table.submit(0), *map(late, range(1, 6))) == [0, 2, 4, 6, 8, 10]
    assert doubler.served == [[0], [1, 2, 3, 4, 5]]


async def test_batch_that_waits_for_a_lock_delays_no_other() -> None:
    is_free = asyncio.Event()

    async def serve(numbers: Sequence[int]) -> list[int | Exception]:
        if 0 in numbers:
            await is_free.wait()
        return list(numbers)

    table = Batcher(serve)
    held_up = asyncio.create_task(table.submit(0))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        assert await asyncio.gather(*map(table.submit, (1, 2))) == [1, 2]
    assert not held_up.done()
    is_free.set()
    assert await held_up == 0


async def test_batch_over_its_size_is_continued_in_another_lane() -> None:
    is_free = asyncio.Event()
    served: list[list[int]] = []

    async def serve(numbers: Sequence[int]) -> list[int | Exception]:
        served.append(list(numbers))
        if 0 in numbers:
            await is_free.wait()
        return list(numbers)

    table = Batcher(serve, most=2)
    # All are submitted before the first lane starts: no later item triggers the second batch.
    waiting = [asyncio.create_task(table.submit(number)) for number in range(4)]
    async with asyncio.timeout(20):
        assert await asyncio.gather(*waiting[2:]) == [2, 3]
    assert served == [[0, 1], [2, 3]]
    is_free.set()
    assert await asyncio.gather(*waiting[:2]) == [0, 1]


async def test_items_arriving_during_a_batch_form_the_next_one() -> None:
    is_free = asyncio.Event()
    served: list[list[int]] = []

    async def serve(numbers: Sequence[int]) -> list[int | Exception]:
        served.append(list(numbers))
        if 0 in numbers:
            await is_free.wait()
        return list(numbers)

    table = Batcher(serve)
    waiting: list[asyncio.Task[int]] = []
    for number in range(4):
        waiting.append(asyncio.create_task(table.submit(number)))
        for _ in range(3):
            await asyncio.sleep(0)
    is_free.set()
    assert await asyncio.gather(*waiting) == [0, 1, 2, 3]
    assert served == [[0], [1, 2, 3]]


async def test_error_of_one_item_is_raised_for_that_item_only() -> None:
    table = Batcher(Doubler().serve)
    answers = await asyncio.gather(*map(table.submit, (12, 13, 14)), return_exceptions=True)
    assert (answers[0], answers[2]) == (24, 28)
    assert isinstance(answers[1], ValueError)


async def test_error_of_a_batch_is_raised_for_each_item() -> None:
    async def serve(numbers: Sequence[int]) -> list[int | Exception]:
        raise OSError(f"{len(numbers)} lost")

    table = Batcher(serve)
    answers = await asyncio.gather(*map(table.submit, range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["3 lost"] * 3


async def test_cancelled_item_is_processed_and_delays_no_other() -> None:
    doubler = Doubler()
    table = Batcher(doubler.serve)
    first, second = asyncio.create_task(table.submit(1)), asyncio.create_task(table.submit(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 4
    assert doubler.served == [[1, 2]]
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("is_slow", [True, False])
async def test_items_in_any_order_of_arrival_are_all_answered(is_slow: bool) -> None:
    table = Batcher(Doubler(is_slow=is_slow).serve, most=3, lanes=2)

    async def submit_five(number: int) -> int:
        for _ in range(number % 7):
            await asyncio.sleep(0)
        total = 0
        for again in range(5):
            total += await table.submit(number * 100 + again)
        return total

    async with asyncio.timeout(20):
        assert sum(await asyncio.gather(*map(submit_five, range(50)))) == sum(
            2 * (number * 100 + again) for number in range(50) for again in range(5)
        )
