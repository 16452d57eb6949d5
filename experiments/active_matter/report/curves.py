"""Learning curves: the loss, and the entropy production between its bound and the identity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from egattn.report.style import WIDTH, Plot, canvas, markers, run_style, text
from experiments.active_matter.report.subject import Subject


def curves(subjects: Sequence[Subject]) -> Plot:
    """Of all runs: the loss, and entropy production, lower bound and identity, against the step."""
    figure = canvas(WIDTH, 4.4)
    left, right = figure.subplots(1, 2)
    rows = []
    for index, subject in enumerate(subjects):
        style = run_style(index)
        rows += _loss(left, subject, style)
        rows += _production(right, subject, style["color"])
    left.set(xlabel="step", ylabel="loss on training batches")
    right.set(xlabel="step", ylabel="entropy production rate per degree of freedom")
    for ax in (left, right):
        ax.set_xlim(left=0)
    # Estimates of the first steps would flatten all that follows.
    right.set_ylim(*_limits(rows))
    grey = "#777777"
    right.legend(
        handles=[
            Line2D(
                [], [], color=grey, marker="o", markersize=4, label=r"estimate $E\,|v|^2_{D^{-1}}$"
            ),
            Line2D(
                [], [], color=grey, linestyle=":", marker="^", markersize=4, label="lower bound"
            ),
            Patch(color=grey, alpha=0.25, label="score-free identity ± 2 standard errors"),
        ],
        loc="lower right",
        fontsize=8,
    )
    handles = [Line2D([], [], linewidth=2.5, **run_style(i)) for i in range(len(subjects))]
    names = [text(subject.label) for subject in subjects]
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return Plot(
        "curves",
        "Learning curves",
        "Left: the objective on training batches; its lowest value depends on which, so runs "
        "compare by it only if that is the same. Right, on held-out snapshots: the entropy "
        "production of the learned velocity and its lower bound, which no network exceeds but by "
        "chance, beside the identity (v0/eps) E[g.b_x], which needs no network. Bound and estimate "
        "that meet at the band are what makes a number to be believed.",
        figure,
        ("run", "quantity", "step", "value", "standard_error"),
        rows,
        "Left, losses falling with the step; right, the lower bound rising to the band of the "
        "identity and the estimate with it.",
    )


def _loss(ax: Axes, subject: Subject, style: dict) -> list[tuple]:
    records = [r for r in subject.kind("train") if r.get("loss") is not None]
    steps, losses = ([r[name] for r in records] for name in ("step", "loss"))
    ax.plot(steps, losses, linewidth=1, **style, **markers(len(steps)))
    return [(subject.label, "loss", *point, "") for point in zip(steps, losses, strict=True)]


def _production(ax: Axes, subject: Subject, colour: str) -> list[tuple]:
    records = [r for r in subject.kind("validation") if r.get("epr") is not None]
    if not records:
        return []
    steps = np.array([r["step"] for r in records])

    def of(name: str) -> tuple[np.ndarray, np.ndarray]:
        keys = name, f"{name}_standard_error"
        value, error = (np.array([r[key] for r in records], float) for key in keys)
        return value, error

    shown = {"epr": of("epr"), "epr_lower_bound": of("epr_lower_bound")}
    for (value, error), line, marker in zip(shown.values(), "-:", "o^", strict=True):
        dots: dict[str, Any] = {"marker": marker, "markersize": 4, "capsize": 2}
        ax.errorbar(steps, value, error, color=colour, linestyle=line, **dots)
    identity, error = (float(x[-1]) for x in of("epr_identity"))
    ax.axhspan(identity - 2 * error, identity + 2 * error, color=colour, alpha=0.2, linewidth=0)
    ax.axhline(identity, color=colour, linewidth=0.8)
    shown["epr_identity"] = of("epr_identity")
    return [
        (subject.label, name, int(step), value, error)
        for name, (values, errors) in shown.items()
        for step, value, error in zip(steps, values, errors, strict=True)
    ]


def _limits(rows: Sequence[tuple]) -> tuple[float, float | None]:
    """Up to half above the largest identity, from 0."""
    known = [value for _, name, _, value, _ in rows if name == "epr_identity"]
    return (0.0, 1.5 * max(known)) if known and max(known) > 0 else (0.0, None)
