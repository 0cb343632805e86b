"""Requests passed to an application as an ASGI server would pass them, so that no server rejects them first."""

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

Headers = tuple[tuple[bytes, bytes], ...]

RAW_TEXT = re.compile(
    r"Expected `|got `|`(?:str|int|float|bool|object|array|null)`|Invalid enum value|- at `\$|malformed: |was truncated"
    r"|msgspec|asyncpg|pydantic|litestar|invalid input for query|Traceback|codec can't|[A-Z]\w+Error\b|<class |NoneType"
)
"""Texts of libraries, which help no caller."""

HANGS = 30.0
"""Seconds after which a request without an answer fails the test."""


@dataclass(frozen=True)
class AsgiAnswer:
    """The answer of an application. Header names are in lower case."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes:
        """Return the one header of this name, empty without it. Raises AssertionError for several."""
        found = [value for each, value in self.headers if each == name]
        assert len(found) <= 1, (name, found)
        return found[0] if found else b""

    @property
    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)

    @property
    def codes(self) -> list[str]:
        """Return the codes of a refusal."""
        return [problem["code"] for problem in self.json["errors"]]


async def send_request(
    app: Any,
    method: str,
    target: bytes,
    headers: Headers = (),
    body: Iterable[bytes] = (),
    *,
    path: str | None = None,
) -> AsgiAnswer:
    """Send one request; ``target`` is the path and query of the request line, ``path`` the decoded path of a server."""
    raw_path, _, query = target.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path.decode("latin-1")) if path is None else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    chunks, sent = list(body) or [b""], list[Any]()
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if chunks:
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        # A stream of events has no end: the client disconnects after the first event.
        has_event = bool(message.get("body")) and (b"text/event-stream" in dict(sent[0]["headers"])[b"content-type"])
        if is_last or has_event:
            done.set()

    async with asyncio.timeout(HANGS):
        await app(scope, receive, send)
    heads = [message for message in sent if message["type"] == "http.response.start"]
    assert len(heads) == 1, sent
    pairs = tuple((bytes(name).lower(), bytes(value)) for name, value in heads[0]["headers"])
    return AsgiAnswer(heads[0]["status"], pairs, b"".join(message.get("body", b"") for message in sent))


def check_refusal(said: AsgiAnswer) -> bool:
    """Return True for a complete refusal in the envelope. Raises AssertionError otherwise, and shows the answer."""
    content = said.json
    assert set(content) == {"success", "errors", "request_id"}, content
    assert content["success"] is False
    assert content["errors"], content
    assert content["request_id"] == said.header(b"x-request-id").decode(), content
    for problem in content["errors"]:
        allowed = {"code", "message", "field", "retryable", "provider", "id"}
        assert {"code", "message"} <= set(problem) <= allowed, problem
        assert problem["message"]
        assert not RAW_TEXT.search(problem["message"]), problem
    return True
