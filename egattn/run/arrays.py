"""Arrays on devices while a run goes on: waiting where programs could block each other, copies."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def settle(arrays: Any) -> None:
    """Waits for arrays where programs in flight together could block each other for ever.

    CPU devices share one pool of threads: two programs with collectives can each hold threads that
    the other waits for, until XLA aborts. Accelerators queue programs and need no wait.
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.block_until_ready(arrays)


def copied(state: Any) -> Any:
    """Returns a copy of arrays, on their devices if these have room for it, else on their hosts."""
    layout = jax.tree.map(lambda x: x.sharding, state)
    if _has_room(state):
        copy = jax.device_put(state, layout, may_alias=False)
    else:
        host = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), layout)
        copy = jax.block_until_ready(jax.device_put(state, host))
    settle(copy)
    return copy


def _has_room(state: Any) -> bool:
    """Beside all that the devices have held so far; the same on all processes."""
    memory = jax.local_devices()[0].memory_stats()
    if memory is None:
        return True
    need = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    room = memory["bytes_limit"] - memory["peak_bytes_in_use"] > need
    if jax.process_count() > 1:
        room = bool(multihost_utils.broadcast_one_to_all(np.bool_(room)))
    return room
