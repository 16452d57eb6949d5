"""The training of a decoder, as a task for `egattn.run`: read top-down from `train`."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from egattn.data import Manifest, batches, load_manifest, windows_of_batch
from egattn.entropy import max_entropy
from egattn.model.learned import learned_values
from egattn.optimizer import make_schedule
from egattn.run import Describe, RunDirectory, Task, execute
from egattn.run.console import devices_line, parameter_table
from egattn.run.lines import replaced
from egattn.sharding import batch_shards, check_batch, make_mesh
from egattn.train.config import TrainConfig
from egattn.train.drawing import draw
from egattn.train.evaluate import Evaluator, check_data, unused
from egattn.train.flops import utilisation
from egattn.train.initialise import Report, check_origin, first_state
from egattn.train.step import TrainState, device_batch, make_train_step, target


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, or goes on training, the run that `config` describes.

    Returns:
      The last evaluation, see `Evaluator`.

    Raises:
      ValueError: If config, data, devices or the run directory do not fit together; nothing has
        been written then.
      ConnectionError: If another process of the job is lost.
      FloatingPointError: If loss, gradient or entropy are not finite more often than allowed.
      MemoryError: If the devices have too little memory.
      Preempted: If SIGTERM, SIGINT or SIGHUP came; the run is saved then.
    """
    return execute(config, functools.partial(language_model, config))


def language_model(config: TrainConfig) -> Task:
    """Returns the training of a decoder on prepared data.

    Raises:
      ValueError: If config, data and devices do not fit together.
    """
    manifest = load_manifest(config.data)
    check_data(config, manifest)
    config = dataclasses.replace(
        config, data_sha256=manifest.sha256, tokenizer_sha256=manifest.tokenizer_sha256
    )
    if config.init_from is not None:
        taken = _taken(config) or check_origin(config, config.init_from)
        config = dataclasses.replace(config, init_sha256=taken)
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.batch_size // config.accumulation, config.model.context_length)
    return _LanguageModel(config, manifest, mesh).task()


def _taken(config: TrainConfig) -> str:
    """What a run that goes on started from: the origin may be gone by now, or have trained on."""
    directory = RunDirectory(config.run)
    if not directory.config.is_file() or not directory.saved_steps():
        return ""
    before = TrainConfig.read(config.run)
    return before.init_sha256 if before.init_from == config.init_from else ""


