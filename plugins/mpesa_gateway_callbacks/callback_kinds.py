"""Detection and parsing of the enabled plugins' callback kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from mpesa_gateway.daraja.callbacks import CallbackContent, CallbackEvent, CallbackKind
from mpesa_gateway.daraja.wire import InvalidCallback, read_json_leniently
from mpesa_gateway.errors import InvalidFields
from mpesa_gateway.http.allowed_values import not_the_word

Make = Callable[[Mapping[str, Any]], CallbackEvent]


@dataclass(frozen=True)
class ParsedCallback:
    """A parsed callback. ``handle`` is Daraja's id; duplicates share ``content``."""

    handle: str
    result_code: str
    content: tuple[str, ...]
    event: Make | None
    """None if no plugin subscribes to the callback."""
    alternatives: tuple[Make, ...] = ()
    """Published in turn until a subscriber applies one."""
    is_apart: bool = False


class CallbackKinds:
    """The kinds by name, in the plugins' order."""

    def __init__(self, kinds: Mapping[str, CallbackKind]) -> None:
        self._kinds = kinds
        self._by_path = {kind.path: name for name, kind in kinds.items() if kind.path is not None}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._kinds)

    def get(self, name: str) -> CallbackKind | None:
        return self._kinds.get(name)

    def at(self, path: str) -> str | None:
        return self._by_path.get(path)

    def in_place_of(self, path: str) -> str | None:
        """Return an enabled kind for the path of a disabled plugin, or None.

        Merchants often register one address for all: a kind with the same path ending and envelope is used.
        """
        ending = path.partition("/")[2]
        taken = (name for other, name in self._by_path.items() if ending and other.partition("/")[2] == ending)
        return next((name for name in taken if self._kinds[name].family), None)

    def check(self, name: str | None) -> None:
        """Raise InvalidFields for an unknown kind."""
        if name is not None and name not in self._kinds:
            known = ", ".join(sorted(self._kinds))
            raise InvalidFields.field_error("kind", f"must be one of {known}{not_the_word(name)}")

    def family(self, name: str) -> tuple[str, ...]:
        """Return the kinds with the same envelope, ``name`` first."""
        own = self._kinds.get(name)
        if own is None:
            return (name,)
        others = (other.name for other in self._kinds.values() if own.family and other.family == own.family)
        return tuple(dict.fromkeys((name, *others)))

    def read(self, name: str, body: bytes, *, has_token: bool) -> ParsedCallback:
        """Parse a callback. Raises InvalidCallback, also for an unknown kind.

        A callback without a token may be of any kind of its family.
        """
        kind = self._kinds.get(name)
        if kind is None:
            raise InvalidCallback(f"no enabled plugin takes callbacks of the kind {name}")
        others = () if has_token else map(self._kinds.__getitem__, self.family(name)[1:])
        content = kind.read(body)
        return ParsedCallback(
            content.handle,
            content.result_code,
            content.same,
            _maker(kind, content),
            tuple(
                make
                for other in others
                if bool(other.timeout_of) == bool(kind.timeout_of)
                if (make := _maker(other, other.read(body))) is not None
            ),
            is_apart=kind.is_apart,
        )

    def of_body(self, name: str, body: bytes) -> str:
        """Return the kind of a callback without a token: its address's, unless the body clearly differs."""
        kind = self._kinds.get(name)
        if kind is None or kind.matches is None:
            return name
        try:
            content = read_json_leniently(body)
        except ValueError:
            return name
        if not isinstance(content, dict):
            return name
        fields = cast("dict[str, Any]", content)
        candidates = (kind, *self._kinds.values())
        return next((each.name for each in candidates if each.matches is not None and each.matches(fields)), name)

    def merged(self, address: str, token: str) -> str:
        """Return the kind of a callback whose token is for another address of its family.

        It is the token's kind, as a timeout if either is one.
        """
        made, came = self._kinds.get(token), self._kinds.get(address)
        if made is None or came is None:
            return token
        if not came.timeout_of or made.timeout_of or came.family != made.family:
            return token
        return next((kind.name for kind in self._kinds.values() if kind.timeout_of == token), token)


def _maker(kind: CallbackKind, content: CallbackContent) -> Make | None:
    if kind.event is None:
        return None
    return partial(_make, kind.event, content)


def _make(event: type[CallbackEvent], content: CallbackContent, known: Mapping[str, Any]) -> CallbackEvent:
    return event(**known, result_code=content.result_code, **content.fields)
