"""What entropy costs a training step: the whole jitted step with and without it, in one run.

    python -m benchmarks.step_time                      # the demo's size
    python -m benchmarks.step_time --preset sm_ln_g ereg_sm_t_scfuffn --num-layers 12 \
        --num-heads 12 --embed-dim 768 --vocab-size 50304 --dtype bfloat16 \
        --context-length 128 512 1024 8192 --tokens 16384 --rounds 5 --steps 20 \
        --out results                                   # GPT-2 small

Steps on the same random tokens, taking turns, medians of the rounds:

- entropy: the step that `egattn train` runs, statistics and the penalty of Algorithm 1 on;
- penalty_off: the same step without penalty and statistics, same attention implementation;
- stock: no entropy anywhere, `jax.nn.dot_product_attention` in its place (cuDNN on a GPU).

The state is donated and nothing waits for the device within a round, whose start and end are a
few milliseconds in which the device waits: short steps want many of them. Peak memory is what the
compiled step asks for: state, batch, results and temporaries.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from egattn.attention.api import Implementation
from egattn.model.config import DType
from egattn.report.table import digits, quartiles, save_table, write_table
from egattn.run.arrays import settle
from egattn.sharding import make_mesh
from egattn.train.config import PenaltyConfig, TrainConfig
from egattn.train.flops import utilisation
from egattn.train.step import (
    batch_sharding,
    compiler_options,
    init_state,
    make_train_step,
    train_step,
)

Case = Literal["entropy", "penalty_off", "stock"]

# Batches taken in turn.
_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the models and of the measurement."""

    preset: tuple[str, ...] = ("ereg_sm_t_scfuffn",)
    """Presets, one after the other."""
    context_length: tuple[int, ...] = (128,)
    """Context lengths T, one after the other; the batch is tokens / T."""
    tokens: int = 2048
    """Tokens per step."""
    num_layers: int = 4
    num_heads: int = 4
    embed_dim: int = 128
    vocab_size: int = 2048
    dtype: DType = "float32"
    """Precision of the matrix products."""
    implementation: tuple[Implementation, ...] = ()
    """Attention implementations that take turns; default: the library's choice."""
    cases: tuple[Case, ...] = get_args(Case)
    """Kinds of step that take turns."""
    rounds: int = 10
    """Rounds timed."""
    steps: int = 4
    """Steps of each kind in a round."""
    seed: int = 0
    out: Path | None = None
    """Directory for step_time.json and step_time.md; default: print only."""

    def __post_init__(self):
        for length in self.context_length:
            if length < 1 or self.tokens % length:
                raise SystemExit(
                    f"expected context lengths that divide {self.tokens} tokens, got {length}"
                )
        if self.rounds < 2 or self.steps < 1:
            raise SystemExit(f"expected rounds >= 2, steps >= 1, got {self.rounds}, {self.steps}")

    def kinds(self) -> list[tuple[Case, Implementation | None]]:
        """Cases with their implementations."""
        names: tuple[Implementation | None, ...] = self.implementation or (None,)
        cases = sorted(self.cases, key=lambda case: case != "stock")
        return [(case, name) for case in cases for name in (names if case != "stock" else (None,))]

    def train_config(self, preset: str, length: int) -> TrainConfig:
        """The run whose step is timed."""
        sizes = ("num_layers", "num_heads", "embed_dim", "vocab_size", "dtype")
        config = TrainConfig.preset_defaults(
            preset,
            Path(),
            context_length=length,
            threshold=0.5,
            **{name: getattr(self, name) for name in sizes},
        )
        # So many steps that the warm-up does not end: random tokens at full rate diverge.
        return dataclasses.replace(
            config, batch_size=self.tokens // length, seed=self.seed, steps=1_000_000
        )


def stock_attention(query, key, value, temperature=None, *, causal=True, segment_ids=None, **_):
    """Attention without entropy, for the baseline."""
    assert segment_ids is None
    if temperature is not None:
        query = query / temperature.T[:, :, None].astype(query.dtype)
    fused = jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16
    out = jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, implementation="cudnn" if fused else "xla"
    )
    return out, jnp.zeros((query.shape[0], query.shape[2], query.shape[1]), jnp.float32)


