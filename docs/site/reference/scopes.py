"""Scopes: what a key with each may do, and the calls that want it."""

from docs.site.reference.http import anchor, openapi
from docs.site.reference.words import NOTE, code, document, sentence, table
from mpesa_gateway.app import Gateway
from mpesa_gateway.http.outline import grouped
from mpesa_gateway.security.scopes import MEANINGS, MERCHANT_SCOPES, Scope


def page(gateway: Gateway) -> str:
    """The whole page."""
    calls = [call for group in grouped(openapi(gateway)).values() for call in group]
    return document(
        "# Scopes",
        NOTE,
        "An API key carries scopes, and every call names the one that it wants; another is answered 403 "
        "`AUTH_INSUFFICIENT_SCOPE`. No scope includes another. A key that is made without `--scope` has all but "
        f"`admin`: {', '.join(code(scope.value) for scope in MERCHANT_SCOPES)}.",
        table(["scope", "its key may"], ((code(scope.value), MEANINGS[scope]) for scope in Scope)),
        *(
            document(
                f"## {scope.value}",
                sentence(MEANINGS[scope]),
                "\n".join(
                    f"- [`{method.upper()} {path}`](http.md#{anchor(method, path)})"
                    for method, path, operation in calls
                    if operation.get("x-scope") == scope.value
                ),
            )
            for scope in Scope
        ),
    )
