"""The training loop: read top-down from `train`."""

import collections
import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from egattn.data import batches, load_manifest
from egattn.entropy import max_entropy
from egattn.model.learned import learned_values
from egattn.optimizer import make_schedule
from egattn.run.processes import join, together
from egattn.run.signals import Preempted, StopRequest
from egattn.sharding import check_batch, make_mesh, settle
from egattn.train.checkpoints import Checkpoints
from egattn.train.claim import claimed
from egattn.train.config import TrainConfig
from egattn.train.console import Display
from egattn.train.evaluate import Evaluator, check_data, read_run
from egattn.train.flops import utilisation
from egattn.train.initialise import Report, check_origin, first_state
from egattn.train.nonfinite import Nonfinite, is_finite
from egattn.train.profiler import Profiler
from egattn.train.records import Records
from egattn.train.step import TrainState, device_batch, make_train_step

# How far the host may run ahead of the device: about so many seconds, and steps at most. It hides
# what delays the host, such as a busy disk, and it delays stopping on request.
_AHEAD, _MOST_AHEAD = 0.5, 16
# Weight of what was measured until a log line against what is measured until the next one.
_KEPT = 0.9


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, or goes on training, the run that `config` describes.

    Returns:
      The last evaluation, see `Evaluator`.

    Raises:
      ValueError: If config, data, devices or the run directory do not fit together; nothing has
        been written then.
      ConnectionError: If another process of the job is lost.
      FloatingPointError: If loss, gradient or entropy are not finite more often than allowed.
      Preempted: If SIGTERM or SIGINT came; the run is saved then.
    """
    join(config.distributed)
    with together(config.distributed), StopRequest() as stop:
        return _train(config, stop)


def _train(config: TrainConfig, stop: StopRequest) -> dict[str, Any]:
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
    with claimed(config), Checkpoints(config, mesh) as checkpoints:
        first, skipped = checkpoints.resume()
        origin = None
        with stop.idle():
            if first:
                state = checkpoints.restore(first)
            else:
                state, origin = first_state(config, mesh)
            checkpoints.get_ready(state)
        ceiling = float(max_entropy(config.model.context_length))
        with Records(config.run, ceiling, first) as records, Display(config) as display:
            display.header(state, mesh, first)
            for line in [*skipped, *(origin.lines() if origin else [])]:
                display.note(line)
            records.start(**_environment(config, mesh, state), **_origin(origin))
            source = batches(
                config.data,
                manifest,
                "train",
                batch_size=config.batch_size,
                context_length=config.model.context_length,
                seed=config.seed,
                start_index=first * config.batch_size,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            evaluator = Evaluator(config, manifest, mesh)
            nonfinite = Nonfinite(config, manifest, checkpoints)
            nonfinite.resume(first)
            with Profiler(config, display, first) as profiler:
                tools = checkpoints, records, display, evaluator, nonfinite, profiler, stop
                return _Loop(config, mesh, *tools).run(state, source, first)


class _Pending(NamedTuple):
    """A step whose metrics are on their way, and the copy to save if they are in order."""

    step: int
    metrics: dict[str, Any]
    copy: TrainState | None


@dataclasses.dataclass
class _Loop:
    config: TrainConfig
    mesh: Mesh
    checkpoints: Checkpoints
    records: Records
    display: Display
    evaluator: Evaluator
    nonfinite: Nonfinite
    profiler: Profiler
    stop: StopRequest

    def run(self, state: TrainState, source, first: int) -> dict[str, Any]:
        """Steps from `first` to the end."""
        self._clock, self._logged = time.perf_counter(), first
        self._pending: collections.deque[_Pending] = collections.deque()
        self._ahead = 1
        # Steps and seconds of the last intervals between log lines, older ones fading.
        self._recent: tuple[float, float] | None = None
        self._state, self._done, self._saved, values = state, first, first, None
        try:
            for step in range(first + 1, self.config.steps + 1):
                values = self._step(step, source, first) or values
            return self._last_values() if values is None else values
        except Preempted:
            self._save()
            where = f"after step {self._done}, saved" if self._done else "before the first step"
            raise Preempted(
                f"stopped by {self.stop.name} {where}; the same command continues"
            ) from None

    def _step(self, step: int, source, first: int) -> dict[str, Any] | None:
        """One step and what is due after it; returns the evaluation if there was one.

        A step's metrics are read only after the next ones are under way, so that the device never
        waits for the host; but always before the step is saved or evaluated.
        """
        c, last = self.config, step == self.config.steps
        self.checkpoints.check()
        with self.stop.waiting():
            rows = next(source)
        # The first step compiles.
        compiling = self.stop.idle() if step == first + 1 else contextlib.nullcontext()
        with compiling, self.profiler.step(step):
            state, metrics = self._step_fn(self._state, device_batch(c, self.mesh, rows))
        self._state, self._done = state, step
        settle(metrics)
        self.profiler.end(step, metrics)
        evaluates = last or step % c.evaluate_every == 0
        saves = last or step % c.checkpoint_every == 0
        copy = self.checkpoints.copy(state) if saves and not evaluates else None
        self._pending.append(_Pending(step, metrics, copy))
        # There is one copy at a time: its step is no longer pending when the next one is made.
        self._check(min(self._ahead, c.checkpoint_every - 1))
        values = None
        if evaluates:
            values = self._evaluate(step, state, None if last else c.evaluate_windows)
        if evaluates and saves:
            # Only now: what a kill in between loses is computed again on resume.
            self._save()
        if self.stop.requested(step) and not last:
            raise Preempted
        return values

    def _last_values(self) -> dict[str, Any]:
        """Of a run that had taken its last step before: stopped while evaluating, it lacks them."""
        if self.records.evaluated(self.config.steps):
            return self.evaluator(self._state, None, self.stop.check)
        return self._evaluate(self.config.steps, self._state, None)

    def _save(self) -> None:
        """Saves the state unless it is the one saved last."""
        self._check()
        if self._done > self._saved:
            self._save_copy(self._done, self.checkpoints.copy(self._state))

    def _save_copy(self, step: int, copy: TrainState) -> None:
        self.checkpoints.save(step, copy)
        self._saved = step

    @functools.cached_property
    def _learning_rates(self) -> np.ndarray:
        """Of all steps, computed once: the device would return one only after all steps queued."""
        steps = self.config.steps
        rates = np.asarray(make_schedule(self.config.optimizer, steps)(np.arange(steps)))
        # A constant schedule returns one number.
        return np.broadcast_to(rates, steps)

    @functools.cached_property
    def _step_fn(self) -> Callable:
        return make_train_step(self.config, self.mesh)

    def _check(self, keep: int = 0) -> None:
        """Reads the metrics of all pending steps but the last `keep`, and saves those to be saved.

        Logs them when due, judges those that are not finite.
        """
        while len(self._pending) > keep:
            step, metrics, copy = self._pending.popleft()
            metrics = jax.device_get(metrics)
            finite = is_finite(metrics)
            if not finite or step % self.config.log_every == 0 or step == self.config.steps:
                self._log(step, metrics)
            if not finite:
                self.display.note(self.nonfinite.found(step, metrics))
            if copy is not None:
                self._save_copy(step, copy)

    def _log(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        c, now = self.config, time.perf_counter()
        steps, seconds = step - self._logged, now - self._clock
        rate = steps * c.batch_size * c.model.context_length / seconds
        self._clock, self._logged = now, step
        self._look_ahead(steps, seconds)
        values: dict[str, Any] = {k: v if v.ndim else float(v) for k, v in metrics.items()}
        values["learning_rate"] = self._learning_rates[step - 1 - self.nonfinite.skipped].item()
        values["tokens_per_second"] = rate
        values["mfu"] = utilisation(c.model, rate)
        self.records.train(step, values)
        self.display.train(step, values["loss"], rate)

    def _look_ahead(self, steps: int, seconds: float) -> None:
        """Adapts how far the host runs ahead to the mean speed of about the last ten intervals.

        Where launching waits for the device, running further ahead makes this interval seem slow
        and the next one fast. Going by the last one alone, or by less than a whole step, it would
        swing for ever.
        """
        if self._recent is None:
            # The first one holds compilation.
            self._recent = (0, 0)
            return
        self._recent = (_KEPT * self._recent[0] + steps, _KEPT * self._recent[1] + seconds)
        wanted = min(max(_AHEAD * self._recent[0] / self._recent[1], 1), _MOST_AHEAD)
        if abs(wanted - self._ahead) >= 1:
            self._ahead = round(wanted)

    def _evaluate(self, step: int, state: TrainState, windows: int | None) -> dict[str, Any]:
        self._check()
        paused = time.perf_counter()
        values = self.evaluator(state, windows, self.stop.check)
        self.records.validation(step, values, jax.device_get(learned_values(state.params)))
        self.display.validation(step, values)
        # Training speed does not count the time spent here.
        self._clock += time.perf_counter() - paused
        return values


def _environment(config: TrainConfig, mesh: Mesh, state: TrainState) -> dict[str, Any]:
    packages = ("egattn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in packages},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "mesh": dict(mesh.shape),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "tokens_per_step": config.batch_size * config.model.context_length,
    }


def _taken(config: TrainConfig) -> str:
    """What a run that goes on started from: the origin may be gone by now, or have trained on."""
    if not (config.run / "config.json").is_file():
        return ""
    before = read_run(config.run)
    return before.init_sha256 if before.init_from == config.init_from else ""


def _origin(report: Report | None) -> dict[str, Any]:
    return {"initialised": dataclasses.asdict(report)} if report else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
