"""A decoder with its cache of keys and values, one token per path and step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from egattn.attention.cached import Place
from egattn.model import Decoder
from egattn.model.attention import CACHE
from egattn.model.layers import per_layer
from egattn.model.linear import TRANSPOSED

Cache = dict[str, Any]

# Most paths that share tables: with more, scores of all pairs of paths cost more than moving keys
# and values.
_SHARING = 16


class Prefilled(NamedTuple):
    """A decoder after the prompts."""

    logits: Float[Array, "batch vocab"]
    """Of the token after each prompt."""
    cache: Cache
    """State of `Network.step`, `paths` equal ones per prompt."""


def prepare(model: Decoder, variables: dict[str, Any]) -> tuple[Decoder, dict[str, Any]]:
    """Returns decoder and variables as a loop over tokens reads them fastest.

    `generate` does this in every call if it gets anything else: who calls it often saves a copy of
    the weights each time.

    Args:
      model: The decoder.
      variables: Its variables, as `Decoder.init` returns them.
    """
    c = model.config
    turn = jax.default_backend() == "cpu"

    flat: dict[tuple[str, ...], Any] = dict(flatten_dict(per_layer(c, variables)))
    prepared = {}
    for path, x in flat.items():
        # Normalised matrices, which have a gain beside them, stay as they are.
        if path[-1] == "kernel" and (*path[:-1], "gain") not in flat:
            x = x.astype(c.dtype)
            path, x = ((*path[:-1], TRANSPOSED), x.T) if turn else (path, x)
        prepared[path] = x
    return model.clone(stacked=False), unflatten_dict(prepared)


@dataclasses.dataclass(frozen=True)
class Network:
    """A decoder and its parameters, as the search algorithms of this package call it."""

    model: Decoder
    """The decoder, its layers not stacked, see `prepare`."""
    variables: dict[str, Any]
    """Its variables."""
    paths: int
    """Paths K per prompt."""
    branching: bool = True
    """Whether a path may continue another one, see `reorder`."""

    def prefill(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        room: int,
    ) -> Prefilled:
        """Reads the prompts.

        Args:
          tokens: Prompts [B, T]; what stands behind the end of one is not read.
          lengths: Length of each, at least 1.
          room: Most tokens to be fed to each path.
        """
        c, batch = self.model.config, tokens.shape[0]
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        output, cache = self._apply({}, tokens, positions, last=lengths - 1)
        start: Cache = {"lengths": lengths}
        shape = (batch * self.paths * c.kv_heads, room, c.head_dim)
        if self.branching and self.paths <= _SHARING:
            start["slots"] = jnp.zeros((batch, self.paths, room), jnp.int32)
            shape = (batch * c.kv_heads, room * self.paths, c.head_dim)
        new = {name: jnp.zeros(shape, c.dtype) for name in ("key", "value")}
        start[CACHE] = {
            name: {"attention": {**block["attention"], **new}} for name, block in cache.items()
        }
        return Prefilled(output.logits[:, 0], start)

    def step(
        self, cache: Cache, tokens: Int[Array, "batch paths"], t: Int[Array, ""] | int
    ) -> tuple[Float[Array, "batch paths vocab"], Float[Array, "batch paths layers heads"], Cache]:
        """Feeds one more token per path; returns next logits, attention entropy, and the cache.

        Args:
          cache: From `prefill` or the step before.
          tokens: Token number t of each path.
          t: How many tokens each path was fed before.
        """
        batch, paths = tokens.shape
        positions = jnp.repeat(cache["lengths"] + t, paths)[:, None]
        if "slots" in cache:
            cache = cache | {"slots": cache["slots"].at[:, :, t].set(jnp.arange(paths))}
        place = Place(cache["lengths"], jnp.asarray(t), cache.get("slots"))
        output, new = self._apply(cache[CACHE], tokens.reshape(-1, 1), positions, place=place)
        entropy = output.entropy[..., 0].transpose(1, 0, 2).reshape(batch, paths, *self._heads)
        return output.logits.reshape(batch, paths, -1), entropy, cache | {CACHE: new}

    def reorder(self, cache: Cache, parents: Int[Array, "batch paths"]) -> Cache:
        """Path k continues what path parents[b, k] was; needs `branching`."""
        if "slots" in cache:
            return cache | {"slots": jnp.take_along_axis(cache["slots"], parents[..., None], 1)}
        batch, paths = parents.shape
        rows = (parents + paths * jnp.arange(batch)[:, None]).reshape(-1)

        def move(x: Array) -> Array:
            return x.reshape(rows.size, -1, *x.shape[1:])[rows].reshape(x.shape)

        moved = {}
        for block, kept in cache[CACHE].items():
            new = {name: move(kept["attention"][name]) for name in ("key", "value")}
            moved[block] = {"attention": {**kept["attention"], **new}}
        return cache | {CACHE: moved}

    @property
    def _heads(self) -> tuple[int, int]:
        return self.model.config.num_layers, self.model.config.num_heads

    def _apply(self, cache: Any, tokens, positions, **options):
        output, changed = self.model.apply(
            {**self.variables, CACHE: cache},
            tokens,
            positions,
            method="decode",
            mutable=[CACHE],
            **options,
        )
        return output, changed[CACHE]
