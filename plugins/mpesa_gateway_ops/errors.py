"""Why an operator's page is not shown."""

from mpesa_gateway.errors import ApiError, Code


class NotSignedIn(ApiError):
    """No session that still counts came with the request."""

    status, code = 401, Code.AUTH_INVALID_KEY


class WrongPassword(ApiError):
    """The name or the password is wrong; it is not said which."""

    status, code = 401, Code.AUTH_INVALID_KEY


class CrossSiteRequest(ApiError):
    """A change that was not asked for on one of our own pages."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE


class NotAllowed(ApiError):
    """The operator's role does not reach."""

    status, code = 403, Code.AUTH_INSUFFICIENT_SCOPE
