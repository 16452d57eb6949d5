"""The training of a system's score or velocity, as a task for `egattn.run`."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from egattn.flow import stationary_weights, whitening
from egattn.optimizer import make_optimizer, make_schedule
from egattn.run import Describe, Task, execute, laid_out
from egattn.run.console import devices_line, parameter_table
from egattn.sharding import BATCH, batch_shards, make_mesh
from experiments.active_matter.config import EMA, TrainConfig
from experiments.active_matter.controls import COARSE, control, controls
from experiments.active_matter.measure import Measure, in_words
from experiments.active_matter.networks import Network, field, linear_answer
from experiments.active_matter.objective import make_loss
from experiments.active_matter.simulation import move, stationary
from experiments.active_matter.snapshots import read_snapshots
from experiments.active_matter.systems import make_system

# Keys of a run: what is drawn from each is independent of the others.
_PARAMETERS, _TRAJECTORIES, _STEPS, _HELD_OUT, _CONTROLS = range(5)
# States of which the variances of controls are taken.
_WHITENED = 8192


@flax.struct.dataclass
class State:
    """Everything a step changes."""

    params: PyTree
    averages: PyTree
    """Of the parameters, one for each decay of `EMA`."""
    opt_state: PyTree
    trajectories: PyTree
    """Where they are, [turns, batch, 2, N, d]: a step moves on one turn and learns from it."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, or goes on training, the run that a config describes; see `egattn.run.execute`."""
    return execute(config, functools.partial(make_task, config))


def make_task(config: TrainConfig) -> Task:
    """Returns the training.

    Raises:
      ValueError: If the devices do not divide the batch.
    """
    mesh = make_mesh()
    if config.batch_size % batch_shards(mesh):
        raise ValueError(
            f"batch_size must be a multiple of the {batch_shards(mesh)} devices, "
            f"got {config.batch_size}"
        )
    return _Training(config, mesh).task()


