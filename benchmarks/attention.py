"""What entropy costs attention: every implementation on the named shapes, in one process.

    python -m benchmarks.attention --out results
    python -m benchmarks.attention --shapes 8x2048_gqa --implementations cudnn pallas_gpu

"stock" is `jax.nn.dot_product_attention` without entropy (cuDNN on a GPU, else XLA), the base of
the ratios. "both" is forward and backward with cotangents on both outputs. Implementations take
turns, so that ratios within a round share the machine's state; each timed loop calls on several
sets of inputs, together larger than the GPU's cache, and on short sequences one program does all
sets, because a call is shorter than its dispatch. Floors count each operand once at the measured
copy rate of an H200 and the matrix products of visible scores at its measured bfloat16 rate.
Errors are relative to float64, from fresh inputs and poisoned memory.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import tyro

import egattn
from benchmarks.attention_problem import Inputs, make_inputs, measure_errors, poison
from egattn.attention import implementations
from egattn.attention.api import Implementation
from egattn.attention.specs import MAIN_SPECS, SPECS, AttentionSpec
from egattn.report.table import digits, quartiles, save_table, write_table

STOCK = "stock"
BARE = "pallas_gpu, no entropy"
"""The same kernels with the entropy left out: what it costs; measured beside `pallas_gpu`."""
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12

# Sets of inputs: four times 75 MB of queries, keys and values on the main shapes, L2 holds 60.
_SETS = 4
# Up to this length one program calls on all sets.
_SHORT = 512
# Long enough that the gap between loops does not count.
_LOOP_SECONDS = 0.025


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    shapes: tuple[str, ...] = ()
    """Names in egattn.attention.specs; default: the main ones, on CPU those that start with
    small."""
    implementations: tuple[Implementation, ...] = get_args(Implementation)
    """Implementations beside stock."""
    rounds: int = 12
    """Timed loops of each program."""
    seed: int = 0
    out: Path | None = None
    """Directory for attention.json and attention.md; default: print only."""

    def __post_init__(self):
        for name in self.shapes:
            if name not in SPECS:
                raise SystemExit(f"expected shapes among {', '.join(SPECS)}, got {name!r}")
        if self.rounds < 2:
            raise SystemExit(f"expected rounds >= 2, got {self.rounds}")

    def specs(self) -> dict[str, AttentionSpec]:
        """The shapes asked for."""
        small = [name for name in SPECS if name.startswith("small")]
        default = list(MAIN_SPECS) if jax.default_backend() != "cpu" else small
        return {name: SPECS[name] for name in self.shapes or default}


def forward(name: str, spec: AttentionSpec, x: Inputs) -> tuple[jax.Array, ...]:
    """Output and entropy, or of stock the output alone."""
    if name == BARE:
        return bare(spec, x)
    if name != STOCK:
        return egattn.entropy_attention(
            x.query,
            x.key,
            x.value,
            causal=spec.causal,
            segment_ids=x.segment_ids,
            implementation=name,  # pyright: ignore[reportArgumentType] - from the options
        )
    if x.segment_ids is not None:
        raise NotImplementedError("stock fused attention takes no segment ids")
    stock = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return (
        jax.nn.dot_product_attention(
            x.query, x.key, x.value, is_causal=spec.causal, implementation=stock
        ),
    )


def both(name: str, spec: AttentionSpec, x: Inputs) -> tuple[jax.Array, ...]:
    """Output, entropy (not of stock) and the gradients of query, key and value."""

    def attend(query, key, value):
        return forward(name, spec, x._replace(query=query, key=key, value=value))

    outputs, pull = jax.vjp(attend, x.query, x.key, x.value)
    cotangents = (x.out_cotangent, x.entropy_cotangent)[: len(outputs)]
    return *outputs, *pull(cotangents)


def bare(spec: AttentionSpec, x: Inputs) -> tuple[jax.Array, ...]:
    """Output of the Hopper kernels without entropy, and what they return in its place."""
    options: Any = {"causal": spec.causal, "segment_ids": x.segment_ids}
    lacks = implementations(x.query, x.key, x.value, **options)["pallas_gpu"]
    if lacks:
        raise NotImplementedError(f"pallas_gpu {lacks}")
    # Here: Pallas takes seconds to import.
    from egattn.attention import pallas_gpu

    batch, length, heads, head_dim = x.query.shape
    row_scale = jnp.full((batch, heads, length), head_dim**-0.5)
    return pallas_gpu.attend(
        x.query, x.key, x.value, row_scale, tiles=pallas_gpu.without_entropy, **options
    )


def repeated(function: Callable, sets: tuple[Inputs, ...]) -> list[Any]:
    """Calls on each set in turn; barriers keep the compiler from merging neighbours."""
    results = []
    for x in sets:
        if results:
            x, results[-1] = jax.lax.optimization_barrier((x, results[-1]))
        results.append(function(x))
    return results


class Program(NamedTuple):
    """A compiled program that calls on `calls` sets at once."""

    run: Any
    calls: int

    def loop(self, sets: list[Inputs], programs: int) -> float:
        """Seconds per call over so many programs, launched without waiting in between."""
        groups = [tuple(sets[i : i + self.calls]) for i in range(0, len(sets), self.calls)]
        start = time.perf_counter()
        for i in range(programs):
            result = self.run(groups[i % len(groups)])
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / (programs * self.calls)


class Contestant(NamedTuple):
    """One implementation on one shape."""

    programs: dict[str, Program]
    temporary_bytes: int
    errors: dict[str, float]


def prepare(name: str, spec: AttentionSpec, sets: list[Inputs], seed: int) -> Contestant:
    """Compiles an implementation's programs and measures its errors and memory."""
    directions = {
        "forward": functools.partial(forward, name, spec),
        "both": functools.partial(both, name, spec),
    }
    calls = len(sets) if spec.length <= _SHORT else 1
    programs = {
        direction: Program(_compile(function, sets[:calls]), calls)
        for direction, function in directions.items()
    }
    single = programs["both"].run if calls == 1 else _compile(directions["both"], sets[:1])
    memory: Any = single.memory_analysis()
    x = make_inputs(spec, seed)
    poison(x)
    (results,) = single((x,))
    errors = {} if name == BARE else measure_errors(spec, seed, results)
    return Contestant(programs, memory.temp_size_in_bytes, errors)


