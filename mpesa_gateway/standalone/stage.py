"""HTTP client of commands that call the gateway's API."""

from typing import Any, cast

import msgspec
import niquests

from mpesa_gateway.secret import Secret

_PATIENCE = 10.0
"""Seconds until a call counts as unanswered."""


class UnexpectedAnswer(Exception):
    """The text states what was expected and received."""


class Api:
    """The gateway as the merchant's program calls it."""

    def __init__(self, http: niquests.AsyncSession, base: str, key: Secret | None = None) -> None:
        self._http = http
        self._base = base.rstrip("/")
        self._key = key

    async def call(
        self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str
    ) -> dict[str, Any]:
        """Return the decoded answer. Raises UnexpectedAnswer for another status."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self._key is not None:
            sent["X-API-Key"] = self._key.reveal()
        content = None
        if body is not None:
            content, sent["Content-Type"] = msgspec.json.encode(body), "application/json"
        try:
            answer = await self._http.request(method, self._base + path, data=content, headers=sent, timeout=_PATIENCE)
        except (niquests.RequestException, OSError) as problem:
            raise UnexpectedAnswer(
                f"{method} {path} was expected to answer, and did not: {type(problem).__name__}"
            ) from None
        content = answer.content or b""
        if answer.status_code != status:
            shown = content[:500].decode(errors="replace")
            raise UnexpectedAnswer(f"{method} {path}: expected status {status}, saw {answer.status_code}: {shown}")
        return cast("dict[str, Any]", msgspec.json.decode(content)) if content else {}

    async def data(self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str) -> Any:
        return (await self.call(method, path, body, status=status, **headers))["data"]
