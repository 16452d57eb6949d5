"""Zeta: how fast its evaluators are, how exact a search without a polish, and other searches.

    python -m benchmarks.zeta --out results

Speed: points per second of each evaluator on all devices of one kind, the arithmetic bound beside
it where `--teraflops` says what the device can do; mpmath and python-flint one point at a time.
Errors: of the zeros that the plain cross-entropy search ends at, on the device that this runs on.
Searches: cma and cmaes get per window what the cross-entropy search used, and as much as they like.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cma
import cmaes
import flint
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import tyro

from egattn.report.table import digits, write_table
from experiments.zeta.box import Box
from experiments.zeta.eta import Eta
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import Evaluator, at
from experiments.zeta.functions import ZETA
from experiments.zeta.scan import sign_scan
from experiments.zeta.search import cross_entropy, even_windows, find, windows
from experiments.zeta.taylor import Taylor

# Arithmetic per term of the eta series, transcendentals counted by their polynomials.
_FLOP_PER_TERM = 75
_BOX = Box(0.05, 0.95, 10, 102)
_HIGH = Box(0.05, 0.95, 990, 1000)
_FOUND = 1e-10
_CENTRES = {"t = 100": 100.0, "t = 1000": 999.4}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    points: int | None = None
    """Per call of the Taylor polynomials; default: 4,000,000 on CPUs, else 200,000,000."""
    series_points: int | None = None
    """Per call of the series; default: 400,000 on CPUs, else 16,000,000."""
    windows: int = 64
    """Anchors per call."""
    calls: int = 5
    """Timed calls; the fastest counts."""
    teraflops: float | None = None
    """Float32 arithmetic of the device; default: no bound is given."""
    evaluations: int = 60_000
    """Most evaluations of a search that may have as many as it likes."""
    seed: int = 0
    """Decides every draw."""
    errors: bool = True
    """Whether to measure the plain search's errors as well."""
    seeds: int = 5
    """How many seeds they are the largest of."""
    searches: bool = True
    """Whether to compare searches as well."""
    out: Path | None = None
    """Directory for zeta_speed and zeta_searches, .json and .md; default: print only."""


def main(config: Config) -> None:
    """Measures and prints the tables."""
    with jax.enable_x64(True):
        write_table("zeta_speed", config, speeds(config), config.out)
        if config.errors:
            write_table("zeta_errors", config, errors(config), config.out)
        if config.searches:
            write_table("zeta_searches", config, searches(config), config.out)


def speeds(config: Config) -> list[dict[str, Any]]:
    """Points per second."""
    rows = []
    cpu = jax.default_backend() == "cpu"
    points = config.points or (4_000_000 if cpu else 200_000_000)
    series_points = config.series_points or (400_000 if cpu else 16_000_000)
    for name, centre in _CENTRES.items():
        eta = Eta(centre + 0.6, "float32")
        for label, evaluator, count in (
            ("Taylor polynomials, float32", Taylor(ZETA, 0.78, "float32"), points),
            (f"eta series, float32, {eta.terms} terms", eta, series_points),
        ):
            rate, processor_rate = _rates(evaluator, centre, count, config)
            row: dict[str, Any] = {"at": name, "evaluator": label, "points/s": f"{rate:.2e}"}
            if cpu:
                row["points/CPU s"] = f"{processor_rate:.2e}"
            if config.teraflops and evaluator is eta:
                bound = config.teraflops * 1e12 / (_FLOP_PER_TERM * eta.terms)
                row["share of the bound"] = digits(rate / bound)
            rows.append(row)
        for label, rate in (
            ("mpmath, 15 digits", _single(lambda t: mpmath.zeta(mpmath.mpc(0.5, t)), centre)),
            ("python-flint, 53 bits", _single(lambda t: flint.acb(0.5, t).zeta(), centre)),
        ):
            rows.append({"at": name, "evaluator": label, "points/s": f"{rate:.2e}"})
    return rows


def _rates(evaluator: Evaluator, centre: float, count: int, config: Config) -> tuple[float, float]:
    """Points per second of the clock and of this process's CPU time, a minimum included."""
    tables = evaluator.tables(np.full(config.windows, centre))
    size = count // config.windows
    key = jax.random.key(config.seed)
    draws = jax.random.uniform(key, (config.windows, size, 2), jnp.float32, -0.4, 0.4)

    @jax.jit
    def work(tables: Any, draws: jax.Array) -> jax.Array:
        re, im = jax.vmap(evaluator.values)(tables, draws)
        return (re * re + im * im).min()

    seconds = []
    for _ in range(config.calls + 1):
        start = time.perf_counter(), time.process_time()
        work(tables, draws).block_until_ready()
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    # The first one compiles.
    clock, processor = np.min(seconds[1:], 0)
    return config.windows * size / clock, config.windows * size / processor


def _single(f: Callable[[float], Any], centre: float) -> float:
    heights = centre + np.linspace(-0.5, 0.5, 50)
    start = time.perf_counter()
    for t in heights:
        f(float(t))
    return len(heights) / (time.perf_counter() - start)


