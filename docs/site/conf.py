"""Sphinx's configuration for `just docs`: the pages under docs/ and the Markdown pages elsewhere that they link to.

docs/index.md lists all pages. Its headings and lists are the source of the sidebar.
"""

import re
from typing import Any

project = "mpesa-gateway"
extensions = ["myst_parser"]

root_doc = "docs/index"
include_patterns = ["docs/**.md", "CHANGELOG.md", "certs/README.md", "examples/**/README.md", "bench/**/README.md"]
exclude_patterns = [".*", "**/.pytest_cache", "data", "dist", "mpesa_gateway", "plugins", "tests"]

# A missing page or heading is a warning, and `just docs` fails on warnings. Other files become downloads.
nitpicky = True
myst_heading_anchors = 4
# The HTML examples contain Jinja.
suppress_warnings = ["misc.highlighting_failure"]

language = "en"
html_theme = "furo"
html_title = "mpesa-gateway"
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_additional_pages = {"index": "to-docs.html"}
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_show_copyright = False
html_theme_options: dict[str, Any] = {
    "light_css_variables": {"color-brand-primary": "#087a3f", "color-brand-content": "#0b6b3a"},
    "dark_css_variables": {"color-brand-primary": "#4cc38a", "color-brand-content": "#4cc38a"},
    "footer_icons": [],
}

_ENTRY = re.compile(r"^- \[(?P<text>[^\]]+)\]\((?P<target>[^)#]+)\)", re.MULTILINE)


def _add_toctrees(_: Any, name: str, source: list[str]) -> None:
    """Add a hidden toctree for each section of docs/index.md. A folder includes all of its pages."""
    if name != root_doc:
        return
    trees: list[str] = []
    for section in source[0].split("\n## ")[1:]:
        entries = [
            f"{target}*" if target.endswith("/") else f"{text} <{target.removesuffix('.md')}>"
            for text, target in _ENTRY.findall(section)
        ]
        caption = section.partition("\n")[0]
        trees.append("\n".join(["```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *entries, "```"]))
    # Sphinx has no page for a folder.
    pages = re.sub(r"^- \[[^\]]+\]\([^)]+/\).*\n?", "", source[0], flags=re.MULTILINE)
    source[0] = "\n\n".join([pages, *trees])


def setup(app: Any) -> None:
    """Connect the handler. Sphinx calls this function."""
    app.connect("source-read", _add_toctrees)
