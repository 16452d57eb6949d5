"""Zeros and their number proved by ball arithmetic, for one box.

Every number here is a ball that holds the exact value, so what is computed is true of the box, and
of nothing outside it. Needs python-flint (`pip install 'egattn[zeta]'`).
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.zeta.box import Box
from experiments.zeta.functions import DirichletSeries

if importlib.util.find_spec("flint"):
    import flint

AVAILABLE = importlib.util.find_spec("flint") is not None
# Lengths of the first piece of a side, and of one that has a zero on it or next to it.
_FIRST, _SHORTEST = 1 / 64, 1e-7
# Half widths of a ball in which Newton's method is to contract: below and above this height.
_RADIUS, _HIGH, _SMALL_RADIUS = 1e-3, 2000, 1e-6
_DIGITS = 30
# A turn is to be told from half a turn only.
_COUNT_DIGITS = 16
# The first one proves; the second one tells the zero to more digits.
_CONTRACTIONS = 2


class Proof(NamedTuple):
    """One zero, and no other, lies in a ball."""

    sigma: float
    t: float
    """Its middle."""
    radius: float
    """Half the side of the square about the middle that holds the zero; and rounding of float64."""
    on_line: bool
    """Whether symmetry puts it on sigma = 1/2."""
    excludes_half: bool
    """Whether the ball does not meet sigma = 1/2."""


def need() -> None:
    """Raises NotImplementedError without python-flint."""
    if not AVAILABLE:
        raise NotImplementedError("balls need python-flint: pip install 'egattn[zeta]'")


def jet(function: DirichletSeries, s: Any, terms: int) -> list[Any]:
    """Taylor coefficients f(s), f'(s), f''(s) / 2, ... in balls.

    Args:
      function: Which.
      s: A ball, `flint.acb`.
      terms: How many.
    """
    need()
    with _series(terms):
        x = flint.acb_series([s, 1])
        total = flint.acb_series([0])
        for (m, n), a in zip(function.coefficients, range(1, 5), strict=False):
            shift = flint.acb(a) / function.modulus
            total += (m + n * _xi()) * (x.zeta() if shift == 1 else x.zeta(shift))
        if function.modulus > 1:
            total *= (-x * flint.arb(function.modulus).log()).exp()
        return [total[k] for k in range(terms)]


def jet_at(function: DirichletSeries, sigma: float, t: float, terms: int) -> list[Any]:
    """Taylor coefficients about an exact point, to many more digits than a float64 has."""
    need()
    with _digits(_DIGITS):
        return jet(function, flint.acb(sigma, t), terms)


def count(function: DirichletSeries, box: Box) -> int:
    """Number of zeros in a box by the argument principle.

    On each piece B of the boundary f lies in f(m) + f'(B) (B - m); where that has a positive real
    part after division by f(m), the change of argument is that of the ends. Else B is made
    smaller, and after a success larger.

    Raises:
      ValueError: If a zero lies on the boundary, or so near that it cannot be told.
    """
    need()
    with _digits(_COUNT_DIGITS):
        corners = [flint.acb(z.real, z.imag) for z in box.corners()]
        total = flint.arb(0)
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            total += _side(function, start, end)
        number = (total / (2 * flint.arb.pi())).unique_fmpz()
    if number is None:
        raise ValueError(f"the turns about {box} cannot be told from a fraction: {total}")
    return int(number)


def prove(function: DirichletSeries, sigma: float, t: float, radius: float | None = None) -> Proof:
    """Proves that one zero lies in a square about a point, and no other one does.

    Interval Newton: if m - f(m) / f'(B) lies inside B, B holds exactly one zero. A zero that lies
    off the line has a mirror image at 1 - sigma; B about sigma = 1/2 would hold both.

    Args:
      function: Which.
      sigma: Real part; within 1e-9 of 1/2, the square is put about 1/2.
      t: Imaginary part.
      radius: Half the side of the square; default: 1e-3, above height 2000 1e-6.

    Raises:
      ValueError: If Newton's method does not map the square into itself: no zero, or too large.
    """
    need()
    radius = radius or (_RADIUS if t < _HIGH else _SMALL_RADIUS)
    sigma, t = float(sigma), float(t)
    centred = abs(sigma - 0.5) < 1e-9
    sigma = 0.5 if centred else sigma
    with _digits(_DIGITS):
        ball = flint.acb(flint.arb(sigma, radius), flint.arb(t, radius))
        for _ in range(_CONTRACTIONS):
            middle = flint.acb(ball.mid())
            (value,) = jet(function, middle, 1)
            image = middle - value / jet(function, ball, 2)[1]
            if not (image.is_finite() and ball.contains_interior(image)):
                raise ValueError(
                    f"no proof of one zero of {function.name} within {radius:g} of {sigma:.12g} + "
                    f"{t:.12g} i: Newton's method does not map the square into itself"
                )
            ball = image
        excludes = not ball.real.overlaps(flint.arb(0.5))
        middle = complex(ball.mid())
        size = max(float(x.rad()) for x in (ball.real, ball.imag))
    return Proof(middle.real, middle.imag, size, centred, excludes)


def _side(function: DirichletSeries, start: Any, end: Any) -> Any:
    """Change of the argument along a side, in balls."""
    total, at = flint.arb(0), 0.0
    length = float(abs(end - start).mid())
    step = _FIRST / length
    (before,) = jet(function, start, 1)
    while at < 1:
        step = min(step, 1 - at)
        last = start + (end - start) * (at + step)
        middle = start + (end - start) * (at + step / 2)
        (centre,) = jet(function, middle, 1)
        ball = (start + (end - start) * at).union(last)
        turned = (centre + jet(function, ball, 2)[1] * (ball - middle)) / centre
        if not (turned.is_finite() and turned.real > 0):
            step *= 0.6
            if step * length < _SHORTEST:
                raise ValueError(f"a zero of {function.name} lies on the boundary: {_show(middle)}")
            continue
        (after,) = jet(function, last, 1)
        # Both ends lie in the half plane about f(m), so neither quotient crosses the cut.
        total += (after / centre).log().imag - (before / centre).log().imag
        before, at, step = after, at + step, 1.3 * step
    return total


def _show(s: Any) -> str:
    return f"{float(s.real.mid()):.9g} + {float(s.imag.mid()):.9g} i"


def _xi() -> Any:
    root = flint.arb(5).sqrt()
    return ((10 - 2 * root).sqrt() - 2) / (root - 1)


@contextlib.contextmanager
def _digits(number: int) -> Iterator[None]:
    before, flint.ctx.dps = flint.ctx.dps, number
    try:
        yield
    finally:
        flint.ctx.dps = before


@contextlib.contextmanager
def _series(terms: int) -> Iterator[None]:
    before, flint.ctx.cap = flint.ctx.cap, terms
    try:
        yield
    finally:
        flint.ctx.cap = before
