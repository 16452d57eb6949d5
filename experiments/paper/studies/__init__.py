"""The paper's tables and figures, one module per study; `python -m experiments.paper run STUDY`."""

import importlib

from experiments.paper.study import Training

STUDIES = (
    "rates",
    "nonlinearity",
    "normalization",
    "entropy_guided",
    "beyond",
    "tolerance",
    "relu",
    "depth",
    "context",
    "lower_rate",
    "verdicts",
    "warmup",
    # Last, as it needs text of its own.
    "long",
)


def load(name: str) -> tuple[Training, ...]:
    """The trainings of a study.

    Raises:
      ValueError: If there is no such study.
    """
    if name not in STUDIES:
        raise ValueError(f"no study {name!r}; there are {', '.join(STUDIES)} and all")
    return importlib.import_module(f"{__name__}.{name}").TRAININGS


def every_training() -> list[Training]:
    """The trainings of all studies, once each."""
    return list(dict.fromkeys(training for name in STUDIES for training in load(name)))
