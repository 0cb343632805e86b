"""What this gateway writes down: one line an event, without secrets and without whole phone numbers."""

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
    r"\b(sk_(?:live|test)_)[0-9a-z]{48}"  # an API key
    r"|\b(whsec_)[A-Za-z0-9+/]{43}="  # a webhook secret
    # The token of a callback address, after its id; also in part, with more behind it, and with its marks encoded.
    r"|((?:_|%(?:25)*5[fF])[0-9a-zA-Z]{26}(?:\.|%(?:25)*2[eE]))[0-9A-Za-z_%=-]{8,}"
)
"""What is a secret of ours wherever it stands: nothing writes these down, and should it happen, they are not read."""

_SUSPECT = re.compile(r"[0-9]{10}|sk_|whsec_|(?:_|%(?:25)*5[fF])[0-9a-zA-Z]{26}(?:\.|%)")
"""Part of all that is masked: a text without it, as almost every one, is looked through once and not three times."""


def masked(text: str) -> str:
    """A text without whole phone numbers, without the secrets that are known by their form, and with nothing hidden."""
    text = escape_control_characters(text)
    if _SUSPECT.search(text) is None:
        return text
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or found[3]}****", mask_phones(text))


def trace(problem: BaseException) -> str:
    """How an exception came about, masked, for an entry's ``exception``.

    As text, and not as ``exc_info``: a host's own renderer may show the variables of each frame, secrets among them.
    """
    return masked("".join(traceback.format_exception(problem)).rstrip())


def mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask, as a structlog processor: secrets become ``****``, phone numbers ``2547****678``, tracebacks too."""
    for name, value in event.items():
        event[name] = "****" if name.lower() in _FORBIDDEN else _masked(value)
    return event


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, int) and not isinstance(value, bool) and 10**11 <= value < 10**12:
        return mask_phones(str(value))
    if isinstance(value, dict):
        pairs: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - whatever was logged
        return {_masked(key): "****" if str(key).lower() in _FORBIDDEN else _masked(pairs[key]) for key in pairs}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item) for item in cast("list[Any]", value)]
    if value is None or isinstance(value, _PLAIN):
        return value
    # Of anything else a renderer would write the repr, and nobody knows what that shows.
    return masked(repr(value))


class _Stderr:
    """What structlog writes with: each line at once, past the standard library, which takes four times as long."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        """Write one line. Where that is not possible the line is lost, and whoever wrote it goes on."""
        # A full disk, a reader that has gone: after a push, an exception from here would lose its acknowledgement.
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
        # Keys that are no text, integers beyond 64 bits: whatever it is, the line is worth more than its look.
        return json.dumps({str(key): value for key, value in event.items()}, default=repr)


def configure(config: LogsConfig) -> None:
    """Set up logging for a process that is ours. A host that embeds the gateway configures its own instead."""
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
    # SAQ tells of every job it takes and finishes; those lines are ours to write, and only when one fails.
    logging.getLogger("saq").setLevel(logging.WARNING)
    # Where a request goes is in its path: a callback's token, or what a merchant put into the address of a webhook.
    for name in ("niquests", "urllib3", "urllib3_future"):
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
    # Access lines carry the path, and a callback's path carries its token; our own request lines carry the route.
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(capture=True)
