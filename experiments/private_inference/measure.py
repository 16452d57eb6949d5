"""Measures the operations and layers of the paper's networks at GPT-2 small's width.

    python experiments/private_inference/measure.py experiments/private_inference/results \
        --egattn .venv/bin/egattn --python .venv-private/bin/python

Hardware: any machine with 16 GB; about 2 hours on 2 cores. Expected: the bytes in `results/` within
0.1 %, for they depend on shapes alone. Paper: Table 3, columns Comm. (its settings are not known).

Every program is written by `egattn private parts` and executed by `run.py` under CHEETAH, one
process each; results that are there already are kept, so that it can be stopped and started again.
At the end it writes the table that `egattn cost` estimates from, and prints all tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Name, options of `egattn private parts`, the parts, and whether only the first run is measured,
# which includes the setup.
PROGRAMS = (
    ("sm_ln_g", "--preset sm_ln_g", "softmax layer_norm out qkv scores values down up", False),
    ("sm_ln_r", "--preset sm_ln_r", "activation", False),
    ("ereg_sm_t_scfuffn", "--preset ereg_sm_t_scfuffn", "temperature", False),
    ("sm_scfuffn", "--preset sm_scfuffn", "linear", False),
    ("sm_ln_g_polynomial", "--preset sm_ln_g --gelu polynomial", "activation", False),
    ("sm_ln_g_4096", "--preset sm_ln_g --model.vocab-size 4096", "embedding head", False),
    ("sm_scfuffn", "--preset sm_scfuffn", "layer", True),
    ("ereg_sm_t_scfuffn", "--preset ereg_sm_t_scfuffn", "layer", True),
    ("sm_ln_r", "--preset sm_ln_r", "layer", True),
    ("sm_ln_g", "--preset sm_ln_g", "activation embedding head layer", True),
)
# What a layer consists of, by names of results.
_ATTENTION = ["sm_ln_g-" + name for name in ("qkv", "scores", "softmax", "values", "out")]
_MLP = ["sm_ln_g-up", "sm_ln_g-down", "sm_ln_g-layer_norm", "sm_ln_g-layer_norm"]
LAYERS = {
    "sm_ln_g": [*_ATTENTION, *_MLP, "sm_ln_g-activation"],
    "sm_ln_r": [*_ATTENTION, *_MLP, "sm_ln_r-activation"],
    "sm_scfuffn": [*_ATTENTION, "sm_scfuffn-linear"],
    "ereg_sm_t_scfuffn": [*_ATTENTION, "sm_scfuffn-linear", "ereg_sm_t_scfuffn-temperature"],
}
_RUNNER = Path(__file__).with_name("run.py")
_TABLE = Path(__file__).parents[2] / "egattn" / "private" / "communication.json"


def main() -> None:
    """Measures what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="directory of the results")
    parser.add_argument("--egattn", default="egattn", help="the command")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with spu")
    parser.add_argument("--table", type=Path, default=_TABLE, help="table of estimates")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for program, flags, names, cold in PROGRAMS:
        for name in names.split():
            path = options.out / f"{program}-{name}.json"
            if not path.exists():
                command = [options.egattn, "private", "parts", *flags.split(), "--only", name]
                measure(command, name, options.python, cold, path)
    results = load(options.out)
    options.table.write_text(json.dumps(table(results), indent=1) + "\n")
    show(results)


def load(directory: Path) -> dict[str, Any]:
    """Results by name."""
    return {path.stem: json.loads(path.read_text()) for path in directory.glob("*-*.json")}


def table(results: dict[str, Any]) -> dict[str, Any]:
    """What `egattn cost` estimates from."""
    return {"provenance": provenance(results), "rows": rows(results)}


def measure(command: list[str], name: str, python: str, cold: bool, out: Path) -> None:
    """Writes one program and executes it."""
    flags = ["--cold-only"] if cold else []
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*command, f"{scratch}/parts"], check=True)
        program = f"{scratch}/parts/{name}"
        subprocess.run([python, str(_RUNNER), program, "--out", str(out), *flags], check=True)


def total(run: dict[str, Any]) -> int:
    """Bytes in both directions."""
    return run["sent_bytes"] + run["received_bytes"]


def setup(results: dict[str, Any], matrices: bool) -> int:
    """Bytes that the first run takes beyond the second one: keys of products, and of the rest."""
    cold, warm = results["sm_ln_g-out" if matrices else "sm_ln_r-activation"]["runs"]
    return total(cold) - total(warm)


def warm(results: dict[str, Any], name: str) -> int:
    """Bytes of an operation without setup: measured, or those of its first run less the setup."""
    runs = results[name]["runs"]
    if len(runs) == 2:
        return total(runs[1])
    return total(runs[0]) - setup(results, matrices=not name.endswith("activation"))


