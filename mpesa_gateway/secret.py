"""Secrets that are masked unless revealed."""


class Secret:
    """repr, str and JSON are ``****ef12``."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    @property
    def masked(self) -> str:
        """Four characters are shown if there are at least twelve."""
        return f"****{self._value[-4:]}" if len(self._value) >= 12 else "****"

    def __repr__(self) -> str:
        return self.masked

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)