def _compile(function: Callable, sets: list[Inputs]) -> Any:
    return jax.jit(functools.partial(repeated, function)).lower(tuple(sets)).compile()


def floors(spec: AttentionSpec) -> dict[str, float]:
    """Least seconds of each direction: bytes or matrix products, whichever take longer."""
    width = jnp.dtype(spec.dtype).itemsize
    queries = spec.batch * spec.length * spec.heads * spec.head_dim * width
    keys = spec.batch * spec.length * spec.kv_heads * spec.head_dim * width
    rows = spec.batch * spec.length * spec.heads * 4
    document = spec.length // spec.documents
    pairs = spec.documents * document * (document + 1 if spec.causal else 2 * document) / 2
    product = 2 * spec.batch * spec.heads * pairs * spec.head_dim
    # Forward: q, k, v, out, entropy, logsumexp. Backward: those, the cotangents, three gradients.
    forward_bytes = 2 * queries + 2 * keys + 2 * rows
    both_bytes = forward_bytes + 4 * queries + 4 * keys + 3 * rows
    return {
        "forward": max(forward_bytes / BYTES_PER_SECOND, 2 * product / FLOPS_PER_SECOND),
        "both": max(both_bytes / BYTES_PER_SECOND, 7 * product / FLOPS_PER_SECOND),
    }


def race(
    contestants: dict[str, Contestant], sets: list[Inputs], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds per call of every program in every round, the programs taking turns."""
    programs = {
        (name, direction): program
        for name, contestant in contestants.items()
        for direction, program in contestant.programs.items()
    }
    counts = {}
    for key, program in programs.items():
        program.loop(sets, 2)
        counts[key] = max(2, round(_LOOP_SECONDS / (program.loop(sets, 2) * program.calls)))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
    for _ in range(rounds):
        for key, program in programs.items():
            times[key].append(program.loop(sets, counts[key]))
    return times


def row(
    shape: str,
    name: str,
    contestants: dict[str, Contestant],
    times: dict[tuple[str, str], list[float]],
) -> dict[str, Any]:
    """One line of the table."""
    result: dict[str, Any] = {"shape": shape, "implementation": name}
    for direction in ("forward", "both"):
        mine = times[name, direction]
        low, middle, high = (1e3 * t for t in quartiles(mine))
        result[f"{direction} ms"] = digits(middle, 4)
        result[f"{direction} quartiles"] = f"{digits(low)} to {digits(high)}"
        if STOCK in contestants:
            pairs = [a / b for a, b in zip(mine, times[STOCK, direction], strict=True)]
            result[f"{direction} / stock"] = digits(quartiles(pairs)[1])
        if jax.default_backend() == "gpu":
            floor = floors(SPECS[shape])[direction]
            result[f"{direction} / floor"] = digits(1e-3 * middle / floor)
    contestant = contestants[name]
    result["temporary MiB"] = digits(contestant.temporary_bytes / 2**20)
    result |= {f"error {part}": digits(e, 2) for part, e in contestant.errors.items()}
    return result


def measure(config: Config, shape: str, spec: AttentionSpec) -> list[dict[str, Any]]:
    """All implementations on one shape."""
    sets = [make_inputs(spec, config.seed + i) for i in range(_SETS)]
    contestants, rows = {}, []
    bare = (BARE,) if "pallas_gpu" in config.implementations else ()
    for name in (STOCK, *config.implementations, *bare):
        start = time.perf_counter()
        try:
            contestants[name] = prepare(name, spec, sets, config.seed + _SETS)
        except Exception as error:
            # Not able to, or broken: a line in the table, and the others are measured.
            able = "" if isinstance(error, NotImplementedError) else f"{type(error).__name__}: "
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            rows.append({"shape": shape, "implementation": name, "not run": able + reason})
        print(f"{shape} {name}: ready after {time.perf_counter() - start:.1f} s", flush=True)
    times = race(contestants, sets, config.rounds)
    return [row(shape, name, contestants, times) for name in contestants] + rows


def main(config: Config) -> list[dict[str, Any]]:
    """Measures every shape; files are written after each, so that a time limit costs none."""
    rows: list[dict[str, Any]] = []
    for shape, spec in config.specs().items():
        rows += measure(config, shape, spec)
        save_table("attention", config, rows, config.out)
    write_table("attention", config, rows, config.out)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
