"""Evaluation: loss, perplexity, bits per byte and attention entropy of a split."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from egattn.data import Manifest, evaluation_batches, load_manifest, token_bytes
from egattn.entropy import entropy_summary, range_shares
from egattn.model import Decoder
from egattn.model.linear import SPECTRAL
from egattn.model.segments import segment_ids
from egattn.run import RunDirectory, restore
from egattn.run.arrays import settle
from egattn.run.signals import say
from egattn.sharding import attend_per_shard, check_batch, make_mesh
from egattn.train.config import TrainConfig
from egattn.train.step import TrainState, batch_sharding, make_eval_step, target


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluates a checkpoint on the whole validation split."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    step: int | None = None
    """Checkpoint to evaluate; default: the newest."""
    data: Path | None = None
    """Directory written by `egattn prepare`; default: the one the run was trained on."""
    windows: int | None = None
    """Windows to evaluate; default: all."""
    mesh: str | None = None
    """Devices per mesh axis, e.g. replica=2,fsdp=4; default: all on replica."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self):
        """Checks the values."""
        if self.windows is not None and self.windows < 1:
            raise ValueError(f"windows must be at least 1, got {self.windows}")


class Evaluator:
    """Evaluates states of one run on its validation split."""

    def __init__(self, config: TrainConfig, manifest: Manifest, mesh: Mesh):
        self._config, self._manifest, self._mesh = config, manifest, mesh
        self._step = make_eval_step(config, mesh, document_end=manifest.document_end)
        self._bytes = token_bytes(config.data)

    def __call__(
        self,
        state: TrainState,
        windows: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Returns the means over the split.

        Args:
          state: The train state.
          windows: Only this many windows, see `evaluation_batches`; None takes all.
          check: Called before every batch; may raise to end the evaluation.

        Returns:
          `loss` (nats per token), `perplexity`, `bits_per_byte`, `windows`, `head_entropy` [L, H]
          (nats) and `nonfinite` [L] (rows whose entropy is not finite).
        """
        c = self._config
        batches = evaluation_batches(
            c.data,
            self._manifest,
            batch_size=c.batch_size // c.accumulation,
            context_length=c.model.context_length,
            max_windows=windows,
        )
        sharding = batch_sharding(self._mesh)
        totals, target_bytes = [], 0
        for tokens, weights in batches:
            check()
            arrays = (
                jax.make_array_from_callback((1, *x.shape), sharding, lambda i, x=x[None]: x[i])
                for x in (tokens, weights)
            )
            totals.append(self._step(state, *arrays))
            settle(totals[-1])
            target_bytes += int((self._bytes[tokens[:, 1:]].sum(1) * weights).sum())
        # Summed on the host in float64: a split has more tokens than float32 can count.
        sums = jax.tree.map(lambda *x: np.sum(np.stack(x), 0, np.float64), *jax.device_get(totals))
        loss = float(sums["nll"] / (sums["sequences"] * c.model.context_length))
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": float(sums["nll"] / math.log(2) / max(target_bytes, 1)),
            "windows": int(sums["sequences"]),
            "head_entropy": sums["entropy"] / sums["sequences"],
            "nonfinite": sums["nonfinite"].astype(int),
        }


def load_state(run: TrainConfig, mesh: Mesh, step: int | None = None) -> TrainState:
    """Returns the state of a run's checkpoint, by default the newest intact one.

    Says on stderr which newer ones are not intact.

    Raises:
      FileNotFoundError: If there is no such checkpoint.
    """
    wanted = target(run, mesh)
    return RunDirectory(run.run).read_checkpoint(lambda path: restore(path, wanted), step)[1]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates a checkpoint on its validation split.

    Returns:
      What `Evaluator` returns, as plain lists and numbers, and `run`, `step`, `range_shares` [4]
      and `row_quantiles` [3, L, H]: 5, 50 and 95 % quantiles of the rows' entropy over the split's
      first batch.

    Raises:
      FileNotFoundError: If the run or the checkpoint is missing.
      ValueError: If the data or the mesh do not fit the run.
    """
    run = TrainConfig.read(config.run)
    run, manifest = with_data(run, config.data, other=True)
    mesh = make_mesh(config.mesh)
    check_batch(mesh, run.batch_size // run.accumulation, run.model.context_length)
    state = load_state(run, mesh, config.step)
    values = Evaluator(run, manifest, mesh)(state, config.windows)
    values["range_shares"] = range_shares(np.asarray(values["head_entropy"]))
    values["row_quantiles"] = _row_quantiles(run, manifest, state, mesh)
    plain = {name: np.asarray(value).tolist() for name, value in values.items()}
    return {"run": str(config.run), "step": int(state.step), **plain}


def with_data(
    run: TrainConfig, data: Path | None, *, other: bool = False
) -> tuple[TrainConfig, Manifest]:
    """Returns a run's config with its data, and their manifest.

    Args:
      run: Config of the run.
      data: Where the data are now; None: where they were when it was trained.
      other: Whether data that are named may be other ones; then a line on stderr says so.

    Raises:
      FileNotFoundError: If there are none: says where they were.
      ValueError: If they do not fit the run, or are not those that it was trained on.
    """
    where = data or run.data
    if data is None and not where.exists():
        raise FileNotFoundError(
            f"{run.run} was trained on {where}, which is not here ({Path.cwd()}): --data says "
            "where it is"
        )
    run = dataclasses.replace(run, data=where)
    manifest = load_manifest(where)
    check_data(run, manifest)
    if words := unused(run, manifest):
        say(words, error=True)
    if run.data_sha256 not in ("", manifest.sha256):
        differ = f"{where} holds other data than {run.run} was trained on"
        if data is None or not other:
            hint = f"; --data {where} takes them all the same" if other else ""
            raise ValueError(
                f"{differ}: the sha256 is {manifest.sha256}, expected {run.data_sha256}{hint}"
            )
        say(f"{differ}: what it was trained on may be among its validation documents", error=True)
    return run, manifest


def check_data(config: TrainConfig, manifest: Manifest) -> None:
    """Raises ValueError unless the data's windows and tokens are those of the model."""
    if config.model.context_length > manifest.context_length:
        raise ValueError(
            f"context_length {config.model.context_length} is longer than the windows in "
            f"{config.data}: at most {manifest.context_length}"
        )
    if config.model.vocab_size != manifest.vocab_size:
        raise ValueError(
            f"vocab_size must be that of the data's tokenizer in {config.data}, "
            f"{manifest.vocab_size}, got {config.model.vocab_size}"
        )
    if config.tokenizer_sha256 not in ("", manifest.tokenizer_sha256):
        raise ValueError(f"{config.run} was trained with another tokenizer than {config.data} has")


def unused(config: TrainConfig, manifest: Manifest) -> str:
    """Says that windows are longer than the model's context; empty if they are not."""
    length, longest = config.model.context_length, manifest.context_length
    if length == longest:
        return ""
    return (
        f"of the {longest} predictions of each window in {config.data} the first {length} are "
        f"used, {length / longest:.0%} of the data: with `egattn prepare --context-length "
        f"{length}` it would be all"
    )


def _row_quantiles(config: TrainConfig, manifest: Manifest, state: TrainState, mesh: Mesh):
    size = config.batch_size // config.accumulation
    batches = evaluation_batches(
        config.data,
        manifest,
        batch_size=size,
        context_length=config.model.context_length,
        max_windows=size,
    )
    tokens, weights = next(batches)
    variables = {"params": state.params, SPECTRAL: state.spectral}

    @jax.jit
    def quantiles(variables, tokens):
        model = Decoder(config.model, attend=attend_per_shard(mesh))
        end = manifest.document_end
        ids = None if end is None else segment_ids(tokens, end)
        features: Any = model.apply(variables, tokens, ids, method="features")
        return entropy_summary(features.entropy).quantiles

    return quantiles(variables, tokens[weights > 0, :-1])


def describe(values: dict[str, Any]) -> str:
    """Formats what `evaluate` returns for people."""
    heads = np.asarray(values["head_entropy"])
    low, mid, high = np.asarray(values["row_quantiles"]).mean(2).round(2)
    shares = " ".join(f"{share:.0%}" for share in values["range_shares"])
    lines = [
        f"{values['run']} step {values['step']}, {values['windows']} validation windows",
        f"loss {values['loss']:.4f} nats/token   perplexity {values['perplexity']:.3f}   "
        f"bits/byte {values['bits_per_byte']:.4f}",
        f"heads per entropy range (0 to the largest, {heads.max():.2f} nats): {shares}",
        "layer  mean entropy  rows at 5/50/95 %  heads",
    ]
    for layer, row in enumerate(heads):
        rows = f"{low[layer]:.2f}/{mid[layer]:.2f}/{high[layer]:.2f}"
        each = " ".join(f"{value:.2f}" for value in row)
        lines.append(f"{layer:5d}  {row.mean():12.3f}  {rows:>17s}  {each}")
    return "\n".join(lines)
