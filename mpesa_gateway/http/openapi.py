"""The OpenAPI 3.1 document."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components as SpecComponents
from litestar.openapi.spec import SecurityScheme, Server
from litestar.response import Stream
from litestar.routes import HTTPRoute

from mpesa_gateway.config import GatewayConfig
from mpesa_gateway.errors import (
    NEXT_STEPS,
    ApiError,
    InsufficientScope,
    InternalError,
    InvalidFields,
    InvalidKey,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    RequestTimeout,
    ServiceUnavailable,
    TooManyFailures,
    UnsupportedMediaType,
)
from mpesa_gateway.http.auth import scope_of
from mpesa_gateway.http.envelope import Failure
from mpesa_gateway.http.openapi_page import render_page
from mpesa_gateway.http.openapi_schemas import Components, name_enumerations, refine, to_markdown
from mpesa_gateway.http.query import query_types
from mpesa_gateway.http.validation import is_moment

ANSWERS, OR_ANSWERS, REFUSES, TAKES = "answers", "or_answers", "refuses", "takes"
DESCRIBED, NEEDS_KEY = "described", "needs_key"
"""Keywords of a route's decorator that add to the document.

``answers={202: Success[RunView]}``: other responses; ``refuses=(Conflict,)``: additional errors; ``takes={…}``: the
JSON Schema of a body that the route reads itself; ``described={"kind": {…}}``: the JSON Schema of path parameters;
``needs_key=True``: Idempotency-Key is required; ``or_answers=[{…}]``: other bodies with status 200. ``add_cookies``,
``described`` and ``or_answers`` may be functions of the gateway.
"""

_TEXT = """\
Accept M-Pesa payments. Authenticate with an API key in the `X-API-Key` header, or as \
`Authorization: Bearer`.

Every response has the header `X-Request-ID`. Every error has the same JSON envelope, also the errors of the HTTP \
layer: 400 for a malformed HTTP/1.1 request, 408 for a head or body that arrives too slowly, 431 for a head that is \
too long."""

_KEY = "An API key of the merchant: `sk_test_…` or `sk_live_…`."

_SECURITY: list[dict[str, list[str]]] = [{"api_key": []}, {"bearer": []}]
"""Either of them."""

SCOPE = {"$ref": "#/components/schemas/Scope"}

_OWN_TAGS = {
    "Administration": "Merchants and their API keys, for keys with the scope `admin`.",
    "Operators": "Health, metrics and the audit log.",
}

_LAST = ("Administration", "Operators", "Callbacks", "Simulator")

_REQUEST_ID = {
    "X-Request-ID": {
        "description": "The ID of this request: the client's own if it is valid.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    }
}
_YOUR_REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The client's ID for this request, for the response and the logs. An invalid ID is replaced.",
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds to wait before a retry.",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    }
}
_IDEMPOTENCY_KEY = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~](?:[ -~]*[!-~])?$"}


class _Document(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return msgspec.json.encode(complete(request.app, openapi_schema))


class _Page(OpenAPIRenderPlugin):
    def __init__(self) -> None:
        super().__init__(path="/")

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002 - Litestar passes it
        return render_page(openapi_schema["info"]["title"]).encode()


def openapi_config() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="mpesa-gateway",
        version=version("mpesa-gateway"),
        description=_TEXT,
        path="/schema",
        servers=[Server(url="")],  # `complete` sets it
        use_handler_docstrings=True,
        render_plugins=[_Page(), _Document()],
        components=SpecComponents(
            security_schemes={
                "api_key": SecurityScheme(
                    type="apiKey", name="X-API-Key", security_scheme_in="header", description=_KEY
                ),
                "bearer": SecurityScheme(type="http", scheme="bearer", description=f"{_KEY} The same key, as a token."),
            }
        ),
        security=_SECURITY,
    )


def document_of(app: Litestar) -> dict[str, Any]:
    return complete(app, app.openapi_schema.to_schema())


def complete(app: Litestar, document: dict[str, Any]) -> dict[str, Any]:
    """Complete Litestar's document in place, once."""
    _name_host(document, app.state.gateway.config)
    if "x-complete" in document:
        return document
    shown = [
        (operation, handler)
        for path, method, handler in _operations(app)
        if (operation := document["paths"].get(path, {}).get(method))
    ]
    components = Components(
        [_body(handler) for _, handler in shown if _body(handler) is not None],
        [Failure, *(kind for _, handler in shown for kind in _answers(handler).values())],
        app.state.gateway,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components.schemas)
    schemas["Scope"] = {
        "title": "Scope",
        "description": "A right that an API key can carry.",
        "enum": app.state.gateway.scopes.names,
    }
    names = Counter(handler.handler_name for _, handler in shown)
    for operation, handler in shown:
        _complete_operation(operation, handler, components, app.state.gateway)
        if "description" in operation:
            operation["description"] = to_markdown(operation["description"])
        operation["summary"] = handler.handler_name.replace("_", " ").capitalize()
        if names[handler.handler_name] == 1:
            operation["operationId"] = handler.handler_name
    name_enumerations(document)
    _remove_unused_schemas(document)
    used = {tag for operation, _ in shown for tag in operation.get("tags", ())}
    tags = sorted(_tags(app).items(), key=lambda tag: tag[0] in _LAST)
    document["tags"] = [{"name": tag, "description": text} for tag, text in tags if tag in used]
    document["x-complete"] = True
    return document


