"""What this gateway writes down: one line an event, without secrets and without whole phone numbers."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, cast

import structlog

from mpesa_gateway.config import LogsConfig
from mpesa_gateway.phone import mask_phones
from mpesa_gateway.secret import Secret

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


def mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask, as a structlog processor: secrets become ``****``, phone numbers ``2547****678``, tracebacks too."""
    for name, value in event.items():
        event[name] = "****" if name.lower() in _FORBIDDEN else _masked(value)
    return event


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_phones(value)
    if isinstance(value, Secret):
        return value.masked
    if isinstance(value, int) and not isinstance(value, bool) and 10**11 <= value < 10**12:
        return mask_phones(str(value))
    if isinstance(value, dict):
        pairs: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType] - whatever was logged
        return {key: "****" if str(key).lower() in _FORBIDDEN else _masked(item) for key, item in pairs.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in cast("list[Any]", value)]
    return value


def configure(config: LogsConfig) -> None:
    """Set up logging for a process that is ours. A host that embeds the gateway configures its own instead."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[Any] = (
        [structlog.processors.format_exc_info, mask, structlog.processors.JSONRenderer()]
        if config.format == "json"
        else [structlog.processors.format_exc_info, mask, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(getattr(logging, config.level.upper()))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # SAQ tells of every job it takes and finishes; those lines are ours to write, and only when one fails.
    logging.getLogger("saq").setLevel(logging.WARNING)
    # Access lines carry the path, and a callback's path carries its token; our own request lines carry the route.
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(capture=True)
