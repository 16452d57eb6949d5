"""Families of distributions that the cross-entropy method fits to the best of their samples."""

import functools
from typing import NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp, ndtr
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float

# Unless told not to, GPUs and TPUs round the factors of a float32 product to ten bits or fewer: a
# fit to samples closer together than that would lose where they are.
weighted_sum = functools.partial(jnp.einsum, precision="highest")


@runtime_checkable
class Family(Protocol):
    """A member of a family: a tree of arrays, so that it can be carried through jit and scan."""

    def sample(self, key: Array, count: int) -> Float[Array, "samples dims"]:
        """Draws independent samples."""
        ...

    def log_density(self, x: Float[Array, "samples dims"]) -> Float[Array, " samples"]:
        """Log of the density, -inf outside the support."""
        ...

    def fitted(
        self,
        key: Array,
        x: Float[Array, "samples dims"],
        log_weights: Float[Array, " samples"],
        smoothing: float | Float[Array, ""],
    ) -> Self:
        """The member of greatest weighted likelihood, `smoothing` (1 is all) of the way to it.

        Weights that are all 0 leave it as it is.
        """
        ...


class Uniform(NamedTuple):
    """Uniform on a box; nothing to fit, so it serves as nominal distribution only."""

    low: Float[Array, " dims"]
    """Lower corner."""
    high: Float[Array, " dims"]
    """Upper corner."""

    def sample(self, key: Array, count: int) -> Float[Array, "samples dims"]:
        """See `Family`."""
        draws = jax.random.uniform(key, (count, self.low.shape[0]), self.low.dtype)
        return self.low + draws * (self.high - self.low)

    def log_density(self, x: Float[Array, "samples dims"]) -> Float[Array, " samples"]:
        """See `Family`."""
        return jnp.where(_inside(self, x), -jnp.sum(jnp.log(self.high - self.low)), -jnp.inf)


class Exponential(NamedTuple):
    """Independent exponentials."""

    mean: Float[Array, " dims"]
    """Means, > 0."""

    def sample(self, key: Array, count: int) -> Float[Array, "samples dims"]:
        """See `Family`."""
        return self.mean * jax.random.exponential(key, (count, *self.mean.shape), self.mean.dtype)

    def log_density(self, x: Float[Array, "samples dims"]) -> Float[Array, " samples"]:
        """See `Family`."""
        log_p = -jnp.sum(x / self.mean + jnp.log(self.mean), -1)
        return jnp.where((x >= 0).all(-1), log_p, -jnp.inf)

    def fitted(
        self,
        key: Array,
        x: Float[Array, "samples dims"],
        log_weights: Float[Array, " samples"],
        smoothing: float | Float[Array, ""],
    ) -> Self:
        """See `Family`."""
        weights, some = _normalised(log_weights)
        mean = self.mean + smoothing * (weighted_sum("n,nd->d", weights, x) - self.mean)
        return self._replace(mean=jnp.where(some, mean, self.mean))


class TruncatedNormal(NamedTuple):
    """Independent normals confined to a box.

    Samples are not clipped: that would put point masses on the box's sides. Fitted by the moments
    of the samples, which are the maximum likelihood where the sides are far away.
    """

    mean: Float[Array, " dims"]
    """Means before truncation."""
    scale: Float[Array, " dims"]
    """Standard deviations before truncation, > 0."""
    low: Float[Array, " dims"]
    """Lower corner."""
    high: Float[Array, " dims"]
    """Upper corner."""
    floor: Float[Array, ""] | float = 1e-15
    """Least standard deviation."""

    @classmethod
    def over(
        cls,
        low: Float[Array, " dims"],
        high: Float[Array, " dims"],
        floor: Float[Array, ""] | float = 1e-15,
    ) -> Self:
        """Centred on a box, with half its width as standard deviation."""
        return cls((low + high) / 2, (high - low) / 2, low, high, floor)

    def sample(self, key: Array, count: int) -> Float[Array, "samples dims"]:
        """See `Family`."""
        low, high = self._standard()
        shape = (count, self.mean.shape[0])
        draws = jax.random.truncated_normal(key, low, high, shape, self.mean.dtype)
        return jnp.clip(self.mean + self.scale * draws, self.low, self.high)

    def log_density(self, x: Float[Array, "samples dims"]) -> Float[Array, " samples"]:
        """See `Family`."""
        low, high = self._standard()
        log_p = norm.logpdf(x, self.mean, self.scale) - jnp.log(ndtr(high) - ndtr(low))
        return jnp.where(_inside(self, x), log_p.sum(-1), -jnp.inf)

    def fitted(
        self,
        key: Array,
        x: Float[Array, "samples dims"],
        log_weights: Float[Array, " samples"],
        smoothing: float | Float[Array, ""],
    ) -> Self:
        """See `Family`."""
        weights, some = _normalised(log_weights)
        centre = weighted_sum("n,nd->d", weights, x)
        spread = jnp.sqrt(weighted_sum("n,nd->d", weights, (x - centre) ** 2))
        mean = self.mean + smoothing * (centre - self.mean)
        scale = jnp.maximum(self.scale + smoothing * (spread - self.scale), self.floor)
        return self._replace(
            mean=jnp.where(some, mean, self.mean), scale=jnp.where(some, scale, self.scale)
        )

    def _standard(self) -> tuple[Array, Array]:
        return (self.low - self.mean) / self.scale, (self.high - self.mean) / self.scale


def _inside(box: Uniform | TruncatedNormal, x: Array) -> Bool[Array, " samples"]:
    return ((x >= box.low) & (x <= box.high)).all(-1)


def _normalised(log_weights: Float[Array, " samples"]) -> tuple[Array, Array]:
    """Weights that add up to 1, and whether there are any."""
    total = logsumexp(log_weights)
    some = total > -jnp.inf
    return jnp.exp(log_weights - jnp.where(some, total, 0)), some
