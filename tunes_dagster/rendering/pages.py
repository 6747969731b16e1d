"""Self-contained HTML pages for people: pictures by relative path, settings as tables, no scripts, no network.

A page works from a local folder, from S3 and when it is mailed together with its folder.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

_STYLE = """
:root { color-scheme: light dark; --paper:#fafaf8; --card:#fff; --ink:#1c1e24; --soft:#686c76; --line:#e3e4e7;
  --blue:#2662ba; --bad:#ba2d2d; --warn:#a35f00; --good:#1e7a3f; }
@media (prefers-color-scheme: dark) { :root { --paper:#15161a; --card:#1e2026; --ink:#ececf0; --soft:#9da1ac;
  --line:#30323a; --blue:#7fb0ff; --bad:#ff8a80; --warn:#ffb74d; --good:#7bd88f; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width:1280px; margin:0 auto; padding:2.5rem 1.5rem 4rem; }
h1 { font-size:1.75rem; line-height:1.25; margin:0 0 .35rem; letter-spacing:-.01em; }
h2 { font-size:1.15rem; margin:2.5rem 0 .9rem; }
p { margin:.4rem 0; max-width:75ch; }
.soft { color:var(--soft); }
.grid { display:grid; gap:1.1rem; align-items:start;
  grid-template-columns:repeat(auto-fill, minmax(min(var(--column, 230px), 100%), 1fr)); }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px; overflow:hidden; }
figure a { display:block; }
figure img { display:block; width:100%; height:auto; }
figcaption { padding:.65rem .8rem .75rem; font-size:.875rem; line-height:1.4; overflow-wrap:anywhere; }
figcaption .soft { display:block; margin-top:.2rem; font-size:.8rem; }
.wide { max-width:100%; height:auto; border:1px solid var(--line); border-radius:10px; display:block; }
.empty { aspect-ratio:1; display:grid; place-items:center; background:var(--paper); color:var(--bad);
  font-weight:600; }
table { border-collapse:collapse; background:var(--card); border:1px solid var(--line); border-radius:10px;
  border-spacing:0; overflow:hidden; font-size:.9rem; }
th, td { text-align:left; padding:.42rem .9rem; border-top:1px solid var(--line); vertical-align:top;
  overflow-wrap:anywhere; }
tr:first-child th, tr:first-child td { border-top:0; }
th { font-weight:500; color:var(--soft); white-space:nowrap; }
.head th { font-size:.8rem; }
.scroll { overflow-x:auto; margin:.6rem 0 1.1rem; }
th.good { color:var(--good); font-weight:600; } th.warn { color:var(--warn); font-weight:600; }
th.bad { color:var(--bad); font-weight:600; }
code { font:.85em ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background:var(--card); border:1px solid var(--line); border-radius:8px; overflow-x:auto;
  padding:.6rem .9rem; margin:.2rem 0 .9rem; }
a { color:var(--blue); }
.bad { color:var(--bad); } .warn { color:var(--warn); }
footer { margin-top:3rem; color:var(--soft); font-size:.8rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture of a page.

    Attributes:
        source: Relative path; empty leaves a place that says `caption` failed.
        caption: Below the picture.
        details: Smaller, below the caption.
        tone: `bad` and `warn` colour the details.
    """

    source: str
    caption: str = ""
    details: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, some text, facts as a table, a wide picture, a grid of pictures.

    Attributes:
        heading: Empty for none.
        text: One paragraph.
        facts: Shown as a table of two columns; values are put in words by `str`.
        table: Rows of a table with the names of the first one as headings; a row's `tone` (good, warn, bad) is no
            column but colours its first cell.
        commands: What each command is for → the command, shown to be copied.
        links: What a file is → its relative path.
        wide: Relative path of a sheet or a curve.
        figures: Shown as a grid.
        column: Least width of a column of the grid in pixels.
    """

    heading: str = ""
    text: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    table: Sequence[Mapping[str, object]] = ()
    commands: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    wide: str = ""
    figures: Sequence[Figure] = ()
    column: int = 230


def relative(key: str, page_key: str) -> str:
    """Return the relative path from a page to a file, both keys of the store."""
    return posixpath.relpath(key, posixpath.dirname(page_key) or ".")


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return a page as HTML text.

    Args:
        title: Heading and window title.
        subtitle: One paragraph below it.
        sections: In order.
        footer: Small, at the end.
    """
    body = "".join(_section(section) for section in sections)
    end = f"<footer>{escape(footer)}</footer>" if footer else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><main><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>{body}{end}</main></body></html>\n'
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"] if section.heading else []
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.facts:
        rows = (
            f"<tr><th>{escape(str(name))}</th><td>{escape(_words(value))}</td></tr>"
            for name, value in section.facts.items()
            if value not in (None, "")
        )
        parts.append(f"<table>{''.join(rows)}</table>")
    if section.table:
        parts.append(_table(section.table))
    for purpose, command in section.commands.items():
        parts.append(f'<p class="soft">{escape(purpose)}</p><pre><code>{escape(command)}</code></pre>')
    if section.links:
        said = (f'<a href="{quote(path)}">{escape(name)}</a>' for name, path in section.links.items())
        parts.append(f"<p>{' · '.join(said)}</p>")
    if section.wide:
        path = quote(section.wide)
        parts.append(f'<a href="{path}"><img class="wide" src="{path}" alt="{escape(section.heading)}"></a>')
    if section.figures:
        figures = "".join(_figure(figure) for figure in section.figures)
        parts.append(f'<div class="grid" style="--column:{section.column}px">{figures}</div>')
    return f"\n<section>{''.join(parts)}</section>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    names = [name for name in rows[0] if name != "tone"]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for row in rows:
        tone = row.get("tone") if row.get("tone") in ("good", "warn", "bad") else ""
        first = f'<th class="{tone}">' if tone else "<th>"
        cells = [escape(_words(row.get(name, ""))) for name in names]
        lines.append(f"<tr>{first}{cells[0]}</th>{''.join(f'<td>{cell}</td>' for cell in cells[1:])}</tr>")
    return f'<div class="scroll"><table><tr class="head">{head}</tr>{"".join(lines)}</table></div>'


def _figure(figure: Figure) -> str:
    path, caption = quote(figure.source), escape(figure.caption)
    if figure.source:
        shown = f'<a href="{path}"><img src="{path}" alt="{caption}" loading="lazy"></a>'
    else:
        shown = '<div class="empty">no picture</div>'
    tone = figure.tone if figure.tone in ("bad", "warn") else ""
    details = f'<span class="soft {tone}">{escape(figure.details)}</span>' if figure.details else ""
    return f"<figure>{shown}<figcaption>{caption}{details}</figcaption></figure>"


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    return str(value)
