"""An HTML document that needs nothing but itself, and its parts: what every report is made of."""

import base64
import html
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from egattn.report.style import Plot

# What tables show where nothing is known: a dash.
ABSENT = "\u2013"
# By this a directory is recognised as a report that may be replaced.
GENERATOR = '<meta name="generator" content="egattn report">'

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


def document(title: str, lead: str, parts: Iterable[str]) -> str:
    """The page.

    Args:
      title: Its heading.
      lead: The sentence below it.
      parts: HTML of its sections, figures and footer, in reading order.

    Returns:
      HTML.
    """
    return _PAGE.substitute(
        generator=GENERATOR, title=escape(title), lead=escape(lead), body="\n".join(parts)
    )


def section(title: str, content: str) -> str:
    """HTML under a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table, whose first column names the rows; `kind` is "numbers" or "words"."""
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


def figure(plot: Plot, images: Path) -> str:
    """A plot with its title and caption.

    Args:
      plot: The plot.
      images: Directory in which it was written.

    Returns:
      HTML; the image is embedded.
    """
    width, height = plot.figure.get_size_inches()
    name = plot.image
    image = base64.b64encode((images / name).read_bytes()).decode("ascii")
    size = f'width="{width * 96:.0f}" height="{height * 96:.0f}"'
    return (
        f"<figure>\n<h2>{escape(plot.title)}</h2>\n"
        f'<img {size} alt="{escape(plot.alt or plot.title)}" '
        f'src="data:image/{name.rpartition(".")[2]};base64,{image}">\n'
        f"<figcaption>{escape(plot.caption)} Files: <code>{escape(name)}</code>, "
        f"<code>{escape(plot.name)}.csv</code>.</figcaption>\n</figure>"
    )


def origin(command: Sequence[str], facts: dict[str, dict[str, Any]]) -> str:
    """The footer: which command and runs the page comes from.

    Args:
      command: The command that makes this report.
      facts: What to say of each run, by its label: values by name, the same names for all; None
        where nothing is known.
    """
    names = next(iter(facts.values()))
    values = [[of_run[name] for of_run in facts.values()] for name in names]
    cells = [
        [name, *(ABSENT if x is None else str(x) for x in row)]
        for name, row in zip(names, values, strict=True)
    ]
    made = f"<p>Made by <code>{escape(shlex.join(command))}</code> from the runs' own files.</p>"
    content = f"{made}\n{table(['', *facts], cells, 'words')}"
    return f"<footer>\n<h2>Where this comes from</h2>\n{content}\n</footer>"


def environment(starts: Sequence[dict[str, Any]]) -> dict[str, str | None]:
    """What the footer says of how a run was started.

    Args:
      starts: The run's records of kind "start", one per start or resume.
    """
    last = starts[-1] if starts else {}
    return {
        "started": starts[0].get("time") if starts else None,
        "resumed": _times(len(starts) - 1),
        "devices": last.get("devices"),
        "mesh": _pairs(last.get("mesh")),
        "versions": _pairs(last.get("versions")),
    }


def _times(count: int) -> str:
    return "no" if count < 1 else f"{count} time{'s' * (count > 1)}"


def _pairs(values: Any) -> str | None:
    if not isinstance(values, dict):
        return None if values is None else str(values)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def escape(text: object) -> str:
    """Text as HTML, in attributes too."""
    return html.escape(str(text), quote=True)


def _cell(text: object) -> str:
    """Escaped, and free to break after underscores, which long names are made of."""
    return escape(text).replace("_", "_<wbr>")
