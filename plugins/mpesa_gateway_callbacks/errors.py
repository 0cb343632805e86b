"""Reasons for rejecting a callback."""

from typing import ClassVar

from mpesa_gateway.errors import ApiError, Code


class CallbackRejected(ApiError):
    """A rejected callback; ``reason`` is a stable word for the operators' list."""

    code: ClassVar[Code] = Code.CALLBACK_REFUSED
    reason: ClassVar[str] = ""


class SourceRejected(CallbackRejected):
    """The source is not an address of Safaricom."""

    status = 403
    reason = "source"


class TokenRejected(CallbackRejected):
    """The token is not one of ours, or is for another kind of callback."""

    status = 404
    reason = "token"


class KindRejected(CallbackRejected):
    """No enabled plugin declares this kind of callback. Raised for trusted senders only."""

    status = 404
    reason = "kind"


class SignatureRejected(CallbackRejected):
    """The signature is wrong, cannot be checked, or is missing although required."""

    status = 401
    reason = "signature"


class SizeRejected(CallbackRejected):
    """The body exceeds the size limit; its beginning is stored."""

    status = 413
    code = Code.PAYLOAD_TOO_LARGE
    reason = "size"


class ShapeRejected(CallbackRejected):
    """The body is not a callback of this kind."""

    status = 422
    reason = "shape"


class DuplicateFieldRejected(CallbackRejected):
    """A decisive field appears twice with different values."""

    status = 422
    reason = "doubled"