class _LanguageModel:
    """The functions of the task, and what they share."""

    def __init__(self, config: TrainConfig, manifest: Manifest, mesh: Mesh):
        self.config, self.manifest, self.mesh = config, manifest, mesh
        self.origin: Report | None = None
        self.ceiling = float(max_entropy(config.model.context_length))

    def task(self) -> Task:
        c = self.config
        return Task(
            config=c,
            target=target(c, self.mesh),
            init=self.init,
            step=make_train_step(c, self.mesh, document_end=self.manifest.document_end),
            batches=self.batches,
            evaluate=self.evaluate,
            is_finite=is_finite,
            describe=Describe(
                self.header, _evaluation_in_words, self.nonfinite_in_words, self.memory_in_words()
            ),
            locate=self.locate,
            measure=self.measure,
            draw=functools.partial(draw, top=self.ceiling),
            position=lambda step: {"next_index": step * c.batch_size},
            about=self.about,
            units_per_step=c.batch_size * c.model.context_length,
            unit="tokens",
        )

    def init(self) -> TrainState:
        state, self.origin = first_state(self.config, self.mesh)
        return state

    def batches(self, done: int) -> Iterator[jax.Array]:
        c = self.config
        source = batches(
            c.data,
            self.manifest,
            "train",
            batch_size=c.batch_size,
            context_length=c.model.context_length,
            seed=c.seed,
            start_index=done * c.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return (device_batch(c, self.mesh, rows) for rows in source)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.config, self.manifest, self.mesh)

    def evaluate(self, state: TrainState, last: bool, check) -> dict[str, Any]:
        values = self.evaluator(state, None if last else self.config.evaluate_windows, check)
        learned = jax.device_get(learned_values(state.params))
        if jax.process_index() == 0:
            with replaced(self.config.run / "learned.npz") as file:
                np.savez(file, allow_pickle=False, **learned)
        if "temperature" in learned:
            learned["temperature"] = np.exp(np.log(learned["temperature"]).mean(-1))
        return {**values, "learned": learned}

    @functools.cached_property
    def learning_rates(self) -> np.ndarray:
        """Of all steps, computed once: the device would return one only after all steps queued."""
        steps = self.config.steps
        rates = np.asarray(make_schedule(self.config.optimizer, steps)(np.arange(steps)))
        # A constant schedule returns one number.
        return np.broadcast_to(rates, steps)

    def measure(self, updates: int, rate: float) -> dict[str, Any]:
        learning_rate = self.learning_rates[updates - 1].item()
        return {"learning_rate": learning_rate, "mfu": utilisation(self.config.model, rate)}

    def about(self, state: TrainState) -> dict[str, Any]:
        initialised = {"initialised": dataclasses.asdict(self.origin)} if self.origin else {}
        return {
            "mesh": dict(self.mesh.shape),
            "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
            "tokens_per_step": self.config.batch_size * self.config.model.context_length,
            **initialised,
        }

    def header(self, state: TrainState) -> Iterator[Any]:
        """Devices, mesh, parameters, batch and where things go."""
        c, micro = self.config, self.config.batch_size // self.config.accumulation
        yield devices_line(self.mesh)
        yield parameter_table(state.params)
        yield (
            f"batch: {c.batch_size} sequences of {c.model.context_length} tokens "
            f"({c.batch_size * c.model.context_length:,} tokens a step; "
            f"{c.accumulation} x {micro}, {micro // batch_shards(self.mesh)} per device)"
        )
        if words := unused(c, self.manifest):
            yield words
        yield f"data: {c.data}   run: {c.run} (metrics.jsonl, tensorboard/, checkpoints/)"
        yield from self.origin.lines() if self.origin else []

    def memory_in_words(self) -> str:
        c = self.config
        return (
            f"batches of {c.batch_size // c.accumulation:,} sequences of {c.model.context_length} "
            "tokens: --accumulation computes them in parts, --model.remat keeps less of each "
            "layer, --mesh fsdp=N splits the state; a smaller --batch-size is another run"
        )

    def locate(self, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
        c = self.config
        windows = windows_of_batch(
            self.manifest, "train", batch_size=c.batch_size, seed=c.seed, step=step
        )
        found = {name: metrics[name] for name in ("loss", "gradient_norm", "nonfinite")}
        return {**found, "first_example": (step - 1) * c.batch_size, "windows": windows}

    def nonfinite_in_words(self, step: int, metrics: dict[str, Any]) -> str:
        bad = ~np.isfinite(metrics["head_entropy"])
        where = "; ".join(
            f"layer {layer} heads {', '.join(map(str, np.flatnonzero(row)))} "
            f"({metrics['nonfinite'][layer]} rows)"
            for layer, row in enumerate(bad)
            if row.any()
        )
        return (
            f"loss is {metrics['loss']}, gradient norm {metrics['gradient_norm']}, attention "
            f"entropy {'is not finite in ' + where if where else 'is finite'}; "
            f"`egattn replay {self.config.run} --step {step}` repeats it"
        )


def is_finite(metrics: dict[str, Any]) -> bool:
    """Whether a step's loss, gradient and attention entropies all are; metrics on the host."""
    numbers = metrics["loss"], metrics["gradient_norm"]
    return all(map(math.isfinite, numbers)) and not metrics["nonfinite"].any()


def _evaluation_in_words(values: dict[str, Any]) -> str:
    return (
        f"validation loss {values['loss']:.4f}  perplexity {values['perplexity']:.3f}  "
        f"bits/byte {values['bits_per_byte']:.4f}  "
        f"mean entropy {values['head_entropy'].mean():.3f} nats"
    )
