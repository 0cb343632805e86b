"""uvicorn's HTTP, which leaves it to us to answer when there are too many connections."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mpesa_gateway.http.gate import CROWDED


class GatewayProtocol(HttpToolsProtocol):
    """One connection. Beyond ``limit_concurrency`` its requests are marked as crowded, and the gate answers them.

    A quarter more is for those with priority; whoever connects beyond that is hung up on.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = self.limit_concurrency
        # Or uvicorn answers by itself: in plain text, and without Retry-After.
        self.limit_concurrency = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most * 5 // 4:
            transport.abort()

    def on_headers_complete(self) -> None:
        """A request has begun."""
        if self._most is not None and max(len(self.connections), len(self.tasks)) > self._most:
            cast("dict[str, Any]", self.scope)[CROWDED] = True
        super().on_headers_complete()
