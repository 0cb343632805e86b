"""Why a callback is not taken."""

from typing import ClassVar

from mpesa_gateway.errors import ApiError, Code


class CallbackRejected(ApiError):
    """A callback that is not taken; ``reason`` is a stable word for the operator's list."""

    code: ClassVar[Code] = Code.CALLBACK_REFUSED
    reason: ClassVar[str] = ""


class SourceRejected(CallbackRejected):
    """Not from an address of Safaricom's."""

    status = 403
    reason = "source"


class TokenRejected(CallbackRejected):
    """A token that we did not make, or for another kind of callback."""

    status = 404
    reason = "token"


class KindRejected(CallbackRejected):
    """A callback of a kind that no enabled plugin declares, from Safaricom or with one of our tokens."""

    status = 404
    reason = "kind"


class SignatureRejected(CallbackRejected):
    """A signature that is wrong, cannot be checked, or is missing where one is required."""

    status = 401
    reason = "signature"


class SizeRejected(CallbackRejected):
    """A body that is larger than is taken; its beginning is kept."""

    status = 413
    code = Code.PAYLOAD_TOO_LARGE
    reason = "size"


class ShapeRejected(CallbackRejected):
    """Not a callback of this kind."""

    status = 422
    reason = "shape"


class DuplicateFieldRejected(CallbackRejected):
    """A field that decides is there twice, with different values."""

    status = 422
    reason = "doubled"
