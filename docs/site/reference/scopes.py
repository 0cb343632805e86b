"""Scopes: the rights of a key with each scope, and the calls that require it."""

from typing import Any

from docs.site.reference.words import NOTE, code, document, sentence, table
from mpesa_gateway.app import Gateway
from mpesa_gateway.http.openapi import document_of


def page(gateway: Gateway) -> str:
    """Return the page."""
    scopes = gateway.scopes
    paths: dict[str, dict[str, Any]] = document_of(gateway.asgi.litestar)["paths"]
    calls = [(f"{method.upper()} {path}", each) for path, item in paths.items() for method, each in item.items()]
    return document(
        "# Scopes",
        NOTE,
        "An API key has scopes, and every call requires one of them; without it the response is 403 "
        "`AUTH_INSUFFICIENT_SCOPE`. No scope includes another. A key that is created without `--scope` has all scopes "
        f"but `admin`: {', '.join(code(scope.name) for scope in scopes.of_merchants)}.",
        table(["scope", "right"], ((code(scope.name), scope.meaning) for scope in scopes.all)),
        *(
            document(
                f"## {scope}",
                sentence(scope.meaning),
                "\n".join(f"- {code(name)}" for name, operation in calls if operation.get("x-scope") == scope.name),
            )
            for scope in scopes.all
        ),
    )