def _name_host(document: dict[str, Any], config: GatewayConfig) -> None:
    public_url, said = config.public_url.rstrip("/"), config.openapi
    document["servers"] = [{"url": public_url}]
    contact = {"name": said.contact_name, "url": said.contact_url or public_url, "email": said.contact_email}
    document["info"]["contact"] = {name: text for name, text in contact.items() if text is not None}
    terms = {"url": said.terms_url} if said.terms_url else {"identifier": "LicenseRef-host-terms"}
    document["info"]["license"] = {"name": said.terms_name, **terms}


def _tags(app: Litestar) -> dict[str, str]:
    found = dict(_OWN_TAGS)
    for plugin in app.state.gateway.plugins:
        for route in plugin.routes:
            for tag in getattr(route, "tags", None) or ():
                found.setdefault(tag, plugin.summary)
    return found


def _operations(app: Litestar) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in handler.http_methods:
                    yield route.path_format, method.lower(), handler


def _complete_operation(
    operation: dict[str, Any], handler: HTTPRouteHandler, components: Components, gateway: Any
) -> None:
    scope = scope_of(handler)
    operation["security"] = [] if scope is None else _SECURITY
    if scope is not None:
        operation["x-scope"] = scope.name
        operation["x-badges"] = [{"name": scope.name}]
    operation.pop("deprecated", None)
    _complete_parameters(operation, handler, gateway)
    _complete_body(operation, handler, components, gateway)
    refusals = _refusals(handler)
    responses = operation["responses"]
    for status in [status for status in responses if int(status) >= 400]:
        del responses[status]
    for status, kind in _answers(handler).items():
        responses[str(status)] = _success(status, kind, handler, components, responses.get(str(status)))
    if others := _option(handler, OR_ANSWERS, gateway):
        shown = responses["200"]["content"]["application/json"]
        shown["schema"] = {"anyOf": [shown["schema"], *others]}
    for status in sorted({refusal.status for refusal in refusals}):
        refused = _failure([each for each in refusals if each.status == status], components)
        if status in _answers(handler):
            # The status has two meanings, as 503 of the health check.
            shown = refused["content"]["application/json"]
            shown["schema"] = {"anyOf": [components.reference(_answers(handler)[status]), shown["schema"]]}
        responses[str(status)] = refused


def _complete_parameters(operation: dict[str, Any], handler: HTTPRouteHandler, gateway: Any) -> None:
    described: Mapping[str, Mapping[str, Any]] = _option(handler, DESCRIBED, gateway) or {}
    for parameter in operation.get("parameters", ()):
        parameter.pop("deprecated", None)
        if parameter["in"] == "path":
            parameter["schema"] = {"type": "string", "minLength": 1, **described.get(parameter["name"], {})}
        elif parameter["name"] == "Idempotency-Key":
            parameter["schema"] = dict(_IDEMPOTENCY_KEY)
            parameter["required"] = bool(handler.opt.get(NEEDS_KEY))
            parameter["example"] = "order-1041"
    for kind in query_types(handler):
        operation.setdefault("parameters", []).extend(_query_parameters(kind, gateway))
    operation.setdefault("parameters", []).append(dict(_YOUR_REQUEST_ID))


def _complete_body(operation: dict[str, Any], handler: HTTPRouteHandler, components: Components, gateway: Any) -> None:
    taken: dict[str, Any] | None = _option(handler, TAKES, gateway)
    if taken is None:
        reference = components.reference(_body(handler))
        if reference is None:
            return
        taken = {"schema": reference}
    data = handler.parsed_fn_signature.parameters.get("data")
    is_required = data is None or not data.has_default
    operation["requestBody"] = {"required": is_required, "content": {"application/json": taken}}


def _option(handler: HTTPRouteHandler, name: str, gateway: Any) -> Any:
    said = handler.opt.get(name)
    return said(gateway) if callable(said) else said


def _body(handler: HTTPRouteHandler) -> Any:
    data = handler.parsed_fn_signature.parameters.get("data")
    return None if data is None else data.annotation


def _answers(handler: HTTPRouteHandler) -> dict[int, Any]:
    """Return the success responses by status: a type, or a media type."""
    said: dict[int, Any] = handler.opt.get(ANSWERS, {})
    returned = handler.parsed_fn_signature.return_type
    if returned.is_subclass_of(Stream):
        return {handler.status_code: "text/csv"} | said
    inner = [each.annotation for each in returned.inner_types]
    kind = inner[0] if returned.is_subclass_of(Response) and inner else returned.annotation
    return {handler.status_code: kind} | said


