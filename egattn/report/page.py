"""The page that compares runs of language models."""

from collections.abc import Sequence
from pathlib import Path

from egattn.report.document import (
    ABSENT,
    document,
    environment,
    figure,
    origin,
    paragraph,
    section,
    table,
)
from egattn.report.runs import RunLog
from egattn.report.style import Plot
from egattn.report.summary import Row, differing, notes, number, scores


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
    sections += [figure(plot, images) for plot in plots]
    return document(
        "Attention entropy report",
        f"{len(logs)} run{'s' * (len(logs) > 1)}: " + ", ".join(row.name for row in rows),
        [*sections, _origin(logs, command)],
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
    paragraphs = "".join(map(paragraph, [text, *_caveats(logs, rows), *notes(rows)]))
    return section("Comparison", table(header, cells) + paragraphs)


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
        return section("What differs between the runs", paragraph("No setting differs."))
    cells = table(
        ["setting", *(log.label for log in logs)], [[n, *v] for n, v in differences], "words"
    )
    return section("What differs between the runs", cells)


def _origin(logs: Sequence[RunLog], command: Sequence[str]) -> str:
    """Which command, versions, devices and seeds the page comes from."""
    facts = {
        log.label: {
            "directory": log.path,
            "seed": log.config.get("seed"),
            "steps": f"{log.last_step:,} of {log.config.get('steps', ABSENT)}",
            "evaluated": _evaluation(log),
            **environment(log.starts),
        }
        for log in logs
    }
    return origin(command, facts)


def _evaluation(log: RunLog) -> str:
    if not log.validation:
        return "not evaluated"
    step, windows = (int(log.validation[name][-1]) for name in ("step", "windows"))
    return f"at step {step:,}, {windows:,} windows"
