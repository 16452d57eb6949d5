"""Networks: from a state to the correction of the score, s = b / D + network, so v = -D network.

Each has two copies, for positions and for propulsions, and returns with their values [2, N, d] the
entropy of each row of attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import egattn
from experiments.active_matter.config import TrainConfig
from experiments.active_matter.features import Features, flow_features, local_features
from experiments.active_matter.systems import RING, System, mirror

Output = tuple[Float[Array, "2 particles dimensions"], Float[Array, "layers heads rows"]]

# How far particles of the cluster are from the middle of the trap, about.
_PLACE = 5.0
_HARMONICS = 4
# Added to the squares of vector features of length 1; float32 knows them to a few times the least.
_RIDGES = (10.0 ** np.arange(-5, 3)).astype(np.float32)


class MLP(nn.Module):
    """Hidden layers with GELU, then a linear one."""

    width: int
    depth: int
    outputs: int

    @nn.compact
    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Maps the last axis."""
        for _ in range(self.depth):
            x = nn.gelu(nn.Dense(self.width, kernel_init=_fan_in())(x))
        return nn.Dense(self.outputs, kernel_init=_fan_in())(x)


def _fan_in() -> Callable:
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class OddMLP(nn.Module):
    """m(z) - m(z*) of one particle, with z* its mirror image: the symmetry is exact.

    Reference:
      Boffi & Vanden-Eijnden, arXiv 2309.12991, the network of the ring.
    """

    width: int
    depth: int
    ring: bool
    """Whether the position is an angle, which enters by its harmonics."""

    @nn.compact
    def __call__(self, z: Float[Array, "2 1 dimensions"]) -> Float[Array, "1 dimensions"]:
        """Returns one copy's value."""
        mlp = MLP(self.width, self.depth, z.shape[-1])
        if not self.ring:
            return mlp(_flat(z)) - mlp(_flat(-z))
        return mlp(_harmonics(z)) - mlp(_harmonics(mirror(z)))


def _flat(z: Array) -> Array:
    return z.swapaxes(0, 1).reshape(1, -1)


def _harmonics(z: Array) -> Array:
    angles = z[0] * (2 * jnp.pi / RING) * np.arange(1, _HARMONICS + 1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), z[1]], -1)


class Block(nn.Module):
    """Attention of all particles to all, then an MLP, each with its norm after it.

    Reference:
      Boffi & Vanden-Eijnden, arXiv 2309.12991, the encoder block.
    """

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "particles width"]) -> tuple[Array, Array]:
        """Returns tokens, and the entropy [heads, particles]."""
        count, width = x.shape
        project = functools.partial(nn.Dense, width, kernel_init=_fan_in())
        query, key, value = (
            project(name=name)(x).reshape(1, count, self.heads, -1) for name in "qkv"
        )
        # The definition: kernels know no derivatives forward, which divergences take.
        out, entropy = egattn.entropy_attention(
            query, key, value, causal=False, implementation="reference"
        )
        x = nn.LayerNorm()(x + project(name="o")(out.reshape(count, width)))
        return nn.LayerNorm()(x + MLP(width, 1, width)(x)), entropy[0]


class Transformer(nn.Module):
    """Adds up a particle's vector features, with weights that attention to all others chooses.

    out_i = sum_f (a_f + w_f(h_i)) phi_if + o(h_i), with h the tokens after the blocks. The constant
    weights a make the linear answer exact, which products in few bits would blur.
    """

    width: int
    layers: int
    heads: int
    sites: bool
    """Whether particles can be told apart, by the sites that they belong to."""

    @nn.compact
    def __call__(self, features: Features) -> tuple[Array, Array]:
        """Returns one copy's value [N, d], and the entropy [layers, heads, N]."""
        vectors, scalars = features
        count, kinds, dimensions = vectors.shape
        x = jnp.concatenate([vectors.reshape(count, -1), scalars], -1)
        x = MLP(self.width, 1, self.width)(x)
        if self.sites:
            x = x + self.param("site", nn.initializers.normal(1.0), (count, self.width))
        entropies = []
        for layer in range(self.layers):
            x, entropy = Block(self.heads, name=f"block_{layer}")(x)
            entropies.append(entropy)
        zero = nn.initializers.zeros
        linear = self.param("linear", zero, (kinds,))
        out = nn.Dense(kinds + dimensions, kernel_init=zero)(MLP(self.width, 1, self.width)(x))
        weights, free = linear + out[:, :kinds], out[:, kinds:]
        return jnp.einsum("nf,nfd->nd", weights, vectors) + free, jnp.stack(entropies)


class Network(nn.Module):
    """The network of a system: two copies of `OddMLP` or `Transformer`."""

    system: System
    config: TrainConfig

    @nn.compact
    def __call__(self, z: Float[Array, "2 particles dimensions"]) -> Output:
        """Returns the correction of a state, and the entropy of both copies."""
        c = self.config
        if self.system.particles == 1:
            odd = _twice(OddMLP, c.width, c.layers, self.system.period is not None)
            return odd(z), jnp.zeros((0, 0, 1), z.dtype)
        features = scaled(self.system, z, c.flow_features)
        sites = self.system.exact is not None
        out, entropy = _twice(Transformer, c.width, c.layers, c.heads, sites)(features)
        return out, entropy.reshape(-1, *entropy.shape[2:])


