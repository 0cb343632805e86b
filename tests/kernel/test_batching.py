"""What comes at the same time is served together, and nobody is forgotten or kept waiting for company."""

import asyncio
from collections.abc import Sequence

import pytest

from mpesa_gateway.batching import Batcher


class Kitchen:
    """Serves numbers doubled, and writes down what it was asked for at a time."""

    def __init__(self, *, is_slow: bool = True) -> None:
        self.served: list[list[int]] = []
        self._pauses = 3 if is_slow else 0

    async def serve(self, numbers: Sequence[int]) -> list[int | Exception]:
        """Twice each number; 13 is refused."""
        self.served.append(list(numbers))
        for _ in range(self._pauses):
            await asyncio.sleep(0)
        return [ValueError("thirteen") if number == 13 else number * 2 for number in numbers]


async def test_one_alone_is_served_at_once_and_the_rest_while_it_is_follow_together() -> None:
    kitchen = Kitchen()
    table = Batcher(kitchen.serve, lanes=1)

    async def late(number: int) -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await table.submit(number)

    assert await asyncio.gather(table.submit(0), *map(late, range(1, 6))) == [0, 2, 4, 6, 8, 10]
    assert kitchen.served == [[0], [1, 2, 3, 4, 5]]


async def test_who_is_served_behind_a_lock_holds_up_nobody_for_long() -> None:
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


async def test_more_than_are_served_at_a_time_do_not_wait_for_ever_either() -> None:
    is_free = asyncio.Event()
    served: list[list[int]] = []

    async def serve(numbers: Sequence[int]) -> list[int | Exception]:
        served.append(list(numbers))
        if 0 in numbers:
            await is_free.wait()
        return list(numbers)

    table = Batcher(serve, most=2)
    # All of them before the first lane has begun: nobody comes later who could see to it that these are served.
    waiting = [asyncio.create_task(table.submit(number)) for number in range(4)]
    async with asyncio.timeout(20):
        assert await asyncio.gather(*waiting[2:]) == [2, 3]
    assert served == [[0, 1], [2, 3]]
    is_free.set()
    assert await asyncio.gather(*waiting[:2]) == [0, 1]


async def test_those_who_come_while_others_are_served_wait_for_them_and_go_together() -> None:
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


async def test_what_is_wrong_with_one_is_only_told_to_that_one() -> None:
    table = Batcher(Kitchen().serve)
    answers = await asyncio.gather(*map(table.submit, (12, 13, 14)), return_exceptions=True)
    assert (answers[0], answers[2]) == (24, 28)
    assert isinstance(answers[1], ValueError)


async def test_when_nothing_can_be_served_everybody_hears_it() -> None:
    async def serve(numbers: Sequence[int]) -> list[int | Exception]:
        raise OSError(f"{len(numbers)} lost")

    table = Batcher(serve)
    answers = await asyncio.gather(*map(table.submit, range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["3 lost"] * 3


async def test_who_goes_away_is_served_all_the_same_and_holds_up_nobody() -> None:
    kitchen = Kitchen()
    table = Batcher(kitchen.serve)
    first, second = asyncio.create_task(table.submit(1)), asyncio.create_task(table.submit(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 4
    assert kitchen.served == [[1, 2]]
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("is_slow", [True, False])
async def test_nobody_is_left_waiting_however_they_come(is_slow: bool) -> None:
    table = Batcher(Kitchen(is_slow=is_slow).serve, most=3, lanes=2)

    async def guest(number: int) -> int:
        for _ in range(number % 7):
            await asyncio.sleep(0)
        total = 0
        for again in range(5):
            total += await table.submit(number * 100 + again)
        return total

    async with asyncio.timeout(20):
        assert sum(await asyncio.gather(*map(guest, range(50)))) == sum(
            2 * (number * 100 + again) for number in range(50) for again in range(5)
        )
