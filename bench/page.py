"""A document as a list of blocks, and how it becomes Markdown and one self-contained HTML page.

The page needs no network: figures are data URIs, in a light and a dark version, of which the reader's browser takes the
one that suits `prefers-color-scheme`. On a narrow screen every table row becomes a card.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str
    loud: bool = False  # set apart, for what must not be overlooked


@dataclass(frozen=True)
class Items:
    """An ordered list; with colours, each item has a square of its own before it."""

    texts: tuple[str, ...]
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Image:
    name: str  # file name without ending, for Markdown
    light: bytes  # SVG
    dark: bytes  # SVG
    caption: str


@dataclass(frozen=True)
class Code:
    text: str
    summary: str = ""  # folded under this line if given


Block = Heading | Text | Items | Table | Image | Code


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown; images are looked for in figures/."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text, loud):
            return f"> **{text}**" if loud else text
        case Items(texts):
            return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
        case Table(header, rows):
            lines = [header, tuple("---" for _ in header), *rows]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        case Image(name=name, caption=caption):
            return f"![{caption}](figures/{name}.png)\n\n*{caption}*"
        case Code(text, summary):
            return (f"{summary}:\n\n" if summary else "") + f"```\n{text}\n```"


def html(blocks: Sequence[Block], title: str) -> str:
    """The blocks as one page."""
    body = "\n".join(_html(block) for block in blocks)
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text, loud):
            return f'<p class="loud">{escape(text)}</p>' if loud else f"<p>{escape(text)}</p>"
        case Items(texts, colours):
            squares = [f'<i style="background:{escape(c)}"></i>' for c in colours] or [""] * len(texts)
            rows = "".join(f"<li>{s}{escape(t)}</li>" for s, t in zip(squares, texts, strict=True))
            return f"<ol>{rows}</ol>"
        case Table():
            return _table(block)
        case Image():
            return _image(block)
        case Code(text, summary):
            code = f"<pre>{escape(text)}</pre>"
            return f"<details><summary>{escape(summary)}</summary>{code}</details>" if summary else code


def _table(block: Table) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in block.header)
    rows = "".join(
        f"<tr>{''.join(_cell(h, c) for h, c in zip(block.header, row, strict=True))}</tr>" for row in block.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(header: str, text: str) -> str:
    return f'<td data-label="{escape(header)}"><span>{escape(text)}</span></td>'


def _image(block: Image) -> str:
    light, dark = ("data:image/svg+xml;base64," + base64.b64encode(v).decode() for v in (block.light, block.dark))
    caption = escape(block.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{caption}"></picture><figcaption>{caption}</figcaption></figure>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

_STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d8dce0; --paper: #ffffff; --loud: #fff4d6; --edge: #c98a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9aa4ae; --line: #3b424a; --paper: #15181c; --loud: #35290b; --edge: #e0a92e; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p, li { max-width: 75ch; overflow-wrap: anywhere; }
ol { padding-left: 1.6rem; font-variant-numeric: tabular-nums; }
li i { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 2px; }
.loud { background: var(--loud); border-left: 4px solid var(--edge); padding: .5rem .8rem; }
figure { display: inline-block; vertical-align: top; width: 100%; max-width: 510px; margin: .5rem 4px 1rem 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .7rem; font-size: .82rem; border-radius: 4px; }
summary { cursor: pointer; margin: .6rem 0; overflow-wrap: anywhere; }
@media (max-width: 700px) {
  main { padding: 16px 14px 48px; }
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { border: 1px solid var(--line); border-radius: 6px; margin-bottom: .7rem; padding: .3rem .7rem; }
  td { display: flex; justify-content: space-between; gap: 1rem; padding: .25rem 0; }
  td:first-child { font-weight: 600; }
  td:last-child { border-bottom: 0; }
  td span { text-align: right; overflow-wrap: anywhere; min-width: 0; }
  td::before { content: attr(data-label); color: var(--soft); flex: none; max-width: 50%; }
}
"""
