"""Strict parser for HTTP/1.1 heads and chunks (RFC 9112)."""

import re
from dataclasses import dataclass

from mpesa_gateway.errors import ApiError, PayloadTooLarge

MOST_HEADERS = 100
"""Three times what browsers and proxies send."""

MOST_CHUNK_LINE = 1024
"""With extensions."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(
    rb"(DELETE|GET|HEAD|MKCOL|OPTIONS|PATCH|POST|PROPFIND|PUT|QUERY|TRACE) "
    rb"(?:(/[!-~]*|\*)|https?://[A-Za-z0-9.\-:\[\]_]+(/[!-~]*)?) HTTP/(1\.[01])"
)
_HEADERS = re.compile(rb"(?:" + _TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*")
_NEVER = re.compile(rb"\A[^A-Z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[\t -~\x80-\xff]*)?")
_FRAMING = (b"host", b"content-length", b"transfer-encoding", b"connection")
_HOP = frozenset({b"connection", b"upgrade", b"http2-settings", b"keep-alive", b"proxy-connection"})


class HeadTooLarge(PayloadTooLarge):
    """The request line and headers exceed the server's limit."""

    status = 431


class InvalidRequest(ApiError):
    """The bytes are not an HTTP/1.1 request."""


@dataclass(frozen=True, slots=True)
class Head:
    """``length`` is the body's bytes, None for chunked."""

    written: bytes
    """The canonical head, without hop-by-hop headers."""
    length: int | None
    is_last: bool


def cannot_be_head(begun: bytearray, since: int) -> bool:
    """Return True if no head starts with these bytes."""
    return _NEVER.search(begun, max(0, since - 1)) is not None


def read_head(head: bytes, most_bytes: int) -> Head:
    """Raises HeadTooLarge or InvalidRequest."""
    if len(head) > most_bytes:
        raise head_too_large(most_bytes)
    first, _, rest = (head + b"\r\n").partition(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise InvalidRequest("the request line cannot be read: send a method, a path and HTTP/1.1 (RFC 9112)")
    if _HEADERS.fullmatch(rest) is None:
        raise InvalidRequest("the headers cannot be read: send `Name: value` lines that end with CR LF (RFC 9112)")
    lines = rest.split(b"\r\n")[:-1]
    if len(lines) > MOST_HEADERS:
        raise head_too_large(most_bytes)
    method, path, absolute, version = line.groups()
    written = [b"%b %b HTTP/%b" % (method, path or absolute or b"/", version)]
    framing: dict[bytes, list[bytes]] = {name: [] for name in _FRAMING}
    for text in lines:
        name, _, value = text.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in framing:
            framing[name].append(value)
        if name not in _HOP:
            written.append(b"%b: %b" % (name, value))
    hosts = len(framing[b"host"])
    if hosts > 1 or (not hosts and version == b"1.1"):
        raise InvalidRequest("send one Host header (RFC 9112, section 3.2)")
    length = _length(framing[b"content-length"], framing[b"transfer-encoding"], version)
    is_last = version == b"1.0" or b"close" in _tokens(framing[b"connection"])
    if is_last:
        written.append(b"connection: close")
    return Head(b"\r\n".join([*written, b"", b""]), length, is_last)


def _tokens(values: list[bytes]) -> list[bytes]:
    return [token.strip(b" \t") for value in values for token in value.lower().split(b",")]


def _length(lengths: list[bytes], codings: list[bytes], version: bytes) -> int | None:
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"] or lengths or version != b"1.1":
            raise InvalidRequest(
                "send a body with one Content-Length, or with `Transfer-Encoding: chunked` alone (RFC 9112)"
            )
        return None
    if len(lengths) > 1 or (lengths and _LENGTH.fullmatch(lengths[0]) is None):
        raise InvalidRequest("send one Content-Length, in digits (RFC 9112)")
    return int(lengths[0]) if lengths else 0


def read_chunk_size(line: bytes) -> int:
    found = _CHUNK.fullmatch(line) if len(line) <= MOST_CHUNK_LINE else None
    if found is None:
        raise InvalidRequest("the size of a chunk cannot be read: send it in hexadecimal digits (RFC 9112)")
    return int(found[1], 16)


def check_trailer(line: bytes) -> None:
    """Raise InvalidRequest if malformed; trailers are discarded."""
    if _HEADERS.fullmatch(line + b"\r\n") is None:
        raise InvalidRequest("a trailer after the last chunk cannot be read (RFC 9112)")


def head_too_large(most_bytes: int) -> HeadTooLarge:
    return HeadTooLarge(f"send at most {MOST_HEADERS} headers, and {most_bytes} bytes with the request line")
