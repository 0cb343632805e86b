"""What is being done, told while it is done to whoever traces it: to nobody, unless a plugin provides a Tracer."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, Self

Attributes = Mapping[str, str | int | float | bool]
"""What is said of a span, by OpenTelemetry's names or ours (``mpesa.…``). Ids and words, never secrets or numbers of
phones; of an address the route, never its path."""

Part = Literal["internal", "client", "producer"]

POSTGRES: Attributes = {"db.system.name": "postgresql"}


class Span(Protocol):
    """One thing that is being done, from its beginning to its end."""

    def note(self, attributes: Attributes) -> None:
        """Say more about it."""

    def rename(self, name: str) -> None:
        """Call it otherwise, once it is known what it is."""

    def fail(self, why: str) -> None:
        """It went wrong. ``why`` is a stable word, such as an exception's class, never a message."""


class Tracer(Protocol):
    """Port: is told what a gateway does. Nothing here waits for anything or raises.

    ``request`` and ``job`` begin a trace or go on with one; a ``call`` to somebody else belongs to what is being done,
    if anything is; a ``step`` is only told as part of something.
    """

    async def start(self) -> None:
        """Begin to listen."""

    async def stop(self) -> None:
        """Hand over what was told, within a few seconds."""

    def request(self, scope: Mapping[str, Any], request_id: str) -> AbstractContextManager[Span]:
        """A request that is answered in the block."""
        ...

    def job(
        self, name: str, attributes: Attributes, *, carried: str, is_cron: bool = False
    ) -> AbstractContextManager[Span]:
        """A job that runs in the block; ``carried`` is what ``carried()`` gave where it was put on the queue."""
        ...

    def call(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A call to somebody else that is made in the block."""
        ...

    def step(self, name: str, attributes: Attributes, part: Part = "internal") -> AbstractContextManager[Span]:
        """A part of what is being done."""
        ...

    def resume(self, carried: str) -> AbstractContextManager[None]:
        """A block that goes on with what ``carried()`` gave elsewhere."""
        ...

    def carried(self) -> str:
        """Where we are, as text for a job; empty outside of everything."""
        ...

    def told(self) -> str:
        """The same as a ``traceparent`` header for merchants; empty unless the settings let them know it."""
        ...

    def begins(self, subject_id: str) -> None:
        """A payment, refund or question begins with what is being done: what concerns it later will lead back here."""

    def concerns(self, subject_id: str) -> None:
        """What is being done is about something that began earlier, perhaps elsewhere."""


class _Nothing:
    """A span that nobody sees, and the block around it. There is only one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, attributes: Attributes) -> None:
        """Nobody listens."""

    def rename(self, name: str) -> None:
        """Nobody listens."""

    def fail(self, why: str) -> None:
        """Nobody listens."""


NOTHING = _Nothing()


class _Untraced:
    """Nobody is told. Each call costs a call and makes nothing."""

    async def start(self) -> None:
        """Nothing to begin."""

    async def stop(self) -> None:
        """Nothing to hand over."""

    def request(self, scope: Mapping[str, Any], request_id: str) -> _Nothing:  # noqa: ARG002 - the port's shape
        return NOTHING

    def job(self, name: str, attributes: Attributes, *, carried: str, is_cron: bool = False) -> _Nothing:  # noqa: ARG002 - likewise
        return NOTHING

    def call(self, name: str, attributes: Attributes) -> _Nothing:  # noqa: ARG002 - likewise
        return NOTHING

    def step(self, name: str, attributes: Attributes, part: Part = "internal") -> _Nothing:  # noqa: ARG002 - likewise
        return NOTHING

    def resume(self, carried: str) -> AbstractContextManager[None]:  # noqa: ARG002 - likewise
        return _GOING_ON

    def carried(self) -> str:
        return ""

    def told(self) -> str:
        return ""

    def begins(self, subject_id: str) -> None:
        """Nobody asks later."""

    def concerns(self, subject_id: str) -> None:
        """Nobody asks."""


class _GoOn:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_GOING_ON = _GoOn()

UNTRACED: Tracer = _Untraced()
"""What a gateway tells of itself where no plugin listens."""
