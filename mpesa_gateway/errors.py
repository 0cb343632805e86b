"""Every way a request can be refused: one closed list of codes, each with its HTTP status and a next step."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, ClassVar, TypeVar

import msgspec

V = TypeVar("V")
T = TypeVar("T")


class Code(StrEnum):
    """The closed catalogue of error codes that the API answers with."""

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
    Code.NOT_FOUND: "correct the identifier or the address: there is no such thing, or it is another merchant's",
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
    Code.REQUEST_TIMEOUT: "the request did not come in time: send it again",
    Code.CALLBACK_REFUSED: "only Safaricom's callbacks meet this one; operators see why among those that were refused",
    Code.SERVICE_UNAVAILABLE: "the gateway is busy, cannot reach its database, or was not started: try again after "
    "`Retry-After`, with the same `Idempotency-Key`",
    Code.INTERNAL_ERROR: "our fault: quote the `request_id` to whoever runs the gateway",
}
"""What the caller does about each code."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One entry of ``errors`` in a refused answer."""

    code: Annotated[str, _CODE]
    message: str
    field: str | None = None
    retryable: bool | None = None
    provider: dict[str, str] | None = None
    id: str | None = None
    """The payment or refund that the request created and that remains, such as one that M-Pesa refused."""


class ApiError(Exception):
    """A request that is not carried out. Subclasses are named after the situation and carry code and status."""

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
        """``message`` says what to do about it; ``retry_after`` is in seconds; ``subject_id`` is what remains."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.provider = provider
        self.subject_id = subject_id
        self._retryable = self.retryable if retryable is None else retryable

    @property
    def problems(self) -> list[Problem]:
        """The entries for ``errors`` in the answer."""
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
    """No valid API key was shown."""

    status, code = 401, Code.AUTH_INVALID_KEY


class InsufficientScope(ApiError):
    """The key may not do this."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


class TooManyFailures(ApiError):
    """Too many failed authentications from one address."""

    status, code, retryable = 429, Code.AUTH_RATE_LIMITED, True


class RateLimited(ApiError):
    """Too many calls with one key."""

    status, code, retryable = 429, Code.RATE_LIMITED, True


class NotFound(ApiError):
    """There is no such object, or it is another merchant's."""

    status, code = 404, Code.NOT_FOUND


class MethodNotAllowed(ApiError):
    """The address does not take this method."""

    status, code = 405, Code.METHOD_NOT_ALLOWED


class Conflict(ApiError):
    """The object's state does not allow it."""

    status, code = 409, Code.CONFLICT


class PayloadTooLarge(ApiError):
    """The body is larger than we take."""

    status, code = 413, Code.PAYLOAD_TOO_LARGE


class UnsupportedMediaType(ApiError):
    """The body is not JSON."""

    status, code = 415, Code.UNSUPPORTED_MEDIA_TYPE


class RequestTimeout(ApiError):
    """The body did not come in time."""

    status, code, retryable = 408, Code.REQUEST_TIMEOUT, True


class ClientDisconnected(ApiError):
    """The caller left before its body had come; nobody reads the answer."""


class ProviderNotConfigured(ApiError):
    """Credentials, or a field of them that this call needs, are missing."""

    status, code = 422, Code.PROVIDER_NOT_CONFIGURED


class ProviderRejected(ApiError):
    """Daraja refused."""

    status, code = 502, Code.PROVIDER_REJECTED


class ProviderUnavailable(ApiError):
    """Nothing was sent: the same request may be made again."""

    status, code, retryable = 503, Code.PROVIDER_UNAVAILABLE, True


class ServiceUnavailable(ApiError):
    """A part that the gateway cannot do without is away."""

    status, code, retryable = 503, Code.SERVICE_UNAVAILABLE, True


class InternalError(ApiError):
    """Something went wrong on our side: quote the request_id to whoever runs this gateway."""

    status, code = 500, Code.INTERNAL_ERROR


class InvalidFields(ApiError):
    """Fields that cannot be taken; one problem each, all of them at once."""

    status, code = 422, Code.VALIDATION_ERROR

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self._problems = problems

    @classmethod
    def field_error(cls, field: str, message: str) -> "InvalidFields":
        """A single bad field."""
        return cls([Problem(code=Code.VALIDATION_ERROR.value, field=field, message=message)])

    @property
    def problems(self) -> list[Problem]:
        """One entry for each bad field."""
        return self._problems


class FieldChecks:
    """Collects what is wrong with each field, so that one answer names all of it."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def fail(self, field: str, message: str) -> None:
        """Note that ``field`` cannot be taken, and what to send instead."""
        self._problems.append(Problem(code=Code.VALIDATION_ERROR.value, field=field, message=message))

    def take(self, field: str, parse: Callable[[V], T], value: V) -> T | None:
        """``parse(value)``, or None with the ValueError's text noted against ``field``."""
        try:
            return parse(value)
        except ValueError as problem:
            self.fail(field, str(problem))
            return None

    def settle(self) -> None:
        """Raise Invalid if anything was noted."""
        if self._problems:
            raise InvalidFields(self._problems)


@contextmanager
def check_fields() -> Generator[FieldChecks]:
    """A block of checks; raises Invalid at its end if any failed."""
    checks = FieldChecks()
    yield checks
    checks.settle()


class NotStarted(RuntimeError):
    """The gateway was used before it was started."""

    def __init__(self) -> None:
        super().__init__(NOT_STARTED)


NOT_STARTED = (
    "this gateway has not been started: a mounted application gets no lifespan of its own, so give the host "
    "`lifespan=gateway.lifespan` (FastAPI, Starlette, Litestar), or enter `async with gateway.running():`"
)
