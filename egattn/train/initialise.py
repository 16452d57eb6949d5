"""The state before the first step of a run that starts from another run's weights."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from egattn._config import changes
from egattn.model import Decoder, DecoderConfig
from egattn.model.layers import LAYER, shapes, stack, unstack
from egattn.model.linear import SPECTRAL
from egattn.optimizer import make_optimizer
from egattn.run import RunDirectory
from egattn.run.integrity import sha256
from egattn.sharding import state_sharding
from egattn.train.config import TrainConfig
from egattn.train.step import TrainState, abstract, init_state
from egattn.train.variables import load_variables

# Two networks whose parameters mean the same have these in common.
_SHARED = ("vocab_size", "num_layers", "num_heads", "kv_heads", "embed_dim")
# Axis of positions, of which a shorter network takes the first.
_POSITIONS = {"position_embedding.embedding": 0, "attention.log_temperature": 1}


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the parameters, each named as in `egattn.model.layers`."""

    origin: str
    """Run and step that they came from."""
    taken: dict[str, str]
    """Parameters with the origin's values; with a remark where not simply copied."""
    dropped: tuple[str, ...]
    """Parameters of the origin that this network does not have."""
    new: tuple[str, ...]
    """Parameters that the origin does not have."""
    changed: tuple[str, ...]
    """Differences of the two architectures, e.g. "activation: gelu -> relu"."""

    def lines(self) -> list[str]:
        """Names every parameter, layers with the same together."""
        lines = [f"weights of {self.origin}; {', '.join(self.changed) or 'the same architecture'}"]
        dropped, new = dict.fromkeys(self.dropped, ""), dict.fromkeys(self.new, "")
        for word, names in (("taken", self.taken), ("dropped", dropped), ("new", new)):
            lines.append(f"{len(names)} parameters {word}")
            lines += [f"  {line}" for line in _grouped(names)]
        return lines


class _Taking(NamedTuple):
    """Where a parameter comes from."""

    parts: tuple[str, ...]
    """Parameters of the origin: itself, or those to put together."""
    remark: str
    """What people should know about it."""


def _grouped(names: dict[str, str]) -> list[str]:
    groups: dict[tuple[str, str], list[int]] = {}
    for name, remark in names.items():
        match = LAYER.search(name)
        key = name if match is None else name.replace(match[0], match[2])
        groups.setdefault((key, remark), []).extend([] if match is None else [int(match[1])])
    lines = []
    for (name, remark), layers in groups.items():
        where = f"layers {_ranges(sorted(layers))}: " if layers else ""
        lines.append(where + name + (f" ({remark})" if remark else ""))
    return lines


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def first_state(config: TrainConfig, mesh: Mesh) -> tuple[TrainState, Report | None]:
    """Returns the state before the first step, and where it comes from if from another run."""
    if config.init_from is None:
        return init_state(config, mesh), None
    return initialise(config, mesh, config.init_from)


def check_origin(config: TrainConfig, directory: Path) -> str:
    """Checks that a run can start from another run's weights.

    Args:
      config: The run to start.
      directory: Run directory to take from.

    Returns:
      A checksum of its newest intact checkpoint.

    Raises:
      FileNotFoundError: If there is no such run or checkpoint.
      ValueError: If the two networks or their tokenizers do not fit together.
    """
    origin = TrainConfig.read(directory)
    _check(config, origin)
    _plan(config, origin)
    return RunDirectory(directory).read_checkpoint(sha256)[1]


def initialise(config: TrainConfig, mesh: Mesh, directory: Path) -> tuple[TrainState, Report]:
    """Returns the state before the first step, with all weights of another run that fit.

    A parameter that both networks have is taken, and its shape must be the same, except that a
    network for fewer positions takes those of the first ones. New parameters start as they would
    without an origin, but gains of weight and spectral norm so that they change nothing. Two linear
    feed-forward matrices become a fused one, a tied head becomes a separate one.

    Args:
      config: The run to start.
      mesh: Its mesh.
      directory: Run directory whose newest intact checkpoint to take from.

    Raises:
      FileNotFoundError: If there is no such run or checkpoint.
      ValueError: If the two networks or their tokenizers do not fit together.
    """
    origin = TrainConfig.read(directory)
    _check(config, origin)
    plan, before, after = _plan(config, origin)
    step, variables = load_variables(directory)
    if config.init_sha256 not in ("", sha256(RunDirectory(directory).checkpoint(step))):
        raise ValueError(f"the newest checkpoint of {directory} is not the one that this run took")
    fresh = [name for name in after if name not in plan]
    # The decoder computes these from the matrices that it is given.
    derived = {name for name in fresh if _is_derived(name, origin.model)}

    def make(variables) -> TrainState:
        flat, initial = unstack(origin.model, variables), _initial(config)
        values = {name: initial[name] for name in fresh if name not in derived}
        values |= {name: _value(flat, t.parts, after[name]) for name, t in plan.items()}
        return _complete(config, stack(config.model, values))

    layout = state_sharding(mesh, abstract(origin))
    variables = jax.device_put(variables, {"params": layout.params, SPECTRAL: layout.spectral})
    state = jax.jit(make, out_shardings=state_sharding(mesh, abstract(config)))(variables)
    used = {part for taking in plan.values() for part in taking.parts}
    return state, Report(
        f"{directory} step {step}",
        {name: taking.remark for name, taking in plan.items()},
        tuple(name for name in before if name not in used),
        tuple(fresh),
        tuple(f"{n}: {old} -> {new}" for n, old, new in changes(origin.model, config.model)),
    )


