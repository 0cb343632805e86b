"""The API reference page, shown by the vendored reader Scalar."""

from html import escape

from mpesa_gateway.http.templating import asset

# Scalar sets styles from its script. Users type API keys, so requests stay within this origin.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def render_page(title: str, root: str = "") -> str:
    """``root`` is the relative path to the root."""
    scripts = "".join(
        f'<script src="{root}{asset(name)}" defer></script>' for name in ("scalar.js.gz", "openapi_page.js")
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} API</title>{scripts}</head><body>"
        f'<noscript>This page needs JavaScript. <a href="{root}schema/openapi.json">OpenAPI document</a></noscript>'
        '<main id="reference"></main></body></html>'
    )
