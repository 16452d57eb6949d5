"""Shows what `inspect` returns: lines, and tables that fit 100 columns."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from egattn.run.console import PlainConsole

# Characters of the sample that are shown.
_SAMPLE = 240


def show(values: dict[str, Any]) -> None:
    """Prints what a directory is.

    Args:
      values: What `inspect` returns.
    """
    console = PlainConsole()
    if not console.is_terminal:
        # Rich assumes 80 columns and would fold cells.
        console = PlainConsole(width=100)
    {"run": _run, "data": _data, "hugging_face": _hugging_face}[values["kind"]](console, values)


def _run(console: Console, values: dict[str, Any]) -> None:
    console.print(f"{values['path']}: a run of {values['preset']}", soft_wrap=True)
    _facts(console, values["architecture"])
    _facts(
        console,
        {
            "penalty": _penalty(values["penalty"]),
            "started from": _origin(values["initialised_from"]),
            "data": _data_state(values["data"]),
            "checkpoints": _checkpoints(values["checkpoints"]),
        },
    )
    for problem in values["checkpoints"]["problems"]:
        _facts(console, {"": problem})
    if "parameters" in values:
        _parameters(console, values)
    if values.get("learned"):
        _learned(console, values["learned"])
    if values["evaluation"] is None:
        console.print("\nno evaluation logged")
    else:
        _evaluation(console, values["evaluation"])


def _facts(console: Console, facts: dict[str, str]) -> None:
    for name, text in facts.items():
        console.print(f"  {name:13s} {text}", soft_wrap=True)


def _penalty(penalty: dict[str, Any]) -> str:
    if not penalty["weight"]:
        return "off"
    rising = f" from {penalty['warmup']:.0%} of the steps on" if penalty["warmup"] else ""
    return (
        f"{penalty['kind']}, {penalty['reduction']}, weight {penalty['weight']:g}{rising}, "
        f"tolerance {penalty['tolerance']:g} of the {penalty['ceiling']} ceiling"
    )


def _origin(origin: dict[str, Any]) -> str:
    if origin["kind"] == "seed":
        return f"random parameters, seed {origin['seed']}"
    if origin["kind"] == "hugging_face":
        return f"a Hugging Face model, its other files in {origin['path']}"
    return f"weights of {origin['path']}, checkpoint's checksum {_short(origin['sha256'])}"


def _data_state(data: dict[str, Any]) -> str:
    state = {
        "missing": "not there",
        "damaged": f"damaged: {data.get('problem')}",
        "other": "now other data",
        "present": "there, not trained on",
        "same": "there, the same",
    }[data["state"]]
    if data["state"] == "same":
        state += ", checksums compared" if data["verified"] else " by manifest and sizes"
    checksum = f", checksum {_short(data['sha256'])}" if data["sha256"] else ""
    return f"{data['path']}{checksum}: {state}"


def _checkpoints(saved: dict[str, Any]) -> str:
    steps = ", ".join(map(str, saved["steps"])) or "none"
    if saved["newest"] is None:
        return steps
    kind = "newest intact" if saved["checked"] else "newest complete, checksums not compared"
    return f"{steps}; {kind}: {saved['newest']}"


def _parameters(console: Console, values: dict[str, Any]) -> None:
    parameters = values["parameters"]
    unused = f", {parameters['padding']:,} of them padding" if parameters["padding"] else ""
    console.print(
        f"\nstep {values['step']:,} of {values['steps']:,}, {values['tokens_seen']:,} tokens seen, "
        f"{parameters['count']:,} parameters{unused}"
    )
    rows = parameters["table"]
    read = all("norm" in row for row in rows)
    bad = read and any(row["nonfinite"] for row in rows)
    columns = ["parameter", "layers", "shape", "type", "elements"]
    columns += ["L2 norm", "RMS"] * read + ["not finite"] * bad
    cells = []
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        line = [row["name"], row["layers"] or "", shape, row["dtype"], f"{row['elements']:,}"]
        line += [_number(row["norm"]), _number(row["rms"])] if read else []
        cells.append(line + ([f"{row['nonfinite']:,}"] if bad else []))
    console.print(_table(columns, cells, left=(0, 1, 2, 3)))
    if read and not bad:
        console.print("all numbers are finite")


def _learned(console: Console, learned: dict[str, list[dict[str, Any]]]) -> None:
    """A row per layer, a column per quantity."""
    layers: dict[int | None, dict[str, str]] = {}
    for name, entries in learned.items():
        for entry in entries:
            layers.setdefault(entry["layer"], {})[name] = _spread(entry)
    order = sorted(layers, key=lambda layer: -1 if layer is None else layer)
    cells = [
        ["all" if layer is None else str(layer)] + [layers[layer].get(x, "") for x in learned]
        for layer in order
    ]
    console.print("\nlearned; least/median/largest where a layer has several")
    console.print(_table(["layer", *learned], cells))


def _spread(entry: dict[str, Any]) -> str:
    values = [_number(entry[name]) for name in ("min", "median", "max")]
    return values[0] if entry["min"] == entry["max"] else "/".join(values)


def _evaluation(console: Console, found: dict[str, Any]) -> None:
    console.print(
        f"\nlast evaluation, step {found['step']:,}, {found['windows']:,} windows: loss "
        f"{_number(found['loss'], '.4f')} nats/token, perplexity "
        f"{_number(found['perplexity'], '.3f')}, bits/byte {_number(found['bits_per_byte'], '.4f')}"
    )
    top, heads = found["max_entropy"], found["head_entropy"]
    console.print(
        f"attention entropy, nats; ceiling log T = {top:.3f}, a causal head that attends to all "
        f"alike has {found['uniform_entropy']:.3f}"
    )
    columns = ["layer", "mean", "% of ceiling", "lowest head", "highest head", "not finite"]
    console.print(_table(columns, [_entropy_row(i, row, top) for i, row in enumerate(heads)]))
    finite = [x for row in heads for x in row if x is not None]
    largest, counts = max(finite, default=0.0), found["range_counts"]
    console.print(
        f"heads per quarter of the largest, {largest:.3f}: {' '.join(map(str, counts))} of "
        f"{sum(map(len, heads))}; {counts[0]} near collapse, {counts[3]} near overload"
    )


def _entropy_row(layer: int, heads: list[float | None], ceiling: float) -> list[str]:
    finite = [x for x in heads if x is not None]
    if not finite:
        return [str(layer), "", "", "", "", str(len(heads))]
    mean = sum(finite) / len(finite)
    share = f"{100 * mean / ceiling:.1f}" if ceiling else ""
    low, high = f"{min(finite):.3f}", f"{max(finite):.3f}"
    return [str(layer), f"{mean:.3f}", share, low, high, str(len(heads) - len(finite))]


def _data(console: Console, values: dict[str, Any]) -> None:
    console.print(f"{values['path']}: prepared data, {values['source']}", soft_wrap=True)
    left_out = ", ".join(f"{n:,} {name}" for name, n in values["left_out"].items())
    _facts(
        console,
        {
            "windows": f"{values['context_length']} predictions each, tokens as {values['dtype']}",
            "vocabulary": f"{values['vocab_size']:,} tokens",
            "tokenizer": f"checksum {values['tokenizer_sha256']}",
            "all data": f"checksum {values['sha256']}",
            "files": f"{values['bytes']:,} bytes; present, "
            + ("checksums compared" if values["verified"] else "only sizes compared"),
            "left out": left_out,
        },
    )
    columns = ["split", "documents", "too short", "tokens", "windows", "bytes/token", "shards"]
    cells = []
    for name, split in values["splits"].items():
        whole = [split[x] for x in ("documents", "too_short", "tokens", "windows")]
        rate = split["bytes_per_token"]
        line = [name, *(f"{n:,}" for n in whole), "" if rate is None else f"{rate:.2f}"]
        cells.append([*line, str(split["shards"]), f"{split['bytes']:,}"])
    console.print(_table([*columns, "bytes"], cells))
    if values["sample"] is not None:
        sample = values["sample"]
        text = sample["text"][:_SAMPLE] + "..." * (len(sample["text"]) > _SAMPLE)
        console.print(f"first window of {sample['split']}: {text!r}", soft_wrap=True)


def _hugging_face(console: Console, values: dict[str, Any]) -> None:
    kind = values["model_type"]
    console.print(f"{values['path']}: a Hugging Face model of type {kind!r:.100}", soft_wrap=True)
    _facts(console, values.get("architecture", {}))
    if "tensors" in values:
        types = ", ".join(f"{count} {name}" for name, count in values["dtypes"].items())
        size = f"{values['elements']:,} numbers, {values['bytes']:,} bytes"
        files = f"{len(values['files'])} file{'s' * (len(values['files']) != 1)}"
        _facts(console, {"tensors": f"{types}; {size} in {files}"})
    if values["obstacle"] is not None:
        console.print(f"egattn convert cannot read it: {values['obstacle']}", soft_wrap=True)
        return
    if values["tokenizer_sha256"] is None:
        _facts(console, {"tokenizer": "none"})
    else:
        _facts(console, {"tokenizer": f"checksum {values['tokenizer_sha256']}"})
    if values["left_out"]:
        _facts(console, {"no weights": ", ".join(values["left_out"])})
    console.print("egattn convert can read it, if all of its numbers are finite")


def _short(checksum: str | None) -> str:
    return "unknown" if checksum is None else checksum[:12]


def _number(value: float | None, form: str = ".4g") -> str:
    return "not finite" if value is None else format(value, form)


def _table(
    columns: Iterable[str], rows: Iterable[list[str]], left: tuple[int, ...] = (0,)
) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
