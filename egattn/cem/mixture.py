"""Gaussian mixture on a box with a uniform part that bounds the likelihood ratios."""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from egattn.cem.families import Uniform, weighted_sum

_STEPS, _STARTS = 10, 16
# Components below this share would have means of 0 / 0.
_LEAST = 1e-3


class GaussianMixture(NamedTuple):
    """defensive * uniform(box) + (1 - defensive) * sum_k weight_k N(mean_k, diag scale_k**2).

    Likelihood ratios of the uniform distribution to it are at most 1 / defensive. Without enough
    components a mode is missed, and a small standard error does not tell.
    """

    low: Float[Array, " dims"]
    """Lower corner of the box."""
    high: Float[Array, " dims"]
    """Upper corner."""
    defensive: Float[Array, ""] | float
    """Share of the uniform part once fitted, >= 0; before, all is uniform."""
    weight: Float[Array, " components"]
    """Shares of the components within the rest; 0 before the first fit."""
    mean: Float[Array, "components dims"]
    """Means."""
    scale: Float[Array, "components dims"]
    """Standard deviations."""

    @classmethod
    def over(
        cls,
        low: Float[Array, " dims"],
        high: Float[Array, " dims"],
        components: int,
        defensive: float = 0.1,
    ) -> Self:
        """Uniform on a box, to become a mixture at its first fit.

        Args:
          low: Lower corner [d].
          high: Upper corner [d].
          components: K, at least the number of separate regions that matter.
          defensive: Share of the uniform part.

        Raises:
          ValueError: If there is no component, or the share lies outside [0, 1).
        """
        if components < 1 or not 0 <= defensive < 1:
            raise ValueError(
                "expected at least 1 component and a defensive share within [0, 1), got "
                f"{components} and {defensive}"
            )
        centre = jnp.broadcast_to((low + high) / 2, (components, low.shape[0]))
        spread = jnp.broadcast_to(high - low, centre.shape)
        share = jnp.asarray(defensive, low.dtype)
        return cls(low, high, share, jnp.zeros(components, low.dtype), centre, spread)

    def sample(self, key: Array, count: int) -> Float[Array, "samples dims"]:
        """See `Family`; samples may lie outside of the box."""
        parts, choice, draws, cover = jax.random.split(key, 4)
        # Before the first fit all of these are -inf, and whichever is drawn stays unused.
        component = jax.random.categorical(choice, jnp.log(self.weight), shape=(count,))
        noise = jax.random.normal(draws, (count, self.low.shape[0]), self.low.dtype)
        normal = self.mean[component] + self.scale[component] * noise
        uniform = Uniform(self.low, self.high).sample(cover, count)
        covered = jax.random.uniform(parts, (count, 1), self.low.dtype) < self._covered()
        return jnp.where(covered, uniform, normal)

    def log_density(self, x: Float[Array, "samples dims"]) -> Float[Array, " samples"]:
        """See `Family`."""
        covered = self._covered()
        log_normal = logsumexp(self._joint(x), axis=-1)
        log_uniform = Uniform(self.low, self.high).log_density(x)
        return jnp.logaddexp(jnp.log(covered) + log_uniform, jnp.log1p(-covered) + log_normal)

    def fitted(
        self,
        key: Array,
        x: Float[Array, "samples dims"],
        log_weights: Float[Array, " samples"],
        smoothing: float | Float[Array, ""],
    ) -> Self:
        """See `Family`: ten weighted EM steps from the best of several starts.

        The starts are the member itself and 16 sets of k-means++ seeds. Each is fitted to half of
        the samples; the likelihood of the other half chooses, which a component on a single sample
        does not deceive. A region that two others shared out is so found again.
        """
        some = logsumexp(log_weights) > -jnp.inf
        usable = jnp.where(some, log_weights, 0)
        fresh = self.weight.sum() == 0
        fit = self._best_start(key, x, usable)._refined(x, usable)
        share = jnp.where(fresh, 1.0, smoothing)
        moved = self._replace(
            weight=self.weight + share * (fit.weight - self.weight),
            mean=self.mean + share * (fit.mean - self.mean),
            scale=self.scale + share * (fit.scale - self.scale),
        )
        return jax.tree.map(lambda new, old: jnp.where(some, new, old), moved, self)

    def _covered(self) -> Array:
        return jnp.where(self.weight.sum() > 0, self.defensive, 1.0).astype(self.low.dtype)

    def _joint(self, x: Array) -> Float[Array, "samples components"]:
        """Log of weight times density of each component."""
        log_p = norm.logpdf(x[:, None], self.mean, self.scale).sum(-1)
        return jnp.log(self.weight) + log_p

    def _best_start(self, key: Array, x: Array, log_weights: Array) -> Self:
        split, seed = jax.random.split(key)
        half = jax.random.bernoulli(split, shape=log_weights.shape)
        fitting, choosing = (jnp.where(part, log_weights, -jnp.inf) for part in (half, ~half))
        seeded = jax.vmap(lambda key: self._seeded(key, x, fitting))
        starts = jax.tree.map(
            lambda new, old: jnp.concatenate([new, old[None]]),
            seeded(jax.random.split(seed, _STARTS)),
            self,
        )

        def attempt(start: Self) -> tuple[Self, Array]:
            member = start._refined(x, fitting)
            log_p = logsumexp(member._joint(x), axis=-1)
            return member, weighted_sum("n,n->", jax.nn.softmax(choosing), log_p)

        members, fits = jax.lax.map(attempt, starts)
        # Before the first fit the member itself has no density anywhere.
        best = jnp.argmax(jnp.where(jnp.isnan(fits), -jnp.inf, fits))
        return jax.tree.map(lambda leaf: leaf[best], members)

    def _refined(self, x: Array, log_weights: Array) -> Self:
        """EM steps."""
        return jax.lax.fori_loop(
            0, _STEPS, lambda _, member: member._improved(x, log_weights), self
        )

    def _seeded(self, key: Array, x: Array, log_weights: Array) -> Self:
        """Means at samples far from each other (k-means++), all equally wide."""
        components = self.weight.shape[0]
        size = self.high - self.low
        means, near = [], jnp.zeros_like(log_weights)
        for draw in jax.random.split(key, components):
            means.append(x[jax.random.categorical(draw, log_weights + near)])
            away = [jnp.sum(((x - mean) / size) ** 2, -1) for mean in means]
            # Where all samples are one point, none is away.
            near = jnp.log(jnp.stack(away).min(0) + jnp.finfo(x.dtype).tiny)
        share = jax.nn.softmax(log_weights)
        square = (x - weighted_sum("n,nd->d", share, x)) ** 2
        spread = jnp.sqrt(weighted_sum("n,nd->d", share, square)) / components
        return self._replace(
            weight=jnp.full_like(self.weight, 1 / components),
            mean=jnp.stack(means),
            scale=jnp.broadcast_to(self._wide(spread), self.scale.shape),
        )

    def _improved(self, x: Array, log_weights: Array) -> Self:
        """One EM step; a component without samples stays where it is."""
        joint = self._joint(x)
        # A sample far from all components belongs to the nearest one.
        share = jax.nn.softmax(joint, -1) * jax.nn.softmax(log_weights)[:, None]
        mass = share.sum(0)
        alive = (mass > jnp.finfo(x.dtype).eps)[:, None]
        divisor = jnp.where(alive, mass[:, None], 1)
        mean = jnp.where(alive, weighted_sum("nk,nd->kd", share, x) / divisor, self.mean)
        square = weighted_sum("nk,nkd->kd", share, (x[:, None] - mean) ** 2)
        weight = jnp.maximum(mass, _LEAST)
        return self._replace(
            weight=weight / weight.sum(),
            mean=mean,
            scale=jnp.where(alive, self._wide(jnp.sqrt(square / divisor)), self.scale),
        )

    def _wide(self, scale: Array) -> Array:
        """At least as wide as the spacing of floating-point numbers in the box."""
        size = jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))
        return jnp.maximum(scale, 2 * jnp.finfo(scale.dtype).eps * size)
