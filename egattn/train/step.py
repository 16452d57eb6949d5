"""One optimiser step: cross entropy plus entropy penalty, accumulated exactly, over a mesh."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from egattn.entropy import entropy_penalty, head_mean, max_entropy
from egattn.model import Decoder, DecoderConfig, DecoderFeatures
from egattn.model.linear import SPECTRAL
from egattn.model.segments import restarted_positions, segment_ids
from egattn.optimizer import OptimizerConfig, make_optimizer
from egattn.run import laid_out
from egattn.sharding import (
    BATCH,
    attend_per_shard,
    batch_shards,
    constrain_activations,
    fold_context,
    replicated,
    state_sharding,
)
from egattn.train.config import PenaltyConfig, TrainConfig
from egattn.train.cross_entropy import cross_entropy

# Both measured on an H200, see docs/performance.md.
_GPU_OPTIONS = {
    # Query, key and value in one product come out interleaved: to part them costs more.
    "xla_gpu_dot_merger_threshold_mb": 0,
    # cuBLAS adds biases and applies GELU on the way out; Triton's products leave them as passes.
    "xla_gpu_enable_triton_gemm": False,
}


@flax.struct.dataclass
class TrainState:
    """Everything a step changes."""

    step: PyTree
    """Number of steps taken, int32."""
    params: PyTree
    spectral: PyTree
    """Vectors of the spectral norm's power iteration; empty without it."""
    opt_state: PyTree


def init_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Returns the state before the first step, each leaf made where it will live."""
    init = functools.partial(_init, config.model, config.optimizer, config.steps, config.seed)
    return jax.jit(init, out_shardings=state_sharding(mesh, abstract(config)))()


def abstract(config: TrainConfig) -> TrainState:
    """Shapes and dtypes of the state."""
    return _abstract(config.model, config.optimizer, config.steps)


# A start asks several times, and each trace takes a tenth of a second.
@functools.lru_cache
def _abstract(model: DecoderConfig, optimizer: OptimizerConfig, steps: int) -> TrainState:
    return jax.eval_shape(functools.partial(_init, model, optimizer, steps, 0))


def target(config: TrainConfig, mesh: Mesh) -> TrainState:
    """The same, with the sharding of each array: what a checkpoint is restored to."""
    shapes = abstract(config)
    return laid_out(shapes, state_sharding(mesh, shapes))


def _init(model: DecoderConfig, optimizer: OptimizerConfig, steps: int, seed: int) -> TrainState:
    tokens = jnp.zeros((1, model.context_length), jnp.int32)
    # The same values, and one layer to compile instead of all.
    decoder = Decoder(dataclasses.replace(model, scan_layers=True))
    variables = dict(decoder.init(jax.random.key(seed), tokens))
    params = variables["params"]
    opt_state = make_optimizer(optimizer, steps).init(params)
    return TrainState(jnp.int32(0), params, variables.get(SPECTRAL, {}), opt_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of tokens [accumulation, B, T + 1]."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH))


def device_batch(config: TrainConfig, mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Puts this process's rows [B / processes, T + 1] of a batch where a step takes them."""
    local = rows.reshape(config.accumulation, -1, rows.shape[-1])
    shape = (config.accumulation, config.batch_size // config.accumulation, rows.shape[-1])
    return jax.make_array_from_process_local_data(batch_sharding(mesh), local, shape)


def train_step(
    config: TrainConfig,
    mesh: Mesh,
    attend: Callable | None = None,
    document_end: int | None = None,
) -> Callable:
    """Returns the pure `(state, tokens [accumulation, B, T + 1]) -> (state, metrics)`.

    Metrics are arrays: `loss` (cross entropy per token, nats), `penalty` (before lambda),
    `gradient_norm`, `head_entropy` [L, H] (nats) and `nonfinite` [L] (rows whose entropy is not
    finite); means and counts over the whole batch.

    Args:
      config: The run.
      mesh: Where it runs.
      attend: An operator with the signature of `entropy_attention`; default: that one, on each
        device of the mesh (`egattn.sharding.attend_per_shard`).
      document_end: Token after which another document starts, which does not see those before it;
        None: windows are whole. See `Manifest.document_end`.
    """
    optimizer = make_optimizer(config.optimizer, config.steps)

    def step(state: TrainState, tokens: Int[Array, "accumulation batch window"]):
        grads, spectral, metrics = batch_gradient(config, mesh, state, tokens, attend, document_end)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, spectral, opt_state)
        if config.skip_nonfinite:
            new = _unless_nonfinite(metrics, new, state)
        return new, metrics

    return step


