"""Errors of the API: a closed list of codes."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, ClassVar, TypeVar

import msgspec

from mpesa_gateway.logs import masked_name

V = TypeVar("V")
T = TypeVar("T")


class Code(StrEnum):
    """Error codes."""

    AUTH_INVALID_KEY = "AUTH_INVALID_KEY"
    AUTH_INSUFFICIENT_SCOPE = "AUTH_INSUFFICIENT_SCOPE"
    AUTH_RATE_LIMITED = "AUTH_RATE_LIMITED"
    RATE_LIMITED = "RATE_LIMITED"
    VALIDATION_ERROR = "VALIDATION_ERROR"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    CONFLICT = "CONFLICT"
    IDEMPOTENCY_KEY_REQUIRED = "IDEMPOTENCY_KEY_REQUIRED"
    IDEMPOTENCY_IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    PROVIDER_NOT_CONFIGURED = "PROVIDER_NOT_CONFIGURED"
    PROVIDER_REJECTED = "PROVIDER_REJECTED"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    CALLBACK_REFUSED = "CALLBACK_REFUSED"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    INTERNAL_ERROR = "INTERNAL_ERROR"


_CODE = msgspec.Meta(title="ErrorCode", extra_json_schema={"enum": [code.value for code in Code]})

NEXT_STEPS: dict[Code, str] = {
    Code.AUTH_INVALID_KEY: "send a valid key; it is unknown, revoked, expired or missing",
    Code.AUTH_INSUFFICIENT_SCOPE: "use a key with the scope that the message names",
    Code.AUTH_RATE_LIMITED: "too many failed authentications from your address: wait `Retry-After` seconds",
    Code.RATE_LIMITED: "too many calls with this key: wait `Retry-After` seconds",
    Code.VALIDATION_ERROR: "correct each `field` as its `message` says",
    Code.NOT_FOUND: "correct the identifier or the address: it does not exist, or it belongs to another merchant",
    Code.METHOD_NOT_ALLOWED: "see the `Allow` header",
    Code.CONFLICT: "read the object again: its state does not allow it",
    Code.IDEMPOTENCY_KEY_REQUIRED: "send an `Idempotency-Key`",
    Code.IDEMPOTENCY_IN_PROGRESS: "wait `Retry-After` seconds and ask again with the same key",
    Code.IDEMPOTENCY_MISMATCH: "the key was used with another body: send a new key",
    Code.PROVIDER_NOT_CONFIGURED: "store the credentials that the message names",
    Code.PROVIDER_REJECTED: "M-Pesa refused: `provider` says why, `id` what failed, `retryable` if a new key may retry",
    Code.PROVIDER_UNAVAILABLE: "nothing was sent: the same key may try again after `Retry-After` seconds",
    Code.PAYLOAD_TOO_LARGE: "send less: at most 64 KiB in a body; of headers, 100 with 32 KiB",
    Code.UNSUPPORTED_MEDIA_TYPE: "send `application/json`",
    Code.REQUEST_TIMEOUT: "the request did not arrive in time: send it again",
    Code.CALLBACK_REFUSED: "for Safaricom's callbacks only; operators see the reason in the list of refused callbacks",
    Code.SERVICE_UNAVAILABLE: "the gateway is busy, cannot reach its database, or was not started: try again after "
    "`Retry-After`, with the same `Idempotency-Key`",
    Code.INTERNAL_ERROR: "internal error: quote the `request_id` to the operator of the gateway",
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of ``errors`` in a response."""

    code: Annotated[str, _CODE]
    message: str
    field: str | None = None
    retryable: bool | None = None
    provider: dict[str, str] | None = None
    id: str | None = None
    """The payment or refund that remains."""


class ApiError(Exception):
    """A rejected request."""

    status: ClassVar[int] = 400
    code: ClassVar[Code] = Code.VALIDATION_ERROR
    retryable: ClassVar[bool | None] = None

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retryable: bool | None = None,
        retry_after: int | None = None,
        provider: dict[str, str] | None = None,
        subject_id: str | None = None,
    ) -> None:
        """``message`` names the fix; ``retry_after`` is in seconds."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.provider = provider
        self.subject_id = subject_id
        self._retryable = self.retryable if retryable is None else retryable

    @property
    def problems(self) -> list[Problem]:
        return [
            Problem(
                code=self.code.value,
                message=self.message,
                field=self.field,
                retryable=self._retryable,
                provider=self.provider,
                id=self.subject_id,
            )
        ]


class InvalidKey(ApiError):
    """The API key is missing or not valid."""

    status, code = 401, Code.AUTH_INVALID_KEY


class InsufficientScope(ApiError):
    """The key lacks a scope."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


