"""Posts bodies to a merchant's addresses and records each exchange."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, cast

import niquests
import structlog

from mpesa_gateway.dns import ClientResolver, NameResolver
from mpesa_gateway_simulator.exchange_log import ExchangeLog

log = structlog.get_logger(__name__)

AT_ONCE = 50
"""Concurrent callbacks."""

ANSWER_WITHIN = 10.0
"""Seconds."""


class CallbackPoster:
    """An HTTP client that never raises: an address without an answer has status 0."""

    def __init__(self, *, names: NameResolver, exchanges: ExchangeLog) -> None:
        self._names = names
        self._exchanges = exchanges
        self._session: niquests.AsyncSession | None = None

    async def start(self) -> None:
        session = niquests.AsyncSession(
            # Pushes name the addresses: slow DNS must not block the event loop's threads.
            resolver=cast("Any", ClientResolver(self._names)),
            retries=0,
            disable_http3=True,
            pool_maxsize=AT_ONCE * 2,
        )
        session.trust_env = False
        self._session = session

    async def stop(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def post(
        self,
        url: str,
        body: str,
        encoding: str,
        headers: Mapping[str, str] | None = None,
        within: float = ANSWER_WITHIN,
    ) -> tuple[int, str]:
        """Return the status and the text of the answer, within so many seconds."""
        began, status, text = time.perf_counter(), 0, "no answer"
        try:
            async with asyncio.timeout(within):
                response = await self._http.post(
                    url,
                    data=body.encode(encoding),
                    headers={"Content-Type": "application/json"} | dict(headers or {}),
                    allow_redirects=False,
                    timeout=ANSWER_WITHIN,
                )
            status = response.status_code or 0
            text = response.text or ""
        except Exception as problem:  # noqa: BLE001 - the library also raises ValueError, TypeError and others
            log.info("simulator_callback_unanswered", error=type(problem).__name__)
        ms = round((time.perf_counter() - began) * 1000)
        log.info("simulator_called_back", status=status, ms=ms)
        self._exchanges.record_sent(url, body, status, text, ms)
        return status, text

    @property
    def _http(self) -> niquests.AsyncSession:
        if self._session is None:
            raise RuntimeError("the simulator has not been started")
        return self._session
