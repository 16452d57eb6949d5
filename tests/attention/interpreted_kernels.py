"""Runs the Hopper kernels in Pallas's GPU interpreter and prints their errors as JSON.

The interpreter lacks a matrix product whose left operand is in registers, and rejects a loading
warpgroup that does not wait for the last blocks to be read: both are amended here.
"""

import functools
import importlib
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import oracle
from tests.oracle import Options

CASES = {
    "short": Options(128, batch=1, group=1, head_dim=64, temperature="per_row"),
    "short_full": Options(100, batch=1, group=1, head_dim=64, causal=False),
    "short_segments": Options(70, group=1, kv_heads=1, head_dim=64, layout="segments"),
    "grouped": Options(200, batch=1, kv_heads=1, head_dim=64, temperature="per_head"),
    "full": Options(190, batch=1, kv_heads=1, group=1, head_dim=64, causal=False),
    "segments": Options(150, kv_heads=1, group=1, head_dim=64, layout="segments"),
    "more_keys": Options(100, batch=1, kv_heads=1, group=1, head_dim=64, layout="more_keys"),
    "fewer_keys": Options(150, batch=1, kv_heads=1, group=1, head_dim=64, layout="fewer_keys"),
    "wide_heads": Options(192, batch=1, kv_heads=1, group=1, head_dim=128, scale_factor=0.6),
    "zero_scale": Options(130, batch=1, kv_heads=1, group=1, head_dim=64, scale_factor=0.0),
}


def amend_interpreter() -> None:
    """Lets `wgmma` take its left operand from registers, and barriers go unobserved at the end."""
    package = "jax._src.pallas.mosaic_gpu.interpret"
    callbacks: Any = importlib.import_module(f"{package}.gpu_callbacks")
    memory: Any = importlib.import_module(f"{package}.shared_memory")
    from_shared = callbacks.wgmma

    def wgmma(*, token, mesh_location, thread, source_info=None, **refs):
        left = refs["a_allocation_key_as_array"]
        if left.ndim == 1:
            return from_shared(
                token=token,
                mesh_location=mesh_location,
                thread=thread,
                source_info=source_info,
                **refs,
            )
        shared = callbacks._get_shared_memory()
        info = memory.GPULoggingInfo(mesh_location, thread, source_info)

        def buffer(name):
            key = memory.HostAllocationKey.from_array(refs[f"{name}_allocation_key_as_array"])
            transforms = callbacks._remove_noop_transforms(refs[f"{name}_transforms"])
            access = shared.access(key, jax.tree.map(int, transforms))
            return key, access, shared.get_buffer_content(key, access, thread, logging_info=info)[0]

        _, _, right = buffer("b")
        key, access, total = buffer("acc")
        wide = np.asarray(left, np.float32) @ np.asarray(right, np.float32)
        shared.store_buffer_content(key, access, total + wide, thread, logging_info=info)
        return token

    def deallocate(self):
        with self.cv:
            self.ref_count -= 1

    callbacks.wgmma = wgmma
    memory.Barrier.deallocate = deallocate


def errors(options: Options) -> dict[str, float]:
    """Errors of output, entropy and gradients, as the battery of all implementations has them."""
    plgpu: Any = importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    pallas_gpu: Any = importlib.import_module("egattn.attention.pallas_gpu")
    problem = options.problem().rounded()
    expected = oracle.solve(problem)
    names = ("query", "key", "value")
    arrays = {name: jnp.asarray(getattr(problem, name), jnp.bfloat16) for name in names}
    scale = options.head_dim**-0.5 if problem.scale is None else problem.scale
    ids = None if problem.segment_ids is None else jnp.asarray(problem.segment_ids)
    attend = functools.partial(
        pallas_gpu.attend,
        segment_ids=ids,
        causal=problem.causal,
        interpret=plgpu.InterpretGPUParams(),
    )

    def run(temperature, query, key, value):
        return attend(query, key, value, scale / temperature)

    temperature = jnp.asarray(problem.temperatures(), jnp.float32)
    (out, entropy), pullback = jax.vjp(run, temperature, *arrays.values())
    weights = jnp.asarray(problem.out_cotangent, jnp.bfloat16), problem.entropy_cotangent
    dtemperature, *rest = pullback((weights[0], jnp.asarray(weights[1], jnp.float32)))
    result = {
        "out": _relative(out, expected.out),
        "entropy": float(np.abs(np.asarray(entropy, np.float64) - expected.entropy).max()),
        "blind": float(np.abs(np.asarray(entropy)[expected.entropy == 0]).max(initial=0.0)),
    }
    gradients: dict[str, Any] = dict(zip(names, rest, strict=True))
    if problem.temperature is not None:
        shape = np.shape(problem.temperature)
        lead = tuple(range(dtemperature.ndim - len(shape)))
        total = np.asarray(dtemperature, np.float64).sum(lead)
        spread = tuple(i for i, n in enumerate(shape) if n == 1)
        gradients["temperature"] = total.sum(spread, keepdims=True) if spread else total
    for name, gradient in gradients.items():
        result[name] = _relative(gradient, expected.gradients[name], expected.terms[name])
    return {"temperature": 0.0, **result}


def _relative(actual, expected, terms: Any = 0.0) -> float:
    return oracle.relative_error(np.asarray(actual, np.float64), expected, terms)


if __name__ == "__main__":
    amend_interpreter()
    json.dump({name: errors(options) for name, options in CASES.items()}, sys.stdout)
