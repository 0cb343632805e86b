"""Scopes: what a key with each may do, and the calls that want it."""

from docs.site.reference.http import anchor, openapi
from docs.site.reference.words import NOTE, code, document, sentence, table
from mpesa_gateway.app import Gateway
from mpesa_gateway.http.outline import grouped


def page(gateway: Gateway) -> str:
    """The whole page."""
    scopes = gateway.scopes
    calls = [call for group in grouped(openapi(gateway)).values() for call in group]
    return document(
        "# Scopes",
        NOTE,
        "An API key carries scopes, and every call names the one that it wants; another is answered 403 "
        "`AUTH_INSUFFICIENT_SCOPE`. No scope includes another. A key that is made without `--scope` has all but "
        f"`admin`: {', '.join(code(scope.name) for scope in scopes.of_merchants)}.",
        table(["scope", "its key may"], ((code(scope.name), scope.meaning) for scope in scopes.all)),
        *(
            document(
                f"## {scope}",
                sentence(scope.meaning),
                "\n".join(
                    f"- [`{method.upper()} {path}`](http.md#{anchor(method, path)})"
                    for method, path, operation in calls
                    if operation.get("x-scope") == scope.name
                ),
            )
            for scope in scopes.all
        ),
    )
