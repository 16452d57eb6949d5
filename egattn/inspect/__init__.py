"""Inspection: what a run, prepared data or a Hugging Face model is, from as little as says it."""

import dataclasses
from pathlib import Path

import tyro

from egattn.data.manifest import MANIFEST_NAME
from egattn.inspect.found import DataFound, HuggingFaceFound
from egattn.inspect.found_run import RunFound


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Says what a run, prepared data or a Hugging Face model is."""

    path: tyro.conf.Positional[Path]
    """Run directory, directory of `egattn prepare`, or one with config.json and safetensors."""
    step: int | None = None
    """Checkpoint of a run; default: the newest intact one."""
    shapes: bool = False
    """For a run: names, shapes and types alone; no array of the checkpoint is read, no checksum
    compared."""
    verify: bool = False
    """For data, or those of a run: read every shard and compare its checksum."""
    json: bool = False
    """Print one JSON object instead of text."""


def inspect(config: InspectConfig) -> RunFound | DataFound | HuggingFaceFound:
    """Says what a directory is; of a run the optimiser's state is not loaded.

    Args:
      config: The directory, and how closely to look.

    Raises:
      FileNotFoundError: If there is no such directory or checkpoint.
      ValueError: If it is none of the three, is damaged, or an option does not apply to it.
    """
    path = config.path
    if not path.is_dir():
        raise FileNotFoundError(f"expected a directory, got {path}, which is none")
    if (path / MANIFEST_NAME).is_file():
        from egattn.inspect.data import inspect_data

        _refuse(config, "step", "shapes")
        return inspect_data(path, config.verify)
    if not (path / "config.json").is_file():
        raise ValueError(
            f"expected a run or a Hugging Face model (config.json) or prepared data "
            f"({MANIFEST_NAME}), got {path}, which has neither file"
        )
    # Only now: prepared data need none of what these load.
    from egattn.convert.weights import read_json
    from egattn.inspect.hugging_face import inspect_hugging_face
    from egattn.inspect.run import inspect_run

    values = read_json(path / "config.json")
    if values.get("model_type") is not None:
        _refuse(config, "step", "shapes", "verify")
        return inspect_hugging_face(path, values)
    if "model" in values:
        return inspect_run(path, config.step, config.shapes, config.verify)
    raise ValueError(
        f"{path / 'config.json'}: expected the model of a run or the model_type of a Hugging Face "
        "model, got neither"
    )


def _refuse(config: InspectConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) not in (None, False):
            raise ValueError(f"{name} is not for {config.path}, see egattn inspect --help")
