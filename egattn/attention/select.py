"""Which implementations can run a problem where it is to run, and which one does by default."""

import importlib
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.core import Tracer

from egattn._spelling import unknown

Implementation = Literal["reference", "chunked", "cudnn", "pallas_gpu", "pallas_tpu"]
NAMES: tuple[str, ...] = get_args(Implementation)

Platform = Literal["cpu", "gpu", "tpu"]
# Fastest first; the last one runs everything, on any platform.
_PREFERRED: dict[str, tuple[str, ...]] = {
    "cpu": ("chunked",),
    "gpu": ("pallas_gpu", "cudnn", "chunked"),
    "tpu": ("pallas_tpu", "chunked"),
}
_HOPPER = (9, 0)


class Problem(NamedTuple):
    """All that decides whether an implementation can run."""

    platform: str
    """Where it will run: "cpu", "gpu" or "tpu"."""
    capability: tuple[int, int] | None
    """Compute capability of an NVIDIA GPU."""
    jax_version: tuple[int, ...]
    dtype: str
    """Of query, key and value; "bfloat16/float32" where they differ."""
    length: int
    """Queries."""
    source: int
    """Keys."""
    head_dim: int
    causal: bool
    segments: bool
    """Whether positions have segment ids."""

    @classmethod
    def of(cls, query, key, value, *, causal: bool, segment_ids, platform=None) -> "Problem":
        """Describes a call; arguments as of `implementations`."""
        where = _device(query) if platform is None else (platform, _capability(platform))
        dtypes = dict.fromkeys(str(x.dtype) for x in (query, key, value))
        return cls(
            *where,
            jax_version=jax.__version_info__,
            dtype="/".join(dtypes),
            length=query.shape[1],
            source=key.shape[1],
            head_dim=query.shape[3],
            causal=causal,
            segments=segment_ids is not None,
        )


def implementations(
    query: Any,
    key: Any,
    value: Any,
    *,
    causal: bool = True,
    segment_ids: Any = None,
    platform: Platform | None = None,
) -> dict[str, str | None]:
    """Says of every implementation of `entropy_attention` whether it can run these arguments.

    Args:
      query: Queries [B, T, H, D]: an array or anything with its shape and dtype, for example
        `jax.ShapeDtypeStruct`; likewise the others.
      key: Keys [B, S, K, D].
      value: Values [B, S, K, D].
      causal: As of `entropy_attention`.
      segment_ids: As of `entropy_attention`.
      platform: Where it shall run; "gpu" stands for a Hopper GPU in a process that has no GPU.
        Default: where a call now would run.

    Returns:
      None for each that can run, and for each other what it lacks. The first None is the default.

    Raises:
      ValueError: If there is no such platform.
    """
    if platform not in (None, *_PREFERRED):
        raise ValueError(unknown("platform", platform, _PREFERRED))
    problem = Problem.of(
        query, key, value, causal=causal, segment_ids=segment_ids, platform=platform
    )
    preferred = _preferred(problem)
    names = (*preferred, *(name for name in NAMES if name not in preferred))
    return {name: _LACKS[name](problem) for name in names}


def select(name: str | None, problem: Problem) -> Callable:
    """Returns the named implementation, or by default the fastest that can run the problem.

    Raises:
      ValueError: If there is no such name.
      NotImplementedError: If the named one cannot run the problem.
    """
    if name is None:
        able = (name for name in _preferred(problem) if not _LACKS[name](problem))
        return _load(next(able))
    if name not in NAMES:
        raise ValueError(unknown("implementation", name, NAMES))
    lacks = _LACKS[name](problem)
    if lacks:
        able = ", ".join(other for other in NAMES if not _LACKS[other](problem))
        raise NotImplementedError(f"implementation {name!r} {lacks}; these can run it: {able}")
    return _load(name)


def _preferred(problem: Problem) -> tuple[str, ...]:
    return _PREFERRED.get(problem.platform, _PREFERRED["cpu"])


def _load(name: str) -> Callable:
    # On first use: Pallas takes seconds to import.
    return importlib.import_module(f"egattn.attention.{name}").attend


def _lacks_nothing(problem: Problem) -> None:
    del problem


def _cudnn_lacks(problem: Problem) -> str | None:
    p = problem
    capability = p.capability or (0, 0)
    widest = 256 if capability >= _HOPPER else 128
    return _first_unmet(
        (capability >= (8, 0), "an NVIDIA GPU of compute capability 8.0 or newer", _where(p)),
        (p.dtype in ("bfloat16", "float16"), "bfloat16 or float16", p.dtype),
        (
            p.head_dim % 8 == 0 and p.head_dim <= widest,
            f"a head_dim that is a multiple of 8 up to {widest}",
            p.head_dim,
        ),
        # cuDNN aligns a causal mask at the start, and packs documents only in tables of lengths.
        (
            not p.causal or p.length == p.source,
            "as many keys as queries for a causal mask",
            f"{p.source} and {p.length}",
        ),
        (not p.segments, "one document per example", "segment_ids"),
    )


def _pallas_gpu_lacks(problem: Problem) -> str | None:
    p = problem
    version = ".".join(map(str, p.jax_version))
    return _first_unmet(
        (p.capability == _HOPPER, "an NVIDIA Hopper GPU, compute capability 9.0", _where(p)),
        (p.jax_version >= (0, 11), "jax 0.11 or newer (Python 3.12)", version),
        (p.dtype == "bfloat16", "bfloat16", p.dtype),
        (p.head_dim in (64, 128), "a head_dim of 64 or 128", p.head_dim),
    )


def _pallas_tpu_lacks(problem: Problem) -> str | None:
    p = problem
    return _first_unmet(
        (p.platform == "tpu", "a TPU", f"platform {p.platform!r}"),
        (p.dtype in ("float32", "bfloat16"), "float32 or bfloat16", p.dtype),
    )


_LACKS: dict[str, Callable[[Problem], str | None]] = {
    "reference": _lacks_nothing,
    "chunked": _lacks_nothing,
    "cudnn": _cudnn_lacks,
    "pallas_gpu": _pallas_gpu_lacks,
    "pallas_tpu": _pallas_tpu_lacks,
}


def _first_unmet(*needs: tuple[bool, str, Any]) -> str | None:
    return next((f"needs {need}, got {got}" for met, need, got in needs if not met), None)


def _where(p: Problem) -> str:
    """The problem's device for people."""
    if p.capability is None:
        return f"platform {p.platform!r}"
    return f"compute capability {p.capability[0]}.{p.capability[1]}"


def _device(query) -> tuple[str, tuple[int, int] | None]:
    """Platform and capability of the device that a call with this query will run on."""
    if isinstance(query, jax.Array) and not isinstance(query, Tracer):
        device = next(iter(query.devices()))
    else:
        # Compiling for another machine, the default backend is this one's: the mesh knows better.
        device = jax.sharding.get_abstract_mesh().abstract_device or _default_device()
    return device.platform, _capability(device.platform)


def _default_device() -> Any:
    config: Any = jax.config
    chosen = config.jax_default_device
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return chosen


def _capability(platform: str) -> tuple[int, int] | None:
    """Compute capability of this process's GPU; without one, of the GPU to compile for."""
    if platform != "gpu":
        return None
    if jax.default_backend() != "gpu":
        return _HOPPER
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    # AMD's look different.
    numbers = re.fullmatch(r"(\d+)\.(\d+)", capability)
    return (int(numbers[1]), int(numbers[2])) if numbers else None