class _Training:
    """The functions of the task, and what they share."""

    def __init__(self, config: TrainConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.system = make_system(config.of_system())
        self.network = Network(self.system, config)
        self.optimizer = make_optimizer(config.optimizer, config.steps)
        self.turns = config.trajectories // config.batch_size
        shape = (config.trajectories, 2, self.system.particles, self.system.dimensions)
        self.shape = jax.ShapeDtypeStruct(shape, np.float32)

    def task(self) -> Task:
        c = self.config
        return Task(
            config=c,
            target=self.target(),
            init=self.init,
            step=jax.jit(self.step, donate_argnums=0, out_shardings=(self.shardings(), None)),
            batches=lambda done: map(np.int32, itertools.count(done)),
            evaluate=self.evaluate,
            describe=Describe(self.header, in_words, memory="batches; --batch-size makes it less"),
            measure=self.learning_rate,
            about=lambda state: {"parameters": sum(x.size for x in jax.tree.leaves(state.params))},
            units_per_step=c.batch_size,
            unit="snapshots",
        )

    def key(self, use: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.config.seed), use)

    def shardings(self) -> State:
        """Parameters are on every device, trajectories split over them."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        split = NamedSharding(self.mesh, PartitionSpec(None, BATCH))
        return jax.tree.map(lambda _: whole, self.shapes).replace(trajectories=split)

    def target(self) -> State:
        return laid_out(self.shapes, self.shardings())

    def init(self) -> State:
        c = self.config
        if c.data is None:
            draw = functools.partial(stationary, self.system, samples=c.trajectories)
            z = jax.jit(draw)(self.key(_TRAJECTORIES))
        else:
            z, _ = read_snapshots(c.data, self.system)
            if len(z) < c.trajectories:
                raise ValueError(
                    f"{c.data} has {len(z)} snapshots, expected {c.trajectories} trajectories"
                )
            z = z[-c.trajectories :]
        # Parameters on one device: split over several, its equations were solved by all of them.
        params = jax.jit(self.first_params)(z[: c.linear_samples])
        return jax.jit(self.first_state, out_shardings=self.shardings())(params, z)

    def first_params(self, z: Any) -> PyTree:
        starting, estimating = jax.random.split(self.key(_PARAMETERS))
        params = self.network.init(starting, z[0])["params"]
        return linear_answer(self.network, params, z, estimating)

    @functools.cached_property
    def shapes(self) -> State:
        return jax.eval_shape(lambda z: self.first_state(self.first_params(z), z), self.shape)

    def first_state(self, params: PyTree, z: Any) -> State:
        averages = [params for _ in EMA]
        z = z.reshape(self.turns, self.config.batch_size, *z.shape[1:])
        return State(params, averages, self.optimizer.init(params), z)

    def step(self, state: State, index: Any) -> tuple[State, dict[str, Any]]:
        c = self.config
        moving, learning = jax.random.split(jax.random.fold_in(self.key(_STEPS), index))
        turn = index % self.turns
        z = move(self.system, state.trajectories[turn], moving, c.refresh)
        trajectories = state.trajectories.at[turn].set(z)
        turning, learning = jax.random.split(learning)
        z = jax.vmap(self.system.symmetry)(jax.random.split(turning, len(z)), z)
        loss, weights = make_loss(c, self.system), self.weights(z)

        def of_params(params):
            return loss(field(self.network, params), z, weights, learning)

        (value, parts), gradient = jax.value_and_grad(of_params, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        averages = [
            average(old, params, decay, index)
            for old, decay in zip(state.averages, EMA, strict=True)
        ]
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient), **parts}
        return State(params, averages, opt_state, trajectories), metrics

    @functools.cached_property
    def whitening(self) -> np.ndarray:
        draw = functools.partial(stationary, self.system, samples=_WHITENED)
        # A step asks for it first, while it is traced.
        with jax.ensure_compile_time_eval():
            z = np.asarray(jax.jit(draw)(self.key(_CONTROLS)))
            return whitening(controls(self.system, z, COARSE))

    def weights(self, z: Any) -> jax.Array:
        """Of the states of a step; their sum is 1, or is so on average."""
        if not self.config.stationary_weights:
            return jnp.full(len(z), 1 / len(z), z.dtype)
        one = functools.partial(control, self.system, fineness=COARSE)
        return stationary_weights(jax.vmap(one)(z) @ jnp.asarray(self.whitening, z.dtype))

    @functools.cached_property
    def held_out(self) -> jax.Array:
        """Snapshots of trajectories of their own."""
        c = self.config
        draw = functools.partial(stationary, self.system, samples=c.evaluate_samples)
        return jax.jit(draw)(self.key(_HELD_OUT))

    def evaluate(self, state: State, last: bool, check: Any) -> dict[str, Any]:
        """On held-out snapshots; of many particles with estimated divergences."""
        params = chosen(self.config, state.params, state.averages)
        return self.measure(params, self.held_out, check=check).values()

    @functools.cached_property
    def measure(self) -> Measure:
        method = "forward" if self.system.particles == 1 else "hutchinson"
        return Measure(self.system, self.network, method)

    def learning_rate(self, updates: int, rate: float) -> dict[str, Any]:
        schedule = make_schedule(self.config.optimizer, self.config.steps)
        with jax.default_device(jax.devices("cpu")[0]):
            return {"learning_rate": np.asarray(schedule(updates - 1)).item()}

    def header(self, state: State) -> Iterator[Any]:
        c = self.config
        yield devices_line(self.mesh)
        yield parameter_table(state.params)
        yield (
            f"{c.system}: {self.system.particles} particles in {self.system.dimensions} "
            f"dimensions, speed {c.speed}; {c.trajectories:,} trajectories, {c.batch_size} a step, "
            f"each moved on by {c.refresh} before its turn"
        )


def average(old: PyTree, new: PyTree, decay: float, index: Any) -> PyTree:
    """Exponential moving average; of about the last ninth of the steps until 9 / (1 - decay)."""
    # Otherwise short runs would average over where they began.
    share = 1 - jnp.minimum(decay, (1.0 + index) / (10.0 + index))
    return jax.tree.map(lambda a, b: a + share * (b - a), old, new)


def chosen(config: TrainConfig, params: PyTree, averages: Any) -> PyTree:
    """The parameters that evaluations use."""
    decays = [str(decay) for decay in EMA]
    return params if config.ema == "none" else averages[decays.index(config.ema)]