class TooManyFailures(ApiError):
    """Too many failed authentications from one address."""

    status, code, retryable = 429, Code.AUTH_RATE_LIMITED, True


class RateLimited(ApiError):
    """Too many calls with one key."""

    status, code, retryable = 429, Code.RATE_LIMITED, True


class NotFound(ApiError):
    """The object does not exist or belongs to another merchant."""

    status, code = 404, Code.NOT_FOUND


def require_found(found: T | None, message: str) -> T:
    """Raises NotFound for None."""
    if found is None:
        raise NotFound(message)
    return found


class MethodNotAllowed(ApiError):
    """The path does not support this method."""

    status, code = 405, Code.METHOD_NOT_ALLOWED


class Conflict(ApiError):
    """The object's state does not allow the request."""

    status, code = 409, Code.CONFLICT


class PayloadTooLarge(ApiError):
    """The body is too large."""

    status, code = 413, Code.PAYLOAD_TOO_LARGE


class UnsupportedMediaType(ApiError):
    """The body is not JSON."""

    status, code = 415, Code.UNSUPPORTED_MEDIA_TYPE


class RequestTimeout(ApiError):
    """The body did not arrive in time."""

    status, code, retryable = 408, Code.REQUEST_TIMEOUT, True


class ClientDisconnected(ApiError):
    """The caller disconnected before the end of its body."""


class ProviderNotConfigured(ApiError):
    """Daraja credentials for this call are missing."""

    status, code = 422, Code.PROVIDER_NOT_CONFIGURED


class ProviderRejected(ApiError):
    """Daraja rejected the request."""

    status, code = 502, Code.PROVIDER_REJECTED


class ProviderUnavailable(ApiError):
    """The request was not sent to Daraja and may be retried."""

    status, code, retryable = 503, Code.PROVIDER_UNAVAILABLE, True


class ServiceUnavailable(ApiError):
    """A required service is unavailable."""

    status, code, retryable = 503, Code.SERVICE_UNAVAILABLE, True


class InternalError(ApiError):
    """Internal error. Quote the request_id to the operator of this gateway."""

    status, code = 500, Code.INTERNAL_ERROR


class InvalidFields(ApiError):
    """Some fields are not valid; all are listed."""

    status, code = 422, Code.VALIDATION_ERROR

    def __init__(self, problems: list[Problem]) -> None:
        # The client chooses the names in metadata.
        self._problems = [
            problem if problem.field is None else msgspec.structs.replace(problem, field=masked_name(problem.field))
            for problem in problems
        ]
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in self._problems))

    @classmethod
    def field_error(cls, field: str, message: str) -> "InvalidFields":
        return cls([Problem(code=Code.VALIDATION_ERROR.value, field=field, message=message)])

    @property
    def problems(self) -> list[Problem]:
        return self._problems


class PartError(ValueError):
    """A part of a field is not valid; ``part`` follows the field's name, such as ``.cart`` or ``[2]``."""

    def __init__(self, message: str, *, part: str = "") -> None:
        super().__init__(message)
        self.part = part


class FieldChecks:
    """Collects problems of all fields."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    @property
    def problems(self) -> list[Problem]:
        return [*self._problems]

    def fail(self, field: str, message: str) -> None:
        self._problems.append(Problem(code=Code.VALIDATION_ERROR.value, field=field, message=message))

    def take(self, field: str, parse: Callable[[V], T], value: V) -> T | None:
        try:
            return parse(value)
        except ValueError as problem:
            part = problem.part if isinstance(problem, PartError) else ""
            self.fail(field + part, str(problem))
            return None

    def settle(self) -> None:
        """Raise InvalidFields if a check failed."""
        if self._problems:
            raise InvalidFields(self._problems)


@contextmanager
def check_fields() -> Generator[FieldChecks]:
    """Raise InvalidFields at the end of the block if a check failed."""
    checks = FieldChecks()
    yield checks
    checks.settle()


class NotStarted(RuntimeError):
    """The gateway is not started."""

    def __init__(self) -> None:
        super().__init__(NOT_STARTED)


NOT_STARTED = (
    "this gateway has not been started: a mounted application gets no lifespan of its own, so give the host "
    "`lifespan=gateway.lifespan` (FastAPI, Starlette, Litestar), or enter `async with gateway.running():`"
)
