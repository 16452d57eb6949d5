"""What `inspect` finds in a run, from one array up to the whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from egattn.model import DecoderConfig
    from egattn.train.config import PenaltyConfig


class Size(NamedTuple):
    """How large an array's numbers are; NaN or infinite where they are not finite."""

    norm: float
    """Root of the sum of squares."""
    rms: float
    """Root of the mean square."""
    nonfinite: int
    """How many are not finite."""


class Variable(NamedTuple):
    """An array of a checkpoint, stacked layers together."""

    name: str
    """Path within the variables; without `params/`."""
    layers: str | None
    """Those that it is of, e.g. "0-2"; None of what is in no layer."""
    shape: list[int]
    """Its shape, layers first."""
    dtype: str
    """Type of its numbers."""
    elements: int
    """Their number."""
    size: Size | None
    """None if the array was not read."""


class Parameters(NamedTuple):
    """The parameters of a checkpoint."""

    count: int
    """Their number."""
    padding: int
    """How many of them no token uses."""
    table: list[Variable]
    """All arrays, also those that are no parameters."""


class Spread(NamedTuple):
    """Values that a layer has learned for one quantity; NaN if one of them is not finite."""

    layer: int | None
    """Counted from 0; None if all layers share the value."""
    min: float
    """Least."""
    median: float
    """Median."""
    max: float
    """Largest."""


class Checkpoints(NamedTuple):
    """The checkpoints of a run."""

    steps: list[int]
    """Steps that one is saved of."""
    checked: bool
    """Whether checksums were compared to find the newest intact one; else it is complete."""
    newest: int | None
    """Its step; None if there is none."""
    problems: list[str]
    """What is wrong with newer ones, or why there is none."""


class DataOfRun(NamedTuple):
    """The data that a run was trained on, or is to be evaluated on."""

    path: Path
    """Where they were."""
    sha256: str | None
    """Their checksum then; None of a run that was trained elsewhere."""
    state: Literal["missing", "damaged", "other", "present", "same"]
    """What is there now; "present" where there is no checksum to compare with."""
    verified: bool | None = None
    """Whether the shards' checksums were compared; None if the data cannot be read."""
    problem: str | None = None
    """What is damaged."""


class FromSeed(NamedTuple):
    """A run began with random parameters."""

    kind = "seed"
    seed: int
    """Chooses them."""


class FromRun(NamedTuple):
    """A run began with the weights of another one."""

    kind = "run"
    path: Path
    """Directory of that run."""
    sha256: str | None
    """Checksum of its checkpoint; None if the run has not started yet."""


class FromHuggingFace(NamedTuple):
    """A run was converted."""

    kind = "hugging_face"
    path: Path
    """Where the other files of the model are."""


Origin = FromSeed | FromRun | FromHuggingFace


class Evaluation(NamedTuple):
    """The last evaluation that a run has logged; numbers that were not finite are NaN."""

    step: int
    """Steps trained before it."""
    windows: int
    """Validation windows."""
    loss: float
    """Cross entropy, nats per token."""
    perplexity: float
    """Its exponential."""
    bits_per_byte: float
    """Cross entropy in bits per byte of text."""
    max_entropy: float
    """Entropy of a row that attends uniformly to the whole context, nats."""
    uniform_entropy: float
    """Mean row entropy of a causal head that attends uniformly, nats."""
    head_entropy: np.ndarray
    """Mean row entropy of each head [L, H], nats."""
    range_counts: np.ndarray
    """Heads per quarter of the largest entropy [4], see `egattn.entropy.range_counts`."""


class RunFound(NamedTuple):
    """A run."""

    kind = "run"
    path: Path
    """The directory."""
    preset: str
    """Architecture that the model started from."""
    step: int | None
    """Step of the checkpoint looked into; None if there is none."""
    steps: int
    """Steps that the run is to take."""
    tokens_seen: int | None
    """Training tokens up to `step`."""
    architecture: dict[str, str]
    """See `architecture`."""
    model: "DecoderConfig"
    """The decoder's configuration."""
    penalty: "PenaltyConfig"
    """The entropy penalty's."""
    data: DataOfRun
    """The training data."""
    initialised_from: Origin
    """Where the first parameters came from."""
    checkpoints: Checkpoints
    """What is saved."""
    parameters: Parameters | None
    """Those of the checkpoint; None if there is none."""
    learned: dict[str, list[Spread]] | None
    """Learned quantities by name, a value per layer that has one; None if no array was read."""
    evaluation: Evaluation | None
    """None if none was logged."""