def errors(config: Config) -> list[dict[str, Any]]:
    """Largest errors of the zeros where a cross-entropy search per window ends."""
    rows = []
    for label, evaluator, box, height, rounds, floor, tau in (
        ("series, float64", Eta(102), _BOX, 1.0, 40, 1e-15, 1e-8),
        ("series, float32", Eta(102, "float32"), _BOX, 1.0, 25, 1e-8, 1e-4),
        ("series, float32", Eta(1000, "float32"), _HIGH, 0.5, 25, 1e-8, 1e-4),
    ):
        first = flint.arb(box.t_low).zeta_nzeros().unique_fmpz()
        end = flint.arb(box.t_high).zeta_nzeros().unique_fmpz()
        assert first is not None
        assert end is not None
        exact = flint.acb.zeta_zeros(int(first) + 1, int(end - first))
        truth = np.array([float(z.imag) for z in exact])
        parts = even_windows(box, height)
        found, off = [], []
        for seed in range(config.seed, config.seed + config.seeds):
            best = cross_entropy(evaluator, parts, seed, rounds=rounds, floor=floor)
            u, v = np.asarray(best.x, float)[np.asarray(best.value) <= tau].T
            t = v + parts.anchor[np.asarray(best.value) <= tau]
            nearest = np.abs(t[:, None] - truth).argmin(-1)
            found.append(len(set(nearest.tolist())))
            off.append((np.abs(t - truth[nearest]).max(), np.abs(u).max()))
        dt, dsigma = np.max(off, 0)
        row = {"zeros found": f"{min(found)} of {len(truth)}", "of t": digits(dt)}
        rows.append({"evaluator": label, "box": str(box), **row, "of sigma": digits(dsigma)})
    return rows


def searches(config: Config) -> list[dict[str, Any]]:
    """Zeros of [0.05, 0.95] x [10, 102] that each search finds to 1e-10, and what it takes."""
    evaluator = EulerMaclaurin(ZETA, _BOX.t_high)
    scan = sign_scan(ZETA, _BOX)
    truth = 0.5 + 1j * scan.zeros

    def none(box: Box) -> int:
        raise AssertionError(f"not all zeros found in ten passes; {box} was to be counted")

    rows = [_row("sign scan of Z, step 0.2", scan.evaluations, truth, truth)]
    for name, rounds in (("cross-entropy, 4 rounds, Muller", 4), ("random starts, Muller", 1)):
        found = find(ZETA, evaluator, _BOX, len(truth), none, config.seed, rounds)
        rows.append(_row(name, found.evaluations, found.zeros @ [1, 1j], truth))
    parts = windows(ZETA, _BOX)
    per_window = rows[1]["evaluations"] // len(parts.anchor)
    for name, search in (("cma", _cma), ("cmaes", _cmaes)):
        for budget in (per_window, config.evaluations // len(parts.anchor)):
            used, ends = 0, []
            for index, anchor in enumerate(parts.anchor):
                low, high = parts.low[index] + [0.5, anchor], parts.high[index] + [0.5, anchor]
                count, end = search(_modulus(evaluator), low, high, budget, config.seed + index)
                used += count
                ends.append(complex(*end))
            rows.append(_row(f"{name}, {budget} per window", used, np.array(ends), truth))
    return rows


def _row(name: str, evaluations: int, found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    near = np.abs(found[:, None] - truth).min(0)
    zeros = f"{(near <= _FOUND).sum()} of {len(truth)}"
    return {"search": name, "evaluations": evaluations, "zeros to 1e-10": zeros}


@functools.cache
def _modulus(evaluator: Evaluator) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.abs(at(evaluator, x @ [1, 1j], 50.0))


def _cma(f: Callable, low: np.ndarray, high: np.ndarray, budget: int, seed: int):
    options = {
        **{"bounds": [low, high], "maxfevals": budget, "seed": seed + 1, "verbose": -9},
        **{"tolfun": 0, "tolfunhist": 0, "tolx": 1e-13, "CMA_stds": (high - low) / 2},
    }
    strategy = cma.CMAEvolutionStrategy((low + high) / 2, 1.0, options)
    while not strategy.stop():
        points = strategy.ask()
        strategy.tell(points, list(f(np.array(points))))
    best = strategy.result.xbest
    # None before the first generation only.
    assert best is not None
    return strategy.result.evaluations, best


def _cmaes(f: Callable, low: np.ndarray, high: np.ndarray, budget: int, seed: int):
    scale = high - low
    search = cmaes.CMA(
        np.full(2, 0.5), 0.3, bounds=np.array([[0.0, 1.0]] * 2), seed=seed, population_size=8
    )
    used, best = 0, (np.inf, low)
    while used < budget and not search.should_stop():
        unit = np.array([search.ask() for _ in range(search.population_size)])
        values = f(low + unit * scale)
        search.tell(list(zip(unit, values.tolist(), strict=True)))
        used += len(unit)
        index = int(values.argmin())
        best = min(best, (float(values[index]), low + unit[index] * scale), key=lambda x: x[0])
    return used, best[1]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
