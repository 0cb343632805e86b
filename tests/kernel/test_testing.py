"""What is shipped for tests says what is wrong instead of ending the tests."""

from typing import Any

import pytest

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
