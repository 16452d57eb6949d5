"""The tables: each run's numbers beside what is known of them."""

from collections.abc import Sequence
from typing import Any

from egattn.report.document import ABSENT, paragraph, section, table
from egattn.report.summary import number
from experiments.active_matter.report.checks import CHECKS, per_dof
from experiments.active_matter.report.portrait import PUBLISHED
from experiments.active_matter.report.subject import Subject
from experiments.active_matter.ring_flow import ORBITS
from experiments.active_matter.systems import RING

_NAMES = {
    "residual": "div v + v.s",
    "advection": "v.s",
    "div_v": "div v",
    "div_x_v_x": "div_x v_x",
    "div_g_v_g": "div_g v_g",
    "score_x": "|s_x|² + div_x s_x",
    "score_g": "|s_g|² + div_g s_g",
    "production": "v.D⁻¹v",
}


def comparison(subjects: Sequence[Subject]) -> str:
    """Entropy production of all runs: estimate, bound, identity and exact value."""
    header = ["run", "system", "v0", "objective", "step", "entropy production", "of x", "of g"]
    header += ["at least", "identity", "exact", "div v", "std of residual / of div v"]
    text = (
        "Entropy production rate in units of k_B per time and degree of freedom (N d of them), on "
        "held-out samples, with standard errors: E[v.D⁻¹v] of the learned velocity; the lower "
        "bound 2 E[v.D⁻¹b + div v] - E[v.D⁻¹v], which no continuous network exceeds but by chance; "
        "the identity (v0/eps) E[g.b_x], which needs no network; and the exact value where it is "
        "known. Believe an estimate whose bound reaches the identity. E div v is 0 in a stationary "
        "state; the residual is div v + v.s, 0 at every point for the true score."
    )
    rows = [_row(subject) for subject in subjects]
    return section("Entropy production", table(header, rows) + paragraph(text))


def _row(subject: Subject) -> list[str]:
    v, c = subject.values, subject.config
    spread = v["residual_std"] / v["div_v_std"] if v["div_v_std"] else None
    return [
        subject.label,
        c.system,
        f"{c.speed:g}",
        c.objective,
        f"{subject.step:,}",
        _estimate(v, "epr"),
        f"{v['epr_x']:.4f}",
        f"{v['epr_g']:.4f}",
        _estimate(v, "epr_lower_bound"),
        _estimate(v, "epr_identity"),
        number(subject.values.get("exact_epr"), "{:.4f}"),
        _estimate(v, "div_v", "{:+.4f}"),
        number(spread, "{:.1%}"),
    ]


def _estimate(values: dict[str, Any], name: str, form: str = "{:.4f}") -> str:
    return f"{form.format(values[name])} ± {values[f'{name}_standard_error']:.4f}"


def details(subject: Subject) -> str:
    """A run's own table: means and standard deviations of the checks, learned and exact."""
    header = ["per degree of freedom", "learned mean", "std", "exact mean", "std"]
    rows = []
    for check in CHECKS:
        both = (subject.ours, subject.exact)
        found = [None if fields is None else per_dof(check, fields) for fields in both]
        cells = [
            cell
            for x in found
            for cell in ([ABSENT] * 2 if x is None else [f"{x.mean():+.4f}", f"{x.std():.4f}"])
        ]
        rows.append([_NAMES[check.name], *cells])
    text = f"On {len(subject.ours.z):,} held-out samples, both columns on the same ones. "
    text += (
        f"Score matching {subject.values['score_matching']:.4f} per component of z; Stein's "
        f"identity -E[s_g.g] = {subject.values['stein']:.4f} of 1 per degree of freedom."
    )
    content = table(header, rows) + paragraph(text)
    if "portrait" in subject.values:
        content += _flow_table(subject)
    return section(f"{subject.label}: checks in numbers", content)


def _flow_table(subject: Subject) -> str:
    """The ring's flow beside the exact and the published one."""
    solution, p = subject.solution, subject.values["portrait"]
    assert solution is not None
    rows = [
        [
            "centre of the flow (x, g)",
            *map(_point, (p["center"], solution.centre().tolist(), PUBLISHED)),
        ],
    ]
    for g, prefix in zip(ORBITS, ("orbit", "inner_orbit"), strict=True):
        exact = solution.orbit((RING / 2, g)).t[-1]
        start = f"orbit through (8, {g:g})"
        period = number(p[f"{prefix}_period"], "{:.1f}")
        rows.append([f"{start}: period", period, f"{exact:.1f}", ABSENT])
        gap = number(p[f"{prefix}_gap"], "{:.2%}")
        rows.append([f"{start}: change of g after one turn", gap, "0", "does not close"])
    n, m = solution.density.shape
    text = (
        "The centre's mirror image is (16 - x, -g). Exact: the stationary Fokker-Planck equation "
        f"on a grid of {n} x {m} cells. Published: read off the paper's phase portrait, whose "
        "centres are 0.45 off and whose inner orbits spiral outwards; a dash where nothing is said."
    )
    return table(["flow", "learned", "exact", "published"], rows) + paragraph(text)


def _point(z: Sequence[float]) -> str:
    return f"({z[0]:.3f}, {z[1]:.3f})"
