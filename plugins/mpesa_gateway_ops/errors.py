"""Errors of the operators' pages."""

from mpesa_gateway.errors import ApiError, Code


class NotSignedIn(ApiError):
    """The request has no valid session."""

    status, code = 401, Code.AUTH_INVALID_KEY


class WrongPassword(ApiError):
    """The name or the password is wrong; the message does not say which."""

    status, code = 401, Code.AUTH_INVALID_KEY


class CrossSiteRequest(ApiError):
    """The change was not requested from a page of this gateway."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


class NotAllowed(ApiError):
    """The operator's role does not allow this."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE
