"""What pages are made of: the document around the sections, tables, cells, escaped text."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources

from .. import __version__

Section = tuple[str, str, str]
"""Anchor, title and content; one without content is left out."""


def document(
    name: str,
    kind: str,
    lead: str,
    tiles: str,
    sections: Sequence[Section],
    notes: Sequence[str],
    footer: str,
) -> str:
    """A whole page with style and script in it, so that it needs nothing but a browser.

    Args:
        name: heading.
        kind: what the page is, for its title.
        lead: HTML below the heading.
        tiles: HTML between that and the links, or nothing.
        sections: in order.
        notes: text above the sections.
        footer: where the page comes from, as text.
    """
    shown = [section for section in sections if section[2]]
    body = "".join(f"<section id='{i}'><h2>{title}</h2>{content}</section>" for i, title, content in shown)
    links = "".join(f"<a href='#{i}'>{title}</a>" for i, title, _ in shown)
    hints = "".join(f"<p class='hint'>{text(note)}</p>" for note in notes)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{text(name)} · Boxwright {kind}</title><style>{asset('style.css')}</style></head><body>"
        f"<header><h1>{text(name)}</h1><p class='lead'>{lead}</p>{tiles}<nav>{links}</nav></header>"
        f"<main>{hints}{body}</main>"
        f"<footer>Written by Boxwright {__version__} from {text(footer)}.</footer>"
        f"<script>{asset('script.js')}</script></body></html>\n"
    )


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of ready cells that scrolls where the page is narrow; of kind "sortable" by a click."""
    head = "".join(f"<th>{text(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    rows_text = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f"<div class='scroll'><table class='{kind}'>{rows_text}</table></div>"


def cell(value: float | None, bar: bool = False) -> str:
    """A table cell with a share in per cent; a dash where there is none."""
    if value is None:
        return "<td class='none' data-value='-1'>&ndash;</td>"
    drawn = f"<span class='bar'><i style='width:{100 * value:.1f}%'></i></span>" if bar else ""
    return f"<td data-value='{value:.6f}'>{100 * value:.1f}{drawn}</td>"


def text(value: object) -> str:
    """Text that may stand in HTML, in an attribute too."""
    return html.escape(str(value), quote=True)


def asset(name: str) -> str:
    """A file of this package: `style.css`, `script.js`."""
    return resources.files("boxwright.report").joinpath(name).read_text(encoding="utf-8")
