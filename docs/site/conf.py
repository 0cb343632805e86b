"""How Sphinx builds the site, with `just docs`: the pages under docs/, and those beside it that they lead to."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

project = "mpesa-gateway"
extensions = ["myst_parser", "docs.site.beside", "docs.site.navigation"]

root_doc = "docs/index"
include_patterns = ["docs/**.md", "CHANGELOG.md", "certs/README.md", "examples/**/README.md", "bench/**/README.md"]
exclude_patterns = [".*", "**/.pytest_cache", "data", "dist", "mpesa_gateway", "plugins", "tests"]

# A link to a page or heading that is not there is a warning, and a warning ends the build.
nitpicky = True
myst_heading_anchors = 4

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
