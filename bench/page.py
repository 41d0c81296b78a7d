"""A document as a list of blocks, and how it becomes Markdown, LaTeX tables and one self-contained HTML page.

The page needs no network and no script: figures are SVG inside it, whose ink and paper follow `prefers-color-scheme`,
and a choice between figures is made by radio buttons in CSS. On a narrow screen every table row becomes a card.
"""

from __future__ import annotations

import re
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
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    name: str = ""  # file name without ending, for tables that are also files of their own


@dataclass(frozen=True)
class Image:
    name: str  # file name without ending, for Markdown
    svg: bytes  # drawn in the colours INK, LINE and PAPER
    caption: str


@dataclass(frozen=True)
class Choice:
    """One of several groups of figures is shown, the first to begin with."""

    question: str
    options: tuple[tuple[str, tuple[Image, ...]], ...]  # (label, figures)


@dataclass(frozen=True)
class Code:
    text: str
    summary: str = ""  # folded under this line if given


Block = Heading | Text | Table | Image | Choice | Code
# What figures are drawn in; the page puts its variables in their place.
INK, LINE, PAPER = "#1b1f24", "#d8dce0", "#ffffff"
_VARIABLES = {INK: "var(--ink)", LINE: "var(--line)", PAPER: "var(--paper)"}


def markdown(blocks: Sequence[Block], figures: str = "figures/") -> str:
    """The blocks as Markdown; images are looked for in the folder `figures`, relative to the text."""
    return "\n\n".join(_markdown(block, figures) for block in blocks) + "\n"


def _markdown(block: Block, figures: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text, loud):
            return f"> **{text}**" if loud else text
        case Table(header, rows):
            lines = [header, tuple("---" for _ in header), *rows]
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        case Image(name=name, caption=caption):
            return f"![{caption}]({figures}{name}.png)\n\n*{caption}*"
        case Choice(question, options):
            first = "\n\n".join(_markdown(image, figures) for image in options[0][1])
            others = [f"{label}: " + ", ".join(f"[{i.name}]({figures}{i.name}.png)" for i in images)
                      for label, images in options[1:]]  # fmt: skip
            return "\n\n".join([f"{question} {options[0][0]}.", first, "\n".join(f"- {o}" for o in others)])
        case Code(text, summary):
            return (f"{summary}:\n\n" if summary else "") + f"```\n{text}\n```"


def latex(table: Table) -> str:
    """The table as a tabular that needs no package."""
    lines = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in (table.header, *table.rows)]
    head = [rf"\begin{{tabular}}{{{'l' * len(table.header)}}}", r"\hline", lines[0], r"\hline"]
    return "\n".join([*head, *lines[1:], r"\hline", r"\end{tabular}"]) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "σ": r"$\sigma$",
    "ρ": r"$\rho$", "τ": r"$\tau$", "–": "--", "\u00a0": "~", "\u202f": r"\,", "≥": r"$\ge$", "[": "{[}", "]": "{]}",
    "<": r"\textless{}", ">": r"\textgreater{}", "→": r"$\to$", "×": r"$\times$",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


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
        case Table():
            return _table(block)
        case Image():
            return _figure(_inline(block), block.caption)
        case Choice():
            return _choice(block)
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


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _inline(image: Image) -> str:
    """The SVG element alone, its identifiers made the page's own, its ink and paper those of the page."""
    text = image.svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", text, count=2)
    text = re.sub(r'\bid="|(?<=href=")#|(?<=url\()#', lambda m: f"{m[0]}{image.name}-", text)
    text = re.sub("|".join(_VARIABLES), lambda m: _VARIABLES[m[0]], text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(image.caption)}"', 1)


def _choice(block: Choice) -> str:
    """Radio buttons before the panels; the page's style shows the panel in the place of the checked one."""
    name = block.options[0][1][0].name if block.options[0][1] else "choice"
    parts = [f'<div class="choice" role="group" aria-label="{escape(block.question)}"><p>{escape(block.question)}</p>']
    for i, (label, _) in enumerate(block.options):
        state = " checked" if i == 0 else ""
        parts.append(f'<input type="radio" name="{name}" id="{name}-{i}"{state}>')
        parts.append(f'<label for="{name}-{i}">{escape(label)}</label>')
    for _, images in block.options:
        parts.append('<div class="panel">' + "\n".join(_html(image) for image in images) + "</div>")
    return "".join(parts) + "</div>"


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

_MOST = 12  # options of a choice
_PANELS = ",\n".join(f".choice input:nth-of-type({i}):checked ~ .panel:nth-of-type({i})" for i in range(1, _MOST + 1))
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
p { max-width: 75ch; overflow-wrap: anywhere; }
.loud { background: var(--loud); border-left: 4px solid var(--edge); padding: .5rem .8rem; }
figure { display: inline-block; vertical-align: top; width: 100%; max-width: 510px; margin: .5rem 4px 1rem 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.choice { margin: .8rem 0 1rem; position: relative; }
.choice > p { margin: 0 0 .4rem; color: var(--soft); }
.choice input { position: absolute; left: 0; opacity: 0; }
.choice label { display: inline-block; padding: .25rem .7rem; margin: 0 .35rem .4rem 0; border: 1px solid var(--line);
  border-radius: 999px; cursor: pointer; font-size: .88rem; }
.choice input:checked + label { background: var(--ink); color: var(--paper); border-color: var(--ink); }
.choice input:focus-visible + label { outline: 2px solid var(--edge); outline-offset: 2px; }
.choice .panel { display: none; }
PANELS { display: block; }
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
""".replace("PANELS", _PANELS)
