"""Events: webhook events with an example body each, and internal events with their fields."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from docs.site.reference.words import NOTE, code, document, prose
from mpesa_gateway.db.event_bodies import public_body
from mpesa_gateway.events import Event, PublicEvent
from mpesa_gateway.http.fields import example_id
from mpesa_gateway.plugin import Plugin

_AT = datetime(2026, 11, 23, 10, 15, 12, tzinfo=UTC)


def page(plugins: Sequence[Plugin]) -> str:
    """Return the page."""
    kinds = [kind for plugin in plugins for kind in plugin.publishes]
    public = [kind for kind in kinds if issubclass(kind, PublicEvent)]
    return document(
        "# Events",
        NOTE,
        "Each event is stored once, in the past tense. [Webhooks](../webhooks.md) describes delivery and verification; "
        "`GET /v1/events` returns the same bodies.",
        "## For merchants",
        *(_public(kind) for kind in sorted(public, key=lambda kind: kind.kind)),
        "## For plugins and hosts",
        "Handlers of `gateway.on(…)` and a plugin's `on_event(…)` receive all events above as values of these classes, "
        "and the following ones, which are not sent as webhooks. Every event has `event_id`, `occurred_at`, "
        "`merchant_id`, `env` (None without one) and `subject_id`, the id of its subject.",
        *(_inner(kind) for kind in sorted(kinds, key=lambda kind: kind.kind) if kind not in public),
    )


def _public(kind: type[PublicEvent]) -> str:
    event = kind(
        event_id=example_id("evt"),
        occurred_at=_AT,
        merchant_id=example_id("mer"),
        env="live",
        subject_id=example_id("pay"),
        **kind.EXAMPLE,
    )
    body = json.dumps(json.loads(public_body(event)), indent=2, ensure_ascii=False)
    return document(f"### {kind.kind}", prose(kind.__doc__), f"In code: {_place(kind)}.", f"```json\n{body}\n```")


def _inner(kind: type[Event]) -> str:
    own = [field.name for field in msgspec.structs.fields(kind) if field.name not in Event.__struct_fields__]
    names = ", ".join(code(name) for name in own)
    return document(f"### {kind.kind}", prose(kind.__doc__), f"In code: {_place(kind)}, with {names}.")


def _place(kind: type[Event]) -> str:
    return f"`{kind.__module__}.{kind.__name__}`"
