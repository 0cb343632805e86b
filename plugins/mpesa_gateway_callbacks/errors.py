"""Why a callback is not taken."""

from typing import ClassVar

from mpesa_gateway.errors import Code, Refused


class CallbackRefused(Refused):
    """A callback that is not taken; ``reason`` is a stable word for the operator's list."""

    code: ClassVar[Code] = Code.CALLBACK_REFUSED
    reason: ClassVar[str] = ""


class SourceRefused(CallbackRefused):
    """Not from an address of Safaricom's."""

    status = 403
    reason = "source"


class TokenRefused(CallbackRefused):
    """A token that we did not make, or for another kind of callback."""

    status = 404
    reason = "token"


class KindRefused(CallbackRefused):
    """A callback of a kind that no enabled plugin declares, from Safaricom or with one of our tokens."""

    status = 404
    reason = "kind"


class SignatureRefused(CallbackRefused):
    """A signature that is wrong, cannot be checked, or is missing where one is required."""

    status = 401
    reason = "signature"


class SizeRefused(CallbackRefused):
    """A body that is larger than is taken; its beginning is kept."""

    status = 413
    code = Code.PAYLOAD_TOO_LARGE
    reason = "size"


class ShapeRefused(CallbackRefused):
    """Not a callback of this kind."""

    status = 422
    reason = "shape"


class DoubledRefused(CallbackRefused):
    """A field that decides is there twice, with different values."""

    status = 422
    reason = "doubled"
