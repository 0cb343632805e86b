"""What is shipped for tests says what is wrong instead of ending the tests, and stands beside itself."""

from typing import Any

import pytest

from mpesa_gateway.testing.pytest_plugin import Servers
from mpesa_gateway.testing.serving import listening, serving


async def refuses_to_start(scope: Any, receive: Any, send: Any) -> None:
    """An application whose startup fails."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


async def test_an_application_that_does_not_start_is_an_error_of_its_test() -> None:
    with listening() as at, pytest.raises(RuntimeError, match="did not start"):
        async with serving(refuses_to_start, at):
            pytest.fail("it was served")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_with_one_valkey_leave_each_other_their_keyspaces(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    for number in range(count):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{number}")
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", str(count))
        servers = Servers("", "", databases=16)
        taken += {servers.next_keyspace() for _ in range(20)}
    assert sorted(taken) == list(range(1, 16))


def test_a_process_alone_takes_every_keyspace_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    servers = Servers("", "", databases=16)
    assert [servers.next_keyspace() for _ in range(16)] == [*range(1, 16), 1]
