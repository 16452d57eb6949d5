"""What rounding does to zeta and to its zeros.

    python -m experiments.zeta precision

Every input and every result of an operation is rounded to so many mantissa bits, the implicit one
not counted. sigma = 1/2 is a number of every binary format, so rounding sigma makes points near the
line into points exactly on it: a computed zero on the line can be an artefact.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.zeta import balls
from experiments.zeta.box import Box
from experiments.zeta.eta import weights
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import at
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from experiments.zeta.quantised import reported_sigmas
from experiments.zeta.scan import sign_scan

BITS = (6, 8, 10, 12, 14, 16, 18, 20, 23, 30, 40, 45, 50)
FIXED_BITS = (4, 8, 12, 16, 20, 24)
_POINTS, _TERMS = 400, 115
_SLOPE_BITS = 12, 45
_SIGMA_BITS = 6


class Format(NamedTuple):
    """A floating-point format."""

    name: str
    significand: int
    """Bits, the implicit one counted."""


FORMATS = (Format("bf16", 8), Format("fp16", 11), Format("fp32", 24), Format("fp64", 53))


@dataclasses.dataclass(frozen=True)
class Result:
    """What `--json` prints."""

    bits: list[int]
    rms_error: list[float]
    """Of zeta with all operations rounded, at random points."""
    slope: float
    """Of log2 error over bits, from 12 to 45."""
    grid: list[dict[str, float | str]]
    """Per format: the number nearest to the first zero, what zeta is there, the worst of 30."""
    fixed_bits: list[int]
    fixed_rms: list[float]
    """Distance of 30 zeros from multiples of h = 2**-bits, in h; uniform: 0.2887."""
    resolvable: dict[str, float]
    """Height up to which 16 numbers of a format lie between neighbouring zeros on average."""
    sigmas: dict[str, list[float]]
    """What a search reports that sees sigma to 6 fractional bits."""
    seed: int


def run(seed: int = 0) -> Result:
    """All of it; the seed decides points and searches."""
    errors = [rms_error(bits, seed) for bits in BITS]
    low, high = _SLOPE_BITS
    fitted = [(b, e) for b, e in zip(BITS, errors, strict=True) if low <= b <= high]
    bits, sizes = np.array(fitted).T
    slope = np.polyfit(bits, np.log2(sizes), 1)[0]
    zeros = first_zeros()
    searched = (ZETA, Box(0.05, 0.95, 10, 50)), (DAVENPORT_HEILBRONN, Box(0.05, 0.95, 80, 90))
    return Result(
        bits=list(BITS),
        rms_error=errors,
        slope=float(slope),
        grid=[on_grid(kind, zeros) for kind in FORMATS],
        fixed_bits=list(FIXED_BITS),
        fixed_rms=[fixed_rms(bits, zeros) for bits in FIXED_BITS],
        resolvable={kind.name: resolvable(kind) for kind in FORMATS},
        sigmas={
            function.name: reported_sigmas(function, box, _SIGMA_BITS, seed).tolist()
            for function, box in searched
        },
        seed=seed,
    )


def first_zeros() -> Float[np.ndarray, " zeros"]:
    """The first 30 zeros, to the last bit where there are balls, else to 1e-13."""
    zeros = sign_scan(ZETA, Box(0.05, 0.95, 10, 102)).zeros
    if balls.AVAILABLE:
        zeros = np.array([balls.prove(ZETA, 0.5, t).t for t in zeros])
    return zeros


def rounded(x: Float[np.ndarray, "..."], bits: int) -> Float[np.ndarray, "..."]:
    """The nearest number with so many mantissa bits, even ones at ties; no limit of exponents."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(fraction * 2.0 ** (bits + 1)), exponent - bits - 1)


def rms_error(bits: int, seed: int) -> float:
    """Root mean square error of zeta with every operation rounded, over 400 points.

    sigma lies within [0.3, 0.7], t within [10, 100].
    """
    rng = np.random.default_rng(seed)
    sigma, t = rng.uniform(0.3, 0.7, _POINTS), rng.uniform(10, 100, _POINTS)
    exact = at(EulerMaclaurin(ZETA, 100), sigma + 1j * t)
    return float(np.sqrt((np.abs(rounded_zeta(sigma, t, bits) - exact) ** 2).mean()))


def rounded_zeta(sigma: np.ndarray, t: np.ndarray, bits: int) -> np.ndarray:
    """The eta series, term after term, each operation rounded."""

    def r(x: np.ndarray) -> np.ndarray:
        return rounded(x, bits)

    sigma, t = r(sigma), r(t)
    re, im = np.zeros_like(t), np.zeros_like(t)
    for weight, log_k in zip(weights(_TERMS), np.log(np.arange(1, _TERMS + 1)), strict=True):
        log_k = r(log_k)
        size = r(r(weight) * r(np.exp(-r(sigma * log_k))))
        angle = r(t * log_k)
        re, im = r(re + r(size * r(np.cos(angle)))), r(im - r(size * r(np.sin(angle))))
    log_2 = r(np.log(2))
    factor, angle = r(np.exp(r(r(1 - sigma) * log_2))), r(t * log_2)
    a, b = r(1 - r(factor * r(np.cos(angle)))), r(factor * r(np.sin(angle)))
    norm = r(r(a * a) + r(b * b))
    real, imag = r(r(re * a) + r(im * b)), r(r(im * a) - r(re * b))
    return r(real / norm) + 1j * r(imag / norm)


def on_grid(kind: Format, zeros: np.ndarray) -> dict[str, float | str]:
    """What is left of zeta at the format's number nearest to a zero."""
    nearest = rounded(zeros, kind.significand - 1)
    sizes = np.abs(at(EulerMaclaurin(ZETA, float(zeros.max()) + 1), 0.5 + 1j * nearest))
    return {
        "format": kind.name,
        "nearest": float(nearest[0]),
        "step": spacing(kind, float(zeros[0])),
        "distance": float(abs(nearest[0] - zeros[0])),
        "zeta": float(sizes[0]),
        "worst_zeta": float(sizes.max()),
    }


def spacing(kind: Format, t: float) -> float:
    """Distance of neighbouring numbers of a format at t."""
    return 2.0 ** (math.frexp(t)[1] - kind.significand)


def fixed_rms(bits: int, zeros: np.ndarray) -> float:
    """Root mean square distance to multiples of h = 2**-bits, in h."""
    scaled = zeros * 2.0**bits
    return float(np.sqrt(((scaled - np.rint(scaled)) ** 2).mean()))


def resolvable(kind: Format, numbers: int = 16) -> float:
    """The last power of two up to which neighbouring zeros are so many numbers apart on average."""
    height = 8.0
    while spacing(kind, height) * numbers <= ZETA.spacing(2 * height):
        height *= 2
    return height


def describe(result: Result) -> str:
    """The result as text."""
    lines = ["mantissa bits  rms error of zeta"]
    lines += [f"{b:13} {e:18.2e}" for b, e in zip(result.bits, result.rms_error, strict=True)]
    lines.append(f"slope of log2 error per bit: {result.slope:.4f}")
    lines += [
        f"{row['format']}: nearest to the first zero {row['nearest']:.17g}, |zeta| there "
        f"{row['zeta']:.3g}, worst of 30 zeros {row['worst_zeta']:.3g}"
        for row in result.grid
    ]
    lines += [f"{name}: zeros resolvable to t = {t:g}" for name, t in result.resolvable.items()]
    lines += [
        f"sigma to {_SIGMA_BITS} bits, {name}: " + ", ".join(f"{x:g}" for x in values)
        for name, values in result.sigmas.items()
    ]
    return "\n".join(lines)
