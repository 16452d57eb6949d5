"""What a training step needs on TPU slices of 16 to 8,960 chips, compiled with no TPU.

    python -m benchmarks.scaling --out results          # GPT-2 small and a 6.7 B decoder
    python -m benchmarks.scaling --model gpt2_small --topology v5e:4x4 --effort O0

Weak scaling: a fixed batch per chip; fsdp as `egattn compile` chooses it, up to --fsdp, the other
chips on replica. Each row is the step that `egattn train` runs, compiled ahead of time:

- needed: state, temporaries, results and code on each chip;
- collectives: bytes gathered, reduced, scattered, permuted or exchanged per chip and step;
- sent: bytes a chip sends for them in rings;
- compute: the model's FLOPs at the chip's bfloat16 peak; communication: bytes sent over all links
  of a chip at the stated bandwidth. Both are bounds from public figures, not measurements;
- share: compute / (compute + communication), if nothing overlaps. Where both overlap fully, the
  longer of the two remains.

With --out, also a figure.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import tyro
from matplotlib import rc_context
from matplotlib.ticker import NullLocator, ScalarFormatter

from egattn.compile import CompileConfig, Plan
from egattn.compile.config import Effort
from egattn.compile.display import mesh_text, verdict
from egattn.compile.plan import default_mesh, plan_mesh
from egattn.compile.topology import chip_of, describe, libtpu_version
from egattn.report.style import STYLE, WIDTH, canvas, run_style
from egattn.report.table import digits, save_table, write_table
from egattn.sharding import make_mesh

Model = Literal["gpt2_small", "decoder_7b"]

# Fields of the decoder, sequences per chip.
_MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2_small": ({"context_length": 1024}, 8),
    "decoder_7b": (
        {
            "context_length": 2048,
            "num_layers": 32,
            "num_heads": 32,
            "embed_dim": 4096,
            "remat": True,
        },
        2,
    ),
}
_MIB, _GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled for which slices."""

    model: tuple[Model, ...] = get_args(Model)
    """Models, one after the other."""
    topology: tuple[str, ...] = (
        "v5e:4x4",
        "v5p:4x4x4",
        "v5p:4x8x8",
        "v5p:8x8x8",
        "v5p:8x16x16",
        "v5p:16x16x24",
        "v5p:16x20x28",
    )
    """Slices, in growing order."""
    fsdp: int = 128
    """Widest fsdp axis."""
    effort: Effort = "full"
    """XLA's optimisation; O0 is faster and gives another program."""
    layers: int | None = None
    """Layers instead of each model's own."""
    out: Path | None = None
    """Directory for scaling.json, scaling.md and scaling.png; default: print only."""

    def __post_init__(self):
        for topology in self.topology:
            try:
                chip_of(topology)
            except ValueError as error:
                raise SystemExit(str(error)) from None
        if self.fsdp < 1:
            raise SystemExit(f"expected fsdp >= 1, got {self.fsdp}")


def compile_one(config: Config, model: str, topology: str) -> Plan:
    """Compiles one model's step for one slice."""
    chips = describe(topology)
    fields, sequences = _MODELS[model]
    base = CompileConfig.preset_defaults("sm_ln_g")
    decoder = dataclasses.replace(base.model, **fields)
    if config.layers is not None:
        decoder = dataclasses.replace(decoder, num_layers=config.layers)
    options = dataclasses.replace(
        base,
        topology=topology,
        model=decoder,
        batch_size=sequences * len(chips),
        effort=config.effort,
    )
    _, _, fsdp = default_mesh(options, len(chips)).rpartition("=")
    width = next(n for n in range(min(config.fsdp, int(fsdp)), 0, -1) if int(fsdp) % n == 0)
    mesh = make_mesh(f"replica={len(chips) // width},fsdp={width}", chips)
    return plan_mesh(options, options.train_config(len(chips)), mesh)


def row(model: str, plan: Plan) -> dict[str, Any]:
    """One line of the table."""
    compute, communication = plan.compute_seconds, plan.communication_seconds
    result = {
        "model": model,
        "slice": plan.topology,
        "chips": plan.chips,
        "mesh": mesh_text(plan),
        "effort": plan.effort,
        "state GiB": digits(plan.state_bytes / _GIB),
        "needed GiB": digits(plan.needed_bytes / _GIB),
        "HBM GiB": plan.hbm_bytes / _GIB,
        "verdict": verdict(plan).split(":")[0],
    }
    if plan.memory is not None:
        for kind, volume in plan.collectives.kinds.items():
            result[f"{kind} MiB"] = digits(volume.bytes / _MIB)
        result |= {
            "sent MiB": digits(plan.collectives.traffic / _MIB),
            "compute ms": digits(1e3 * compute),
            "communication ms": digits(1e3 * communication),
            "share": digits(compute / (compute + communication)),
        }
    return result | {"compile s": digits(plan.compile_seconds)}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Memory, bytes sent and the two times of each model over the number of chips."""
    style: Any = STYLE
    titles = ("needed GiB", "sent MiB", "compute (dotted: comm.) ms")
    with rc_context(style):
        figure = canvas(WIDTH, 3.6)
        axes = figure.subplots(1, 3)
        for index, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
            mine = [r for r in rows if r["model"] == model and "sent MiB" in r]
            label = model
            # Lines join slices of one kind of chip.
            for kind in dict.fromkeys(r["slice"].split(":")[0] for r in mine):
                group = [r for r in mine if r["slice"].startswith(kind)]
                _curves(axes, group, label, index, hollow=kind != "v5p")
                label = None
        for ax, title in zip(axes, titles, strict=True):
            ax.set_title(title)
            ax.set(xscale="log", xlabel="chips (hollow: not v5p)")
            ax.set_xticks(sorted({r["chips"] for r in rows}))
            ax.tick_params(axis="x", rotation=60)
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_locator(NullLocator())
        axes[0].set_ylim(bottom=0)
        axes[0].legend(fontsize=7)
        for ax in axes[1:]:
            ax.set_yscale("log")
        figure.savefig(path)


def _curves(
    axes: Any, group: list[dict[str, Any]], label: str | None, index: int, hollow: bool
) -> None:
    chips = [r["chips"] for r in group]
    colour = run_style(index)["color"]
    look = {"color": colour, "markersize": 4, "markerfacecolor": "white" if hollow else colour}
    for ax, column in zip(axes[:2], ("needed GiB", "sent MiB"), strict=True):
        ax.plot(chips, [r[column] for r in group], "o-", label=label, **look)
    for column, dash in (("compute ms", "o-"), ("communication ms", "s:")):
        axes[2].plot(chips, [r[column] for r in group], dash, **look)


def main(config: Config) -> list[dict[str, Any]]:
    """Compiles every model for every slice; files are written after each."""
    jax.config.update("jax_platforms", "cpu")
    rows: list[dict[str, Any]] = []
    about = {"device": "none: compiled ahead of time", "jax": jax.__version__}
    for model in config.model:
        for topology in config.topology:
            rows.append(row(model, compile_one(config, model, topology)))
            print(rows[-1], flush=True)
            about["libtpu"] = libtpu_version()
            save_table("scaling", config, rows, config.out, about)
    write_table("scaling", config, rows, config.out, about)
    if config.out is not None:
        draw(rows, config.out / "scaling.png")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
