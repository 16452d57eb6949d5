"""Snapshots in files that OVITO and HOOMD read: positions, propulsions as velocities, and the box.

A frame is one snapshot of one system, whose name is the type of its particles: first those of all
trajectories at one time, then at the next. Velocities are g; v0 g is the propulsion's part of the
motion. The box is centred, as HOOMD wants it; without a period it is as large as the frame needs.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import Float
from rich.progress import track

from egattn.run.lines import replaced
from experiments.active_matter.simulation import move, stationary, time_steps
from experiments.active_matter.systems import DEFAULTS, Name, System, SystemConfig, make_system


def _gsd() -> Any:
    try:
        import gsd.hoomd
    except ImportError:
        raise ValueError(
            "a file of snapshots needs gsd: install it with `pip install 'egattn[flow]'`"
        ) from None
    return gsd.hoomd


# What a frame says of its system, beside its name and sizes.
_LOGGED = ("speed", "noise", "packing")


@dataclasses.dataclass(frozen=True)
class SimulateConfig:
    """A simulation of many independent trajectories."""

    file: tyro.conf.Positional[Path]
    """File to write, *.gsd; it may not exist."""
    system: Annotated[Name, tyro.conf.Suppress]
    """The system, named before the file."""
    speed: float = 0.2
    """v0, of each component of the propulsion."""
    particles: int = 64
    """How many, of a crystal or cluster."""
    noise: float = 0.1
    """eps, thermal noise of positions."""
    packing: float = 0.1
    """Share of the cluster's box that particles cover."""
    trajectories: int = 64
    """Independent trajectories."""
    times: int = 16
    """Snapshots of each; the file has so many frames of each trajectory."""
    spacing: float | None = None
    """Time between them; by default until they count as independent."""
    seed: int = 0
    """Of starts and noise."""

    def __post_init__(self):
        """Checks the values."""
        for name in ("trajectories", "times"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.spacing is not None and not (self.spacing > 0 and math.isfinite(self.spacing)):
            raise ValueError(f"spacing must be > 0 and finite, got {self.spacing}")
        self.of_system()

    def of_system(self) -> SystemConfig:
        """The system's part."""
        return SystemConfig(self.system, self.speed, self.particles, self.noise, self.packing)


def _preset(system: SystemConfig) -> SimulateConfig:
    known = dataclasses.asdict(system)
    return SimulateConfig(tyro.MISSING, known.pop("name"), **known)


SIMULATIONS = {name: _preset(system) for name, system in DEFAULTS.items()}
"""What each system's simulation is by default."""


def simulate(config: SimulateConfig) -> None:
    """Simulates, and writes the file once it is complete.

    Raises:
      FileExistsError: If the file exists.
      ValueError: If its name is not that of a gsd file.
    """
    if config.file.suffix != ".gsd":
        raise ValueError(f"expected a file named *.gsd, got {config.file}")
    if config.file.exists():
        raise FileExistsError(f"{config.file} exists; remove it, or name another file")
    system = make_system(config.of_system())
    spacing = system.spacing if config.spacing is None else config.spacing
    steps = track(_trajectories(config, system, spacing), "simulating", config.times)
    gsd = _gsd()
    with replaced(config.file) as file, gsd.open(file.name, "w") as frames:
        for index, z in enumerate(steps):
            log = {"time": index * spacing, "seed": config.seed}
            log["dt"] = time_steps(spacing, system.dt)[1]
            log["trajectories"] = config.trajectories
            frames.extend(_frame(system, state, log) for state in z)
    print(f"{config.file}: {config.times * config.trajectories} frames of {config.system}")


def _trajectories(config: SimulateConfig, system: System, spacing: float) -> Iterator[np.ndarray]:
    """States of all trajectories, [trajectories, 2, N, d], time after time."""
    key = jax.random.key(config.seed)
    z = jax.jit(lambda key: stationary(system, key, config.trajectories))(key)
    on = jax.jit(lambda z, key: move(system, z, key, spacing))
    yield np.asarray(z)
    for index in range(1, config.times):
        z = on(z, jax.random.fold_in(key, index))
        yield np.asarray(z)


def _frame(system: System, z: np.ndarray, log: dict[str, Any]) -> Any:
    x = z[0] - _middle(system)
    side = 2 * float(np.abs(x).max()) + 2 if system.period is None else system.period
    frame = _gsd().Frame()
    frame.particles.N = system.particles
    frame.particles.types = [system.config.name]
    frame.particles.position = _in_space(x)
    frame.particles.velocity = _in_space(z[1])
    frame.particles.diameter = np.full(system.particles, 2.0)
    frame.configuration.dimensions = 2
    frame.configuration.box = [side, side if system.dimensions > 1 else 1.0, 0, 0, 0, 0]
    told = {name: getattr(system.config, name) for name in _LOGGED}
    frame.log = {f"system/{name}": np.array([x]) for name, x in (told | log).items()}
    return frame


def _middle(system: System) -> float:
    return 0.0 if system.period is None else system.lower + system.period / 2


def _in_space(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 3 - x.shape[1])))


def read_snapshots(
    path: Path, system: System
) -> tuple[Float[np.ndarray, "frames 2 particles dimensions"], int]:
    """Reads what `simulate` has written: the snapshots, and of how many trajectories they are.

    Args:
      path: The file.
      system: The system that it has to be of.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is no such file, or of another system, or has numbers that are not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    gsd = _gsd()
    try:
        with gsd.open(str(path), "r") as frames:
            states = [_state(path, index, frame, system) for index, frame in enumerate(frames)]
            trajectories = int(frames[0].log.get("system/trajectories", [0])[0]) if states else 0
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} is not a gsd file that can be read: {error}") from None
    if len(states) < 2:
        raise ValueError(f"{path} has {len(states)} snapshots, expected at least 2")
    return np.stack(states), trajectories


def _state(path: Path, index: int, frame: Any, system: System) -> np.ndarray:
    where = f"{path}: frame {index}"
    found = (frame.particles.types[0], frame.particles.N)
    expected = (system.config.name, system.particles)
    if found != expected:
        raise ValueError(
            f"{where} has {found[1]} particles of {found[0]}, expected {expected[1]} of "
            f"{expected[0]}"
        )
    for name in _LOGGED:
        wanted = getattr(system.config, name)
        (value,) = frame.log.get(f"system/{name}", [None])
        if value is None or not np.isclose(value, wanted):
            raise ValueError(f"{where} has {name} {value}, expected {wanted}")
    both = np.stack([frame.particles.position, frame.particles.velocity])
    z = both[..., : system.dimensions] + np.array([_middle(system), 0])[:, None, None]
    if not np.isfinite(z).all():
        raise ValueError(f"{where} has positions or velocities that are not finite")
    if system.exact is None and len(np.unique(z[0], axis=0)) < system.particles:
        raise ValueError(f"{where} has particles in one place, between which no force is defined")
    return z.astype(np.float32)
