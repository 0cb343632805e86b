"""Errors of the operators' pages."""

from mpesa_gateway.errors import ApiError, Code


class NotSignedIn(ApiError):
    """The request has no valid session."""

    status, code = 401, Code.AUTH_INVALID_KEY


class SecondFactorPending(NotSignedIn):
    """The password was right; the session waits for a code."""


class SecondFactorMissing(ApiError):
    """The role allows this with a second factor, and the person has set up none."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


class WrongPassword(ApiError):
    """The address, the password or the code is wrong; the message does not say which."""

    status, code = 401, Code.AUTH_INVALID_KEY


class CrossSiteRequest(ApiError):
    """The change was not requested from a page of this gateway."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


class NotAllowed(ApiError):
    """The person's role does not allow this."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


class InvalidInvitation(ApiError):
    """The link is unknown, used or expired; the message does not say which."""

    status, code = 404, Code.NOT_FOUND