def _refusals(handler: HTTPRouteHandler) -> list[type[ApiError]]:
    found: list[type[ApiError]] = [*handler.opt.get(REFUSES, ())]
    if scope_of(handler) is not None:
        # InvalidFields: an unknown query parameter.
        found += [InvalidKey, InsufficientScope, RateLimited, TooManyFailures, InvalidFields]
        if handler.http_methods & {"POST", "PUT", "PATCH"}:
            found += [UnsupportedMediaType]
    if _body(handler) is not None or TAKES in handler.opt:
        found += [PayloadTooLarge, RequestTimeout]
    if _body(handler) is not None:
        found += [InvalidFields]
    if query_types(handler):
        found += [InvalidFields]
    if any("{" in path for path in handler.paths):
        found += [NotFound]
    return list(dict.fromkeys([*found, InternalError, ServiceUnavailable]))


def _success(
    status: int, kind: Any, handler: HTTPRouteHandler, components: Components, known: dict[str, Any] | None
) -> dict[str, Any]:
    headers: dict[str, Any] = dict(_REQUEST_ID)
    if "idempotency_key" in handler.parsed_fn_signature.parameters:
        name, text = (
            ("Idempotent-Replayed", "An earlier request created it.")
            if status == 200
            else ("Location", "The address of the created object.")
        )
        headers[name] = {"description": text, "schema": {"type": "string"}}
    content: dict[str, Any] = (known or {}).get("content", {})
    if isinstance(kind, str):
        content = {kind: {"schema": {"type": "string"}}}
    elif (reference := components.reference(kind)) is not None:
        content = {"application/json": {"schema": reference, "example": components.example(reference)}}
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}


def _failure(refusals: Iterable[type[ApiError]], components: Components) -> dict[str, Any]:
    kinds = sorted(refusals, key=lambda refusal: refusal.code)
    headers = dict(_REQUEST_ID)
    if any(kind.retryable for kind in kinds):
        headers |= _RETRY_AFTER
    return {
        "description": " ".join(f"{kind.code}: {_sentence(kind)}" for kind in kinds),
        "headers": headers,
        "content": {
            "application/json": {
                "schema": components.reference(Failure),
                "examples": {kind.__name__: {"summary": _sentence(kind), "value": _example(kind)} for kind in kinds},
            }
        },
    }


def _sentence(refusal: type[ApiError]) -> str:
    return (refusal.__doc__ or "").partition("\n\n")[0].replace("`", "")


def _example(refusal: type[ApiError]) -> dict[str, Any]:
    problem: dict[str, Any] = {"code": refusal.code.value, "message": NEXT_STEPS[refusal.code].replace("`", "")}
    if issubclass(refusal, InvalidFields):
        problem["field"] = "phone"
    if refusal.retryable is not None:
        problem["retryable"] = refusal.retryable
    return {"success": False, "errors": [problem], "request_id": "req_01jdk3v8rc4x9m2q7ztbn5wgae"}


def _query_parameters(kind: type[msgspec.Struct], gateway: Any) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([kind], ref_template="{name}")
    schema = components[kind.__name__]
    refine(schema, kind, gateway)
    moments = {field.encode_name for field in msgspec.structs.fields(kind) if is_moment(field.type)}
    parameters: list[dict[str, Any]] = []
    for name, part in schema["properties"].items():
        found = _inline(part, components)
        if name in moments:
            found = {"anyOf": [{"type": "string", "format": form} for form in ("date-time", "date")]}
        # HTML forms send empty fields; they count as absent.
        said = {"name": name, "in": "query", "required": False, "allowEmptyValue": True, "schema": found}
        parameters.append(said)
    return parameters


def _inline(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is never null."""
    if "$ref" in schema:
        return _inline(components[schema["$ref"]], components) | {"title": schema.get("title", "")}
    if "anyOf" in schema:
        (present,) = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return _inline(present, components)
    return {name: value for name, value in schema.items() if not (name in {"default", "title"} and not value)}


def _remove_unused_schemas(document: dict[str, Any]) -> None:
    schemas: dict[str, Any] = document["components"]["schemas"]
    used: set[str] = set()
    pending = _references(document["paths"])
    while pending:
        name = pending.pop()
        if name not in used:
            used.add(name)
            pending |= _references(schemas.get(name, {}))
    document["components"]["schemas"] = {name: schemas[name] for name in sorted(used & set(schemas))}


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        pairs: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON
        found = {str(pairs["$ref"]).rpartition("/")[2]} if isinstance(pairs.get("$ref"), str) else set[str]()
        return found.union(*map(_references, pairs.values()))
    if isinstance(value, list | tuple):
        parts: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON
        return set[str]().union(*map(_references, parts))
    return set()