def _twice(kind: type[nn.Module], *args: Any) -> nn.Module:
    """Two copies with parameters of their own, whose outputs are stacked."""
    every: Any = None  # Both copies read the same input; the argument is annotated without None.
    both: Any = nn.vmap(
        kind, in_axes=every, axis_size=2, variable_axes={"params": 0}, split_rngs={"params": True}
    )
    return both(*args)


def scaled(system: System, z: Float[Array, "2 particles dimensions"], flows: bool) -> Features:
    """A transformer's inputs, in units in which they are of order 1."""
    vectors, scalars = local_features(system, z)
    if system.exact is None:
        vectors = vectors.at[:, 0].divide(_PLACE)
    if flows:
        vectors = jnp.concatenate([vectors, flow_features(system, z)], 1)
    return Features(vectors, scalars)


def linear_answer(
    network: Network, params: Any, z: Float[Array, "batch 2 particles dimensions"], key: Array
) -> Any:
    """Parameters whose constant weights are the best ones, for a transformer.

    Score matching of s = b / D + sum_f a_f phi_f is least squares in a, with the normal equations
    E[phi_f . phi_f'] a_f' = -E[phi_f . b / D + div phi_f], here for positions and propulsions. The
    fields of flows are nearly parallel: gradient steps would take long to tell them apart.

    Args:
      network: The network.
      params: Its parameters, with an output of 0 besides.
      z: States.
      key: For the estimates of the divergences.
    """
    system = network.system
    # One state tells nothing of what it leaves out.
    if system.particles == 1 or len(z) < 2:
        return params

    def moments(z, key):
        signs = jax.random.rademacher(key, z.shape, z.dtype)

        def told(z):
            return scaled(system, z, network.config.flow_features).vectors

        # Each copy has the divergence by its own variables only.
        fields, along_x = jax.jvp(told, (z,), (signs.at[1].set(0),))
        _, along_g = jax.jvp(told, (z,), (signs.at[0].set(0),))
        change = jnp.einsum("knfd,knd->kf", jnp.stack([along_x, along_g]), signs)
        drive = jnp.einsum("nfd,knd->kf", fields, system.drift(z) / system.diffusion)
        return jnp.einsum("nfd,ned->fe", fields, fields), change + drive

    # A few states at a time: flows and their tangents of all would not fit.
    pairs = z, jax.random.split(key, len(z))
    found = jax.lax.map(lambda pair: moments(*pair), pairs, batch_size=16)
    half = len(z) // 2
    halves = slice(half), slice(len(z) - half, None)
    parts = [[x[rows].mean(0) for x in found] for rows in halves]
    weights = jnp.stack([_least_squares(parts[0], parts[1], copy) for copy in range(2)])
    (name,) = params
    return {name: {**params[name], "linear": weights}}


def _least_squares(one: Any, other: Any, copy: int) -> Array:
    """Minimises a.S a + 2 a.b, with the ridge that does best on the other half of the states.

    Fields are nearly parallel where particles are apart, and few states tell them apart badly.
    """
    squares = jnp.stack([one[0], other[0]])
    sides = jnp.stack([one[1][copy], other[1][copy]])
    scale = jnp.sqrt(jnp.diagonal(squares.mean(0)))
    scale = jnp.where(scale > 0, scale, 1)
    squares, sides = squares / (scale[:, None] * scale), sides / scale

    def answer(squares, sides, ridge):
        return -jnp.linalg.solve(squares + ridge * jnp.eye(len(scale)), sides)

    def loss(a, squares, sides):
        return a @ squares @ a + 2 * a @ sides

    def unseen(ridge):
        found = jax.vmap(answer, (0, 0, None))(squares, sides, ridge)
        return jax.vmap(loss)(found, squares[::-1], sides[::-1]).sum()

    best = jnp.asarray(_RIDGES)[jnp.nanargmin(jax.vmap(unseen)(_RIDGES))]
    return answer(squares.mean(0), sides.mean(0), best) / scale


def field(
    network: Network, params: Any
) -> Callable[[Float[Array, "2 particles dimensions"]], Float[Array, "..."]]:
    """The network's values alone, for one state."""
    return lambda z: network.apply({"params": params}, z)[0]


def attention_entropy(network: Network, params: Any, z: Float[Array, "batch ..."]) -> Array:
    """Mean entropy of each head [layers, heads] over a batch, in nats; copies are layers too."""

    def of_one(z: Array) -> Array:
        _, entropy = network.apply({"params": params}, z)
        return jnp.asarray(entropy)

    return jax.vmap(of_one)(z).mean((0, -1))