# Operation, result, and the numbers it depends on: rows, inputs and outputs of a product with a
# server's matrix; count, rows, inputs and outputs of products of shared matrices;
# else the number of entries. GPT-2 small: 128 positions, 12 heads of 64, vocabulary 50,257.
_ROWS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("linear", "sm_ln_g-qkv", (128, 768, 2304)),
    ("linear", "sm_ln_g-out", (128, 768, 768)),
    ("linear", "sm_ln_g-up", (128, 768, 3072)),
    ("linear", "sm_ln_g-down", (128, 3072, 768)),
    ("linear", "sm_ln_g-head", (128, 768, 50257)),
    ("linear", "sm_ln_g_4096-head", (128, 768, 4096)),
    ("linear", "sm_ln_g-embedding", (128, 50257, 768)),
    ("linear", "sm_ln_g_4096-embedding", (128, 4096, 768)),
    ("shared_product", "sm_ln_g-scores", (12, 128, 64, 128)),
    ("shared_product", "sm_ln_g-values", (12, 128, 128, 64)),
    ("softmax", "sm_ln_g-softmax", (12 * 128 * 128,)),
    ("layer_norm", "sm_ln_g-layer_norm", (128 * 768,)),
    ("gelu_tanh", "sm_ln_g-activation", (128 * 3072,)),
    ("gelu_polynomial", "sm_ln_g_polynomial-activation", (128 * 3072,)),
    ("relu", "sm_ln_r-activation", (128 * 3072,)),
    ("temperature", "ereg_sm_t_scfuffn-temperature", (128 * 768,)),
)


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The calibration: bytes of each operation by its sizes."""
    found = [
        {"operation": operation, "sizes": list(sizes), "bytes": warm(results, name)}
        for operation, name, sizes in _ROWS
        if name in results
    ]
    keys = {"operation": "setup", "sizes": [], "bytes": setup(results, matrices=True)}
    return [*found, keys]


def provenance(results: dict[str, Any]) -> dict[str, Any]:
    """Where the numbers come from."""
    example = results["sm_ln_g-softmax"]
    runtime = example["settings"]["runtime"]
    times = [result["time"] for result in results.values()]
    return {
        "command": "python experiments/private_inference/measure.py",
        "commits": sorted({str(result["commit"]) for result in results.values()}),
        "protocol": example["protocol"],
        "versions": example["versions"],
        "settings": {
            name: runtime[name] for name in ("field", "fxp_fraction_bits", "fxp_exp_iters")
        },
        "machine": example["machine"],
        "times": [min(times), max(times)],
    }


def show(results: dict[str, Any]) -> None:
    """Prints operations and layers as Markdown."""
    print("\n| operation | MB | messages | CPU s | max error | of |\n|---|---|---|---|---|---|")
    for name, result in sorted(results.items()):
        run, check = result["runs"][-1], result["check"]
        note = "" if len(result["runs"]) == 2 else " (first)"
        print(
            f"| {name}{note} | {total(run) / 1e6:.2f} | {run['messages']:,} | "
            f"{run['cpu_seconds']:.1f} | {check['max_error']:.1e} | "
            f"{check['largest_expected']:.3g} |"
        )
    _show_layers(results)
    _show_networks(results)


def _show_layers(results: dict[str, Any]) -> None:
    print("\n| layer | sum of operations, MB | measured, MB | difference |\n|---|---|---|---|")
    for preset, names in LAYERS.items():
        if f"{preset}-layer" in results:
            whole = warm(results, f"{preset}-layer")
            added = sum(warm(results, name) for name in names)
            difference = f"{100 * (added / whole - 1):+.2f} %"
            print(f"| {preset} | {added / 1e6:.2f} | {whole / 1e6:.2f} | {difference} |")


# Table 3: gigabytes with embedding and head, and layer norms behind the last layer.
_PAPER = {
    "sm_ln_g": (25.32, 1),
    "sm_ln_r": (9.44, 1),
    "sm_scfuffn": (6.43, 0),
    "ereg_sm_t_scfuffn": (6.43, 0),
}


def _show_networks(results: dict[str, Any]) -> None:
    """Extrapolates to 12 layers: 12 times a layer, the final norm, embedding and head."""
    outer = ("sm_ln_g-embedding", "sm_ln_g-head")
    found = {}
    for preset, (_, norms) in _PAPER.items():
        names = (f"{preset}-layer", *outer)
        if all(name in results for name in names):
            layer, *ends = (warm(results, name) for name in names)
            blocks = 12 * layer + norms * warm(results, "sm_ln_g-layer_norm")
            found[preset] = blocks / 1e9, (blocks + sum(ends)) / 1e9
    print("\n| network | 12 layers, GB | with embedding and head, GB | ratio | paper, GB | ratio |")
    print("|---|---|---|---|---|---|")
    for preset, (blocks, everything) in found.items():
        paper, ratio = _PAPER[preset][0], everything / found["ereg_sm_t_scfuffn"][1]
        print(
            f"| {preset} | {blocks:.2f} | {everything:.2f} | {ratio:.2f} | {paper:.2f} | "
            f"{paper / 6.43:.2f} |"
        )


if __name__ == "__main__":
    main()
