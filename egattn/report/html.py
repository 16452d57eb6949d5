"""HTML that needs nothing but itself: a page, and what stands on it."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

from egattn.report.style import Plot

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$generator
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d646d; --rule: #d9dce0;
  --ground: #ffffff; --stripe: #f5f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a2a9b1; --rule: #3a4048;
  --ground: #15181c; --stripe: #1d2126; } }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 1120px; color: var(--ink);
  background: var(--ground); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.8rem 0 .6rem; }
p, figcaption { color: var(--soft); max-width: 80ch; margin: .5rem 0; }
figcaption { font-size: .9rem; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Consolas, monospace; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.4; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; font-weight: 600; }
tbody tr:nth-child(even) { background: var(--stripe); }
th:first-child, td:nth-child(2), th:nth-child(2), .words td, .words th { text-align: left; }
tbody th { font-weight: 600; }
.numbers :is(th, td):nth-child(-n+2) { min-width: 6.5rem; }
.numbers td + td { white-space: nowrap; }
.words td { overflow-wrap: anywhere; }
figure { margin: 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); }
@media print { body { padding: 0; max-width: none; font-size: 11px; } h2 { break-after: avoid; }
  tr { break-inside: avoid; } .scroll { overflow: visible; } th, td { padding: .25rem .35rem; } }
</style>
</head>
<body>
<h1>$title</h1>
<p>$lead</p>
$body
</body>
</html>
""")


def document(title: str, lead: str, body: str, generator: str) -> str:
    """A whole page.

    Args:
      title: Heading.
      lead: The paragraph below it.
      body: HTML.
      generator: Name of the program, by which the page is recognised as its own.
    """
    return _PAGE.substitute(
        title=escape(title), lead=escape(lead), body=body, generator=generator_tag(generator)
    )


def generator_tag(name: str) -> str:
    """The line of a page that says which program made it."""
    return f'<meta name="generator" content="{escape(name)}">'


def figure(plot: Plot, images: Path) -> str:
    """A figure, embedded, with title and caption; `plot` was written to the directory `images`."""
    width, height = plot.figure.get_size_inches()
    name = f"{plot.name}.png"
    files = f"Files: <code>{escape(name)}</code>, <code>{escape(plot.name)}.csv</code>."
    size = f'width="{width * 96:.0f}" height="{height * 96:.0f}"'
    return image(plot.title, f"{escape(plot.caption)} {files}", images / name, size)


def image(title: str, caption: str, path: Path, size: str = "") -> str:
    """A PNG or GIF, embedded, with a caption that is HTML already."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = path.suffix.removeprefix(".")
    return (
        f"<figure>\n<h2>{escape(title)}</h2>\n"
        f'<img {size} alt="{escape(title)}" src="data:image/{kind};base64,{data}">\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def section(title: str, content: str) -> str:
    """A heading and HTML below it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def paragraph(text: str) -> str:
    """Text, escaped."""
    return f"<p>{escape(text)}</p>\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """Cells, escaped; the first of a row is its name."""
    head = "".join(f'<th scope="col">{_cell(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{_cell(name)}</th>'
        + "".join(f"<td>{_cell(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n"
    )


def escape(text: object) -> str:
    """Text as HTML shows it."""
    return html.escape(str(text), quote=True)


def _cell(text: object) -> str:
    """Escaped, and free to break after underscores, which long names are made of."""
    return escape(text).replace("_", "_<wbr>")
