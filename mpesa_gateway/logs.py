"""Logging: one line per event, without secrets and whole phone numbers."""

import json
import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
import structlog

from mpesa_gateway.config import LogsConfig
from mpesa_gateway.control_characters import escape_control_characters
from mpesa_gateway.phone import mask_phones

_FORBIDDEN = frozenset(
    {
        "authorization",
        "x-api-key",
        "password",
        "passkey",
        "consumer_secret",
        "security_credential",
        "initiator_password",
    }
)


_PLAIN = (int, float, datetime, timedelta)
_SECRET = re.compile(
    r"\b(sk_(?:live|test)_)[0-9a-z]{48}"
    r"|\b(whsec_)[A-Za-z0-9+/]{43}="
    # Also partial, followed by text, or URL-encoded.
    r"|((?:_|%(?:25)*5[fF])[0-9a-zA-Z]{26}(?:\.|%(?:25)*2[eE]))[0-9A-Za-z_%=-]{8,}"
)

_IN_NAME = re.compile(r"(sk_(?:live|test)_|whsec_)[0-9A-Za-z+/=]+|[0-9](?:[ ().-]{0,3}[0-9]){8,}")
"""Also parts of keys, and numbers without a prefix or with separators."""

_SUSPECT = re.compile(r"[0-9]{10}|sk_|whsec_|(?:_|%(?:25)*5[fF])[0-9a-zA-Z]{26}(?:\.|%)")
"""Quick test: almost no text needs the full ones."""


def masked(text: str) -> str:
    text = escape_control_characters(text)
    if _SUSPECT.search(text) is None:
        return text
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or found[3]}****", mask_phones(text))


def masked_name(name: str) -> str:
    """Return the name of a sent field, with anything like a key or a number masked."""
    return _IN_NAME.sub(lambda found: f"{found[1] or ''}****", masked(name))


def trace(problem: BaseException) -> str:
    """Return text: with ``exc_info`` a host's renderer may show variables."""
    return masked("".join(traceback.format_exception(problem)).rstrip())


def mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = "****" if name.lower() in _FORBIDDEN else _masked(value)
    return event


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, int) and not isinstance(value, bool) and 10**11 <= value < 10**12:
        return mask_phones(str(value))
    if isinstance(value, dict):
        pairs: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - any logged value
        return {_masked(key): "****" if str(key).lower() in _FORBIDDEN else _masked(pairs[key]) for key in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item) for item in cast("list[Any]", value)]
    if value is None or isinstance(value, _PLAIN):
        return value
    # A renderer would write the unmasked repr.
    return masked(repr(value))


class _Stderr:
    """Four times as fast as the standard library."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        """A line that cannot be written is lost."""
        # An exception here, after a push, would lose its acknowledgement.
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = exception = log = msg


def _add_name(logger: Any, _: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["logger"] = logger.name
    return event


def _as_json(event: Any, **_: Any) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except (TypeError, ValueError):
        # Keys that are not text, huge integers.
        return json.dumps({str(key): value for key, value in event.items()}, default=repr)


def configure(config: LogsConfig) -> None:
    """Hosts configure their own logging."""
    level = getattr(logging, config.level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    rendered: Any = (
        structlog.processors.JSONRenderer(serializer=_as_json)
        if config.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    last: list[Any] = [structlog.processors.format_exc_info, mask, rendered]
    structlog.configure(
        processors=[*shared, _add_name, *last],
        logger_factory=_Stderr,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # We log failures only.
    logging.getLogger("saq").setLevel(logging.WARNING)
    # Paths contain callback tokens and merchants' webhook addresses.
    for name in ("niquests", "urllib3", "urllib3_future"):
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
    # Paths contain callback tokens.
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(capture=True)
