"""The report as one HTML page that needs nothing but itself."""

import base64
import html
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from egattn.report.runs import RunLog
from egattn.report.style import Plot
from egattn.report.summary import ABSENT, Row, differing, notes, number, scores

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


def render(
    logs: Sequence[RunLog],
    rows: Sequence[Row],
    plots: Sequence[Plot],
    images: Path,
    command: Sequence[str],
) -> str:
    """Builds the page.

    Args:
      logs: What the runs say.
      rows: Their comparison, in the same order.
      plots: The figures, in reading order.
      images: Directory in which the figures were written.
      command: The command that makes this report.

    Returns:
      HTML; everything that comes from run files is escaped, images are embedded.
    """
    sections = [_comparison(logs, rows), _settings(logs)]
    sections += [_figure(plot, images) for plot in plots]
    return _PAGE.substitute(
        generator=GENERATOR,
        title="Attention entropy report",
        lead=_escape(f"{len(logs)} run{'s' * (len(logs) > 1)}: " + ", ".join(r.name for r in rows)),
        body="\n".join([*sections, _origin(logs, command)]),
    )


def _comparison(logs: Sequence[RunLog], rows: Sequence[Row]) -> str:
    header = ["run", "preset", "parameters", "tokens seen", "validation loss"]
    header += ["perplexity", "Δ % perplexity", "bits per byte"]
    header += ["heads per quarter of M (%)", "tokens/s"]
    cells = [_cells(row, first=i == 0) for i, row in enumerate(rows)]
    text = (
        "Validation cross entropy in nats per token, its exponential (perplexity), the "
        f"perplexity's difference from that of {rows[0].name}, and the shares of heads whose "
        "entropy lies in the first, second, third and last quarter of the run's largest, M. "
        "tokens/s is the median over logged steps."
    )
    paragraphs = "".join(map(_paragraph, [text, *_caveats(logs, rows), *notes(rows)]))
    return _section("Comparison", _table(header, cells) + paragraphs)


def _cells(row: Row, first: bool) -> list[str]:
    loss, perplexity, bits_per_byte, delta = scores(row, first)
    shares = ABSENT if row.shares is None else " / ".join(f"{100 * x:.0f}" for x in row.shares)
    return [
        row.name,
        row.preset or ABSENT,
        number(row.parameters, "{:,}"),
        number(row.tokens, "{:,}"),
        loss,
        perplexity,
        delta,
        bits_per_byte,
        shares,
        number(row.tokens_per_second, "{:,.0f}"),
    ]


def _caveats(logs: Sequence[RunLog], rows: Sequence[Row]) -> list[str]:
    """Says what keeps the rows from measuring the same thing."""
    caveats = []
    names = ("data", "model.vocab_size", "model.context_length")
    changed = [name for name in names if len({str(log.config.get(name)) for log in logs}) > 1]
    if changed:
        caveats.append(
            f"The runs differ in {', '.join(changed)}, so perplexities need not be comparable; "
            "bits per byte do not depend on the tokenizer, but on the text and the context."
        )
    if len({row.windows for row in rows if row.windows is not None}) > 1:
        caveats.append("The runs were evaluated on different numbers of windows, see the end.")
    return caveats


def _settings(logs: Sequence[RunLog]) -> str:
    if len(logs) == 1:
        return ""
    differences = differing(logs)
    if not differences:
        return _section("What differs between the runs", _paragraph("No setting differs."))
    table = _table(
        ["setting", *(log.label for log in logs)], [[n, *v] for n, v in differences], "words"
    )
    return _section("What differs between the runs", table)


def _figure(plot: Plot, images: Path) -> str:
    width, height = plot.figure.get_size_inches()
    name = f"{plot.name}.png"
    image = base64.b64encode((images / name).read_bytes()).decode("ascii")
    size = f'width="{width * 96:.0f}" height="{height * 96:.0f}"'
    return (
        f"<figure>\n<h2>{_escape(plot.title)}</h2>\n"
        f'<img {size} alt="{_escape(plot.title)}" src="data:image/png;base64,{image}">\n'
        f"<figcaption>{_escape(plot.caption)} Files: <code>{_escape(name)}</code>, "
        f"<code>{_escape(plot.name)}.csv</code>.</figcaption>\n</figure>"
    )


def _origin(logs: Sequence[RunLog], command: Sequence[str]) -> str:
    """Which command, versions, devices and seeds the page comes from."""
    rows: list[tuple[str, Callable[[RunLog], Any]]] = [
        ("directory", lambda log: log.path),
        ("started", lambda log: log.starts[0].get("time") if log.starts else None),
        ("resumed", lambda log: _times(len(log.starts) - 1)),
        ("devices", lambda log: log.start("devices")),
        ("mesh", lambda log: _pairs(log.start("mesh"))),
        ("seed", lambda log: log.config.get("seed")),
        ("steps", lambda log: f"{log.last_step:,} of {log.config.get('steps', ABSENT)}"),
        ("evaluated", _evaluation),
        ("versions", lambda log: _pairs(log.start("versions"))),
    ]
    cells = [
        [name, *(ABSENT if (value := get(log)) is None else str(value) for log in logs)]
        for name, get in rows
    ]
    table = _table(["", *(log.label for log in logs)], cells, "words")
    made = f"<p>Made by <code>{_escape(shlex.join(command))}</code> from the runs' own files.</p>"
    return f"<footer>\n<h2>Where this comes from</h2>\n{made}\n{table}\n</footer>"


def _evaluation(log: RunLog) -> str:
    if not log.validation:
        return "not evaluated"
    step, windows = (int(log.validation[name][-1]) for name in ("step", "windows"))
    return f"at step {step:,}, {windows:,} windows"


def _times(count: int) -> str:
    return "no" if count < 1 else f"{count} time{'s' * (count > 1)}"


def _pairs(values: Any) -> str | None:
    if not isinstance(values, dict):
        return None if values is None else str(values)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{_escape(title)}</h2>\n{content}\n</section>"


def _paragraph(text: str) -> str:
    return f"<p>{_escape(text)}</p>\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
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


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _cell(text: object) -> str:
    """Escaped, and free to break after underscores, which long names are made of."""
    return _escape(text).replace("_", "_<wbr>")
