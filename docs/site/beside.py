"""What pages lead to and is no page: files of this repository are shown with their code coloured, folders by a list."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.lexers.templates import HtmlDjangoLexer
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]

_PASSED_OVER = ("__pycache__", "node_modules")


def _lead_on(app: Sphinx, document: nodes.document) -> None:
    """Turn a page's links to files and folders into links to what this module shows of them."""
    name = app.env.docname
    for link in [*document.findall(addnodes.download_reference), *document.findall(addnodes.pending_xref)]:
        target = link.get("reftarget", "")
        path = (ROOT / name).parent.joinpath(target).resolve()
        if link.get("reftype") != "myst" or link.get("refdomain") == "doc" or not path.is_relative_to(ROOT):
            continue
        if path.is_dir() or (path.is_file() and isinstance(link, addnodes.download_reference)):
            relative = path.relative_to(ROOT).as_posix()
            _wanted(app).setdefault(name, set()).add(relative)
            uri = app.builder.get_relative_uri(name, _page(path))
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=uri))


def _wanted(app: Sphinx) -> dict[str, set[str]]:
    """What each page leads to; kept with the environment, so that it is known of pages that have not changed."""
    if not hasattr(app.env, "beside"):
        app.env.beside = {}  # type: ignore[attr-defined]
    return app.env.beside  # type: ignore[attr-defined,no-any-return]


def _page(path: Path) -> str:
    """The name of the page that shows a file or folder."""
    relative = path.relative_to(ROOT).as_posix()
    return f"{relative}/index" if path.is_dir() else relative


def _show(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each of them, and for all that is in a folder."""
    waiting = sorted({ROOT / name for names in _wanted(app).values() for name in names})
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.is_dir():
            inside = [each for each in sorted(path.iterdir()) if not each.name.startswith((".", *_PASSED_OVER))]
            waiting += [each for each in inside if not _document(app, each)]
            body = _listed(app, path, inside)
        else:
            body = _coloured(path)
        title = path.relative_to(ROOT).as_posix()
        yield _page(path), {"title": title, "body": f"<h1>{escape(title)}</h1>{body}"}, "page.html"


def _document(app: Sphinx, path: Path) -> str:
    """The name of the page that a file is the source of; empty where it is none."""
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    return name if path.suffix == ".md" and name in app.env.found_docs else ""


def _listed(app: Sphinx, folder: Path, inside: list[Path]) -> str:
    lines = [
        f"<li><a href='{escape(app.builder.get_relative_uri(_page(folder), _document(app, path) or _page(path)))}'>"
        f"{escape(path.name)}{'/' if path.is_dir() else ''}</a></li>"
        for path in inside
    ]
    return f"<ul>{''.join(lines)}</ul>"


def _coloured(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "<p>This file is not text.</p>"
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    return f"<div class='highlight-default notranslate'>{highlight(text, lexer, HtmlFormatter())}</div>"


def _forget(app: Sphinx, _: Any, name: str) -> None:
    _wanted(app).pop(name, None)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    # The templates that pages show are Jinja's.
    app.add_lexer("html", HtmlDjangoLexer)
    # Before Sphinx notes the files that it would copy for downloading.
    app.connect("doctree-read", _lead_on, priority=100)
    app.connect("env-purge-doc", _forget)
    app.connect("html-collect-pages", _show)
    return {"env_version": 1, "parallel_read_safe": False}
