"""What this machine is: packages, which are to be those that egattn asks for, and devices."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import jax
from packaging.requirements import Requirement

from egattn.doctor.row import Row

# Not in egattn's requirements, but results come from them.
_BENEATH = ("jaxlib", "jax-cuda13-plugin", "libtpu", "numpy")

# Where Linux shows an accelerator, jax's names of it, and the extra it needs.
_ACCELERATORS = {
    "NVIDIA GPU": (Path("/dev/nvidia0"), ("cuda", "gpu"), "egattn[cuda13]"),
    "TPU": (Path("/dev/accel0"), ("tpu",), "egattn[tpu]"),
}


def check_packages() -> list[Row]:
    """A row for Python and each package, by the requirements in egattn's own metadata."""
    rows = [Row("Python", True, platform.python_version())]
    try:
        needs = importlib.metadata.requires("egattn") or []
    except importlib.metadata.PackageNotFoundError:
        return [*rows, Row("egattn", None, "not installed: what it requires is not known")]
    rows.append(Row("egattn", True, importlib.metadata.version("egattn")))
    rows += [
        _check(need)
        for need in map(Requirement, needs)
        if need.marker is None or need.marker.evaluate({"extra": ""})
    ]
    installed = ((name, _version(name)) for name in _BENEATH)
    return [*rows, *(Row(name, True, version) for name, version in installed if version)]


def _check(need: Requirement) -> Row:
    version = _version(need.name)
    if version is None:
        return Row(need.name, False, f"not installed, egattn needs {need.specifier}")
    if need.specifier.contains(version, prereleases=True):
        return Row(need.name, True, version)
    return Row(need.name, False, f"{version}, egattn needs {need.specifier}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_devices() -> list[Row]:
    """Rows for the devices jax sees, their memory, and an accelerator that it does not see."""
    devices = jax.local_devices()
    kinds = {device.device_kind for device in devices}
    count = f"{len(devices)} x {', '.join(sorted(kinds))}"
    if jax.process_count() > 1:
        count += f" of {jax.device_count()} in {jax.process_count()} processes"
    rows = [Row("devices", True, f"{count} ({jax.default_backend()})")]
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        rows.append(Row("memory of a device", True, f"{limit / 2**30:.1f} GiB"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows.append(Row("host", True, f"{cores} cores, {memory / 2**30:.1f} GiB, {platform.machine()}"))
    return [*rows, *_unseen_accelerators()]


def _unseen_accelerators() -> Iterator[Row]:
    """Rows of accelerators that are here and that jax does not use."""
    if jax.default_backend() != "cpu":
        return
    chosen = os.environ.get("JAX_PLATFORMS", "")
    for name, (path, platforms, extra) in _ACCELERATORS.items():
        if not path.exists():
            continue
        if chosen and not any(platform in chosen for platform in platforms):
            yield Row(name, None, f"here, not used: JAX_PLATFORMS is {chosen}")
        else:
            yield Row(name, False, f"here, but jax runs on the CPU: pip install '{extra}'")