def build(train: TrainConfig, case: Case, implementation: Implementation | None) -> Any:
    """Returns a compiled step `(state, tokens) -> (state, loss or metrics)`."""
    # Algorithm 1, as benchmarks/torch_reference.py has it.
    penalty = PenaltyConfig(weight=0.16 if case == "entropy" else 0.0, reduction="head")
    model = dataclasses.replace(train.model, implementation=implementation)
    train = dataclasses.replace(train, penalty=penalty, model=model)
    mesh = make_mesh()
    step = train_step(train, mesh, stock_attention if case == "stock" else None)

    def without_statistics(state, tokens):
        state, metrics = step(state, tokens)
        return state, {"loss": metrics["loss"]}

    options = compiler_options(mesh)
    bare = jax.jit(without_statistics, donate_argnums=0, compiler_options=options)
    chosen = make_train_step(train, mesh) if case == "entropy" else bare
    state = jax.eval_shape(lambda: init_state(train, mesh))
    shape = (1, train.batch_size, train.model.context_length + 1)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
    return chosen.lower(state, tokens).compile()


class Racer:
    """A compiled step and the state that it carries on."""

    def __init__(self, step: Callable, state: Any, batches: list[jax.Array]):
        self.step, self.state, self.batches = step, state, batches
        self.times: list[float] = []
        self.metrics: dict[str, jax.Array] = {}

    def run(self, steps: int) -> float:
        """Seconds per step of so many steps."""
        start = time.perf_counter()
        for i in range(steps):
            batch = self.batches[i % len(self.batches)]
            self.state, self.metrics = self.step(self.state, batch)
            settle(self.metrics)
        jax.block_until_ready((self.state, self.metrics))
        return (time.perf_counter() - start) / steps

    def peak_bytes(self) -> int:
        """Memory that the compiled step asks for on each device."""
        # Ignored: a compiled step is typed as any callable.
        # It is compiled, which its type does not say.
        memory: Any = self.step.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return memory.argument_size_in_bytes + memory.temp_size_in_bytes + results


def make_batches(train: TrainConfig) -> list[jax.Array]:
    """Random windows on the devices."""
    shape = (1, train.batch_size, train.model.context_length + 1)
    rng = np.random.default_rng(train.seed)
    sharding = batch_sharding(make_mesh())
    return [
        jax.device_put(rng.integers(0, train.model.vocab_size, shape, np.int32), sharding)
        for _ in range(_BATCHES)
    ]


def measure(config: Config, preset: str, length: int) -> list[dict[str, Any]]:
    """All kinds of step of one preset at one context length."""
    train = config.train_config(preset, length)
    batches, first = make_batches(train), init_state(train, make_mesh())
    racers: dict[tuple[Case, Implementation | None], Racer] = {}
    failed = []
    for kind in config.kinds():
        start = time.perf_counter()
        try:
            racer = Racer(build(train, *kind), jax.tree.map(jnp.copy, first), batches)
            racer.run(3)
            racers[kind] = racer
        except Exception as error:
            # Not able to, or out of memory: a line in the table, and the others are measured.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            failed.append({**_names(preset, length, *kind), "not run": reason})
        print(f"{preset} {length} {kind}: {time.perf_counter() - start:.1f} s", flush=True)
    for _ in range(config.rounds):
        for racer in racers.values():
            racer.times.append(racer.run(config.steps))
    return [row(train, kind, racers) for kind in racers] + failed


def row(train: TrainConfig, kind: tuple[Case, Implementation | None], racers: dict) -> dict:
    """One line of the table."""
    racer, length = racers[kind], train.model.context_length
    low, middle, high = quartiles(racer.times)
    tokens_per_second = train.batch_size * length / middle
    result = {
        **_names(train.preset, length, *kind),
        "median ms": digits(1e3 * middle, 4),
        "ms quartiles": f"{1e3 * low:.2f} to {1e3 * high:.2f}",
        "tokens/s": round(tokens_per_second),
    }
    share = utilisation(train.model, tokens_per_second)
    if share is not None:
        result["MFU"] = digits(share)
    for base in (("stock", None), ("penalty_off", kind[1])):
        if base in racers and kind != base and kind[0] != "stock":
            pairs = zip(racer.times, racers[base].times, strict=True)
            low, middle, high = quartiles([mine / other for mine, other in pairs])
            result[f"time / {base[0]}"] = f"{middle:.3f} ({low:.3f} to {high:.3f})"
    result["peak GiB"] = digits(racer.peak_bytes() / 2**30)
    result["loss"] = digits(float(racer.metrics["loss"]), 5)
    return result


def _names(
    preset: str, length: int, case: Case, implementation: Implementation | None
) -> dict[str, Any]:
    step = case if implementation is None else f"{case}, {implementation}"
    return {"preset": preset, "T": length, "step": step}


def main(config: Config) -> list[dict[str, Any]]:
    """Measures every preset and length; files are written after each."""
    rows: list[dict[str, Any]] = []
    for preset in config.preset:
        for length in config.context_length:
            rows += measure(config, preset, length)
            save_table("step_time", config, rows, config.out)
    write_table("step_time", config, rows, config.out)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