def make_train_step(
    config: TrainConfig,
    mesh: Mesh,
    attend: Callable | None = None,
    document_end: int | None = None,
) -> Callable:
    """Returns `train_step` jitted for the mesh; it donates the state."""
    state = state_sharding(mesh, abstract(config))
    return jax.jit(
        train_step(config, mesh, attend, document_end),
        in_shardings=(state, batch_sharding(mesh)),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def _unless_nonfinite(metrics, new: TrainState, old: TrainState) -> TrainState:
    """The new state, or the old one at the next step; as `task.is_finite` has it."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    finite &= metrics["nonfinite"].sum() == 0
    kept = jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)
    return kept.replace(step=new.step)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """XLA's options for a training step on this mesh; those that XLA_FLAGS sets are left out."""
    if mesh.devices.flat[0].platform != "gpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in _GPU_OPTIONS.items() if name not in flags}


def batch_gradient(
    config: TrainConfig,
    mesh: Mesh,
    state: TrainState,
    tokens: Int[Array, "accumulation batch window"],
    attend: Callable | None = None,
    document_end: int | None = None,
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """Gradient of the whole batch's objective: one division by the whole batch's token count.

    Returns:
      The gradient, the spectral norm's new vectors, and the metrics of `train_step` but for the
      gradient's norm.
    """
    penalty, accumulation = config.penalty, tokens.shape[0]
    model = _decoder(config, mesh, attend)
    predictions = tokens.shape[0] * tokens.shape[1] * (tokens.shape[2] - 1)
    weight = penalty.weight * penalty_ramp(penalty, config.steps, state.step)
    # "sum" adds up over the batch; the other reductions are means of equal microbatches.
    share = 1.0 if penalty.reduction == "sum" else 1.0 / accumulation
    batch_mean = batch_ceiling = None
    if penalty.weight > 0 and penalty.reduction == "head" and accumulation > 1:
        batch_mean = _batch_head_mean(model, state, tokens, document_end)
        windows = tokens.reshape(-1, tokens.shape[2])
        batch_ceiling = _ceiling(penalty, windows, document_end).mean()

    def objective(params, microbatch):
        ids = _segments(microbatch, document_end)
        features, spectral = _features(model, params, state.spectral, microbatch, ids)
        weights = jnp.full(microbatch[:, 1:].shape, 1 / predictions, jnp.float32)
        loss = _loss(config, mesh, features, microbatch[:, 1:], weights)
        cost = jnp.float32(0)
        if penalty.weight > 0:
            entropy = _with_mean(features.entropy, batch_mean)
            ceiling = batch_ceiling
            if ceiling is None:
                ceiling = _ceiling(penalty, microbatch, document_end)
            cost = share * _penalty(penalty, entropy, params["threshold"], ceiling)
        metrics = {
            "loss": loss,
            "penalty": cost,
            "head_entropy": head_mean(features.entropy) / accumulation,
            "nonfinite": jnp.sum(~jnp.isfinite(features.entropy), axis=(1, 2, 3)),
        }
        return loss + weight * cost, (metrics, spectral)

    gradient = jax.grad(objective, has_aux=True)
    if accumulation == 1:
        grads, (metrics, spectral) = gradient(state.params, tokens[0])
        return grads, spectral, metrics

    def accumulate(total, microbatch):
        grads, (metrics, spectral) = gradient(state.params, microbatch)
        return jax.tree.map(jnp.add, total, (grads, metrics)), spectral

    shapes = jax.eval_shape(gradient, state.params, tokens[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0]))
    (grads, metrics), spectral = jax.lax.scan(accumulate, zeros, tokens)
    # The power iteration reads only the matrices: every microbatch made the same vectors.
    return grads, jax.tree.map(lambda x: x[-1], spectral), metrics


def _decoder(config: TrainConfig, mesh: Mesh, attend: Callable | None = None) -> Decoder:
    # Without constraints XLA's partitioner may split the residual's cotangent over `tensor`, and
    # gets gradients wrong without an error (jax 0.10.2 and 0.12.0.1, all three axes > 1).
    return Decoder(
        config.model,
        constrain=functools.partial(constrain_activations, mesh),
        attend=attend_per_shard(mesh) if attend is None else attend,
    )


def _segments(tokens, document_end: int | None) -> Int[Array, "batch length"] | None:
    """Segments of a window's inputs."""
    return None if document_end is None else segment_ids(tokens[:, :-1], document_end)


def _features(model: Decoder, params, spectral, tokens, ids) -> tuple[DecoderFeatures, PyTree]:
    features, updated = model.apply(
        {"params": params, SPECTRAL: spectral},
        tokens[:, :-1],
        ids,
        method="features",
        mutable=[SPECTRAL],
    )
    return features, updated.get(SPECTRAL, {})


def _loss(config: TrainConfig, mesh: Mesh, features: DecoderFeatures, targets, weights):
    """Weighted sum of the cross entropies of targets [B, T], nats."""
    hidden, targets, weights = (fold_context(mesh, x) for x in (features.hidden, targets, weights))
    shards = batch_shards(mesh) * mesh.shape["context"]
    vocab_size = config.model.vocab_size
    return cross_entropy(hidden, features.head, targets, weights, vocab_size, shards)


def penalty_ramp(config: PenaltyConfig, steps: int, step) -> Float[Array, ""]:
    """Share of lambda in force at a step: 0 at the start of its warm-up, then 1."""
    if config.warmup == 0:
        return jnp.ones(())
    return jnp.minimum(1.0, step / (config.warmup * steps))


def _ceiling(config: PenaltyConfig, tokens, document_end: int | None) -> Float[Array, "..."]:
    """Largest entropy of each position of windows, or of all."""
    ceiling = max_entropy(tokens.shape[1] - 1, causal=True, per_row=config.ceiling == "row")
    ids = _segments(tokens, document_end)
    return ceiling if ceiling.ndim == 0 or ids is None else ceiling[restarted_positions(ids)]


def _penalty(config: PenaltyConfig, entropy, threshold, ceiling) -> Float[Array, ""]:
    return entropy_penalty(
        entropy, threshold, ceiling, config.tolerance, config.kind, config.reduction
    )


def _batch_head_mean(model: Decoder, state: TrainState, tokens, document_end: int | None):
    """Head means [L, H] of the whole batch, from a forward pass of its own.

    A penalty of the batch's mean is not a mean of the microbatches' penalties.
    """

    def one(microbatch):
        ids = _segments(microbatch, document_end)
        features, _ = _features(model, state.params, state.spectral, microbatch, ids)
        return head_mean(features.entropy)

    return jax.lax.map(one, tokens).mean(0)


def _with_mean(entropy, mean):
    """Shifts each head's entropies to have the given mean, with the gradient of their own mean."""
    if mean is None:
        return entropy
    shift = mean - head_mean(entropy)
    return entropy + jax.lax.stop_gradient(shift)[:, None, :, None]


def make_eval_step(config: TrainConfig, mesh: Mesh, document_end: int | None = None) -> Callable:
    """Returns the jitted `(state, tokens [1, B, T + 1], weights [1, B]) -> sums`.

    Sums are weighted over sequences: `nll` (nats), `sequences`, `entropy` [L, H] (of sequences'
    head means) and `nonfinite` [L]. `document_end` is as of `train_step`.
    """

    model = _decoder(config, mesh)

    def step(state: TrainState, tokens, weights):
        ids = _segments(tokens[0], document_end)
        features, _ = _features(model, state.params, state.spectral, tokens[0], ids)
        targets, w = tokens[0, :, 1:], weights[0]
        per_position = jnp.broadcast_to(w[:, None], targets.shape)
        nll = _loss(config, mesh, features, targets, per_position)
        bad = ~jnp.isfinite(features.entropy) & (w > 0)[:, None, None]
        return {
            "nll": nll,
            "sequences": w.sum(),
            "entropy": jnp.einsum("lbh,b->lh", features.entropy.mean(-1), w),
            "nonfinite": bad.sum((1, 2, 3)),
        }

    state, batch = state_sharding(mesh, abstract(config)), batch_sharding(mesh)
    return jax.jit(step, in_shardings=(state, batch, batch), out_shardings=replicated(mesh))
