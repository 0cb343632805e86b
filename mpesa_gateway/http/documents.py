"""The OpenAPI document and its page, rendered once in a thread."""

import asyncio
import hashlib
from dataclasses import dataclass

import msgspec
from litestar import Litestar
from litestar.openapi.plugins import JsonRenderPlugin

from mpesa_gateway.asgi_types import Message, Send
from mpesa_gateway.http.openapi import document_of
from mpesa_gateway.http.openapi_page import POLICY, render_page
from mpesa_gateway.http.response_headers import Header

PATHS = frozenset({"/schema", "/schema/openapi.json"})


@dataclass(frozen=True)
class _Document:
    body: bytes
    etag: bytes
    headers: tuple[Header, ...]


class Documents:
    """Answers GET and HEAD at PATHS."""

    def __init__(self, app: Litestar) -> None:
        self._app = app
        self._rendering: asyncio.Task[dict[str, _Document]] | None = None

    async def answer(self, scope: Message, send: Send) -> None:
        if self._rendering is None:
            self._rendering = asyncio.create_task(asyncio.to_thread(self._render))
        # A client that disconnects must not cancel the rendering.
        documents = await asyncio.shield(self._rendering)
        path = scope["path"]
        document = documents[path if path in documents else path.rstrip("/")]
        is_known = _matches_etag(scope, document.etag)
        headers = list(document.headers)
        if not is_known:
            headers.append((b"content-length", str(len(document.body)).encode()))
        await send({"type": "http.response.start", "status": 304 if is_known else 200, "headers": headers})
        body = b"" if is_known or scope["method"] == "HEAD" else document.body
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _render(self) -> dict[str, _Document]:
        document = document_of(self._app)
        title, policy = document["info"]["title"], f"{POLICY}; frame-ancestors 'none'".encode()
        # The links are relative, so the trailing slash matters.
        pages = {"/schema": render_page(title), "/schema/": render_page(title, "../")}
        return {
            **{path: _build(page.encode(), b"text/html; charset=utf-8", policy) for path, page in pages.items()},
            "/schema/openapi.json": _build(msgspec.json.encode(document), JsonRenderPlugin().media_type.encode(), None),
        }


def _build(body: bytes, media_type: bytes, policy: bytes | None) -> _Document:
    etag = b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'
    headers: list[Header] = [(b"content-type", media_type), (b"etag", etag), (b"cache-control", b"no-cache")]
    if policy is not None:
        headers.append((b"content-security-policy", policy))
    return _Document(body, etag, tuple(headers))


def _matches_etag(scope: Message, etag: bytes) -> bool:
    given = b",".join(value for name, value in scope["headers"] if name == b"if-none-match")
    return any(one.strip().removeprefix(b"W/") in {etag, b"*"} for one in given.split(b","))