def _check(config: TrainConfig, origin: TrainConfig) -> None:
    ours, theirs = config.model, origin.model
    for name in _SHARED:
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f"{name} must be that of {origin.run}, {getattr(theirs, name)}, got "
                f"{getattr(ours, name)}"
            )
    reparam = (theirs.weight_reparam, theirs.reparam_matrices)
    if theirs.weight_reparam != "none" and reparam != (ours.weight_reparam, ours.reparam_matrices):
        raise ValueError(
            f"matrices of {origin.run} are under {theirs.weight_reparam} ("
            f"{', '.join(theirs.reparam_matrices)}): weight_reparam must be the same, got "
            f"{ours.weight_reparam} ({', '.join(ours.reparam_matrices)})"
        )
    if "" not in (config.tokenizer_sha256, origin.tokenizer_sha256) and (
        config.tokenizer_sha256 != origin.tokenizer_sha256
    ):
        raise ValueError(f"{origin.run} has another tokenizer than {config.data}")


_Shapes = dict[str, tuple[int, ...]]


def _plan(config: TrainConfig, origin: TrainConfig) -> tuple[dict[str, _Taking], _Shapes, _Shapes]:
    """What to take for each parameter that the origin has; shapes of its parameters and of ours."""
    before, after = shapes(origin.model), shapes(config.model)
    plan = {}
    for name, shape in after.items():
        parts = _sources(name, origin.model, before)
        if not parts:
            continue
        remark = "" if parts[0] == name else f"from {' and '.join(parts)}"
        got = before[parts[0]]
        if len(parts) == 1 and got != shape:
            axis = _POSITIONS.get(LAYER.sub(r"\2", name))
            if axis is None or got[axis] < shape[axis]:
                raise ValueError(
                    f"{name} has shape {list(got)} in {origin.run}, expected {list(shape)}"
                )
            remark = f"the first {shape[axis]} of {got[axis]} positions"
        plan[name] = _Taking(parts, remark)
    return plan, before, after


def _sources(name: str, theirs: DecoderConfig, before: _Shapes) -> tuple[str, ...]:
    """Parameters of the origin that give this one; none if it is new."""
    if name in before:
        return (name,)
    if name == "head":
        return ("token_embedding.embedding",)
    module, _, leaf = name.rpartition(".")
    linear = theirs.activation == "identity" and theirs.weight_reparam == "none"
    if not module.endswith("feed_forward.fused") or not linear or leaf not in ("kernel", "bias"):
        return ()
    up, down = (module.replace("fused", x) for x in ("up", "down"))
    parts = (f"{up}.{leaf}", f"{down}.kernel", *([f"{down}.bias"] if leaf == "bias" else []))
    return parts if all(part in before for part in parts) else ()


def _value(flat: dict[str, Any], parts: tuple[str, ...], shape: tuple[int, ...]) -> jax.Array:
    first, *rest = (flat[part] for part in parts)
    if not rest:
        return first[tuple(slice(n) for n in shape)]
    product = jnp.matmul(first, rest[0], precision="highest")
    return product + rest[1] if len(rest) > 1 else product


def _is_derived(name: str, theirs: DecoderConfig) -> bool:
    """Whether a new parameter follows from its matrix."""
    parametrises = name.startswith(f"{SPECTRAL}.") or name.endswith(".gain")
    return parametrises and theirs.weight_reparam == "none"


def _tokens(config: TrainConfig) -> jax.Array:
    return jnp.zeros((1, config.model.context_length), jnp.int32)


def _initial(config: TrainConfig) -> dict[str, Any]:
    """Variables as they start without an origin, by name."""
    model = dataclasses.replace(config.model, scan_layers=True)
    variables = Decoder(model).init(jax.random.key(config.seed), _tokens(config))
    return unstack(config.model, dict(variables))


def _complete(config: TrainConfig, variables: dict[str, Any]) -> TrainState:
    """The state with these variables and those that the decoder makes of them."""
    model = dataclasses.replace(config.model, scan_layers=True)
    _, made = Decoder(model).apply(variables, _tokens(config), mutable=["params", SPECTRAL])
    params = made["params"]
    # The decoder takes a step of power iteration on vectors that it was given.
    spectral = variables[SPECTRAL] or made.get(SPECTRAL, {})
    opt_state: Any = make_optimizer(config.optimizer, config.steps).init(params)
    return TrainState(jnp.int32(0), params, spectral, opt_state)
