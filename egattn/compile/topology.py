"""TPU topologies: their chips as devices to compile for, with no TPU in sight."""

import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from jax.experimental import topologies


class Chip(NamedTuple):
    """What is known of a kind of chip."""

    name: str
    """The maker's name."""
    hbm_gib: float
    """Memory of one chip, GiB."""
    ici_bytes: float
    """Links to other chips, all together and one way, bytes/s."""
    axes: int
    """Dimensions of its torus."""
    pod: int
    """Chips of the largest pod."""

    @property
    def hbm_bytes(self) -> int:
        """Memory of one chip, bytes."""
        return int(self.hbm_gib * 2**30)


# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, which state links both ways together.
CHIPS = {
    "v4": Chip("TPU v4", 32, 300e9, 3, 4096),
    "v5e": Chip("TPU v5e", 16, 200e9, 2, 256),
    "v5p": Chip("TPU v5p", 95, 600e9, 3, 8960),
    "v6e": Chip("TPU v6e", 32, 400e9, 2, 256),
}

# The TPU compiler asks the cloud which chips are here, writes about it, and admits one process.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5p:4x4x4".

    Raises:
      ValueError: If the name is not of such a form, or larger than a pod.
    """
    kind, _, grid = topology.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (chip.axes - 1), grid):
        raise ValueError(_expected(topology))
    size = math.prod(map(int, grid.split("x")))
    if size > chip.pod:
        raise ValueError(f"expected at most the {chip.pod} chips of a {kind} pod, got {size}")
    return chip


def describe(topology: str) -> tuple[Any, ...]:
    """Returns one device per chip of a topology such as "v5p:4x4x4": good to compile for.

    Raises:
      ValueError: If there is no such topology.
      NotImplementedError: If the TPU compiler is not installed.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise NotImplementedError(
            "compiling for TPUs needs libtpu, got none: install egattn[tpu] (Linux on x86-64)"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Otherwise a v4 chip's two cores are two devices; all the later ones are one.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if "lockfile" in reason:
            raise OSError(
                f"another process holds libtpu; set ALLOW_MULTIPLE_LIBTPU_LOAD=1 ({reason})"
            ) from None
        raise ValueError(f"{_expected(topology)}: {reason}") from None
    return tuple(description.devices)


def libtpu_version() -> str:
    """Version of the TPU compiler."""
    return importlib.metadata.version("libtpu")


def _expected(topology: str) -> str:
    forms = (f"{kind}:{'x'.join('XYZ'[: chip.axes])}" for kind, chip in CHIPS.items())
    return (
        f"expected a topology {' or '.join(forms)} of whole hosts, e.g. v5e:4x4 or v5p:4x4x4, "
        f"got {topology!r}"
    )
