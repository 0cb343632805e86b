"""The API's own description: an OpenAPI 3.1 document, drawn from the routes themselves."""

from importlib.metadata import version

from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme


def openapi_config() -> OpenAPIConfig:
    """The document at /schema/openapi.json; nothing in it is fetched from elsewhere."""
    return OpenAPIConfig(
        title="mpesa-gateway",
        version=version("mpesa-gateway"),
        description="Accept M-Pesa payments. Authenticate with an API key in the X-API-Key header.",
        path="/schema",
        render_plugins=[JsonRenderPlugin()],
        components=Components(
            security_schemes={"api_key": SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header")}
        ),
        security=[{"api_key": []}],
    )
