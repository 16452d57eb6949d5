"""Z(t) on the critical line by the Riemann-Siegel formula, float64 on the host.

Reference:
  Edwards, Riemann's Zeta Function (1974), chapter 7; Gabcke's thesis (1979), whose constants bound
  the remainder for t >= 200. Coefficients are those of the power series of C_0 to C_4 in z.
"""

import numpy as np
from jaxtyping import Float

from experiments.zeta.box import Box
from experiments.zeta.evaluator import Trust

TRUST = Trust("the Riemann-Siegel formula", 0.5, 0.5, 200, 1e6)
# Even, odd, even, odd, even powers of z.
_SERIES = (
    (
        *(0.382683432365089772, 0.437240468077520449, 0.132376575480343523, -0.0136050260476741887),
        *(-0.0135676219701035809, -0.00162372532314446528, 0.000297053537333796908),
        *(7.94330087952146959e-5, 4.6556124614504505e-7, -1.43272516309551058e-6),
        *(-1.03548471123129461e-7, 1.23579270838617381e-8, 1.7881083857954905e-9),
    ),
    (
        *(-0.026825102628375347, 0.013784773426351853, 0.0384912504822350822),
        *(0.00987106629906207647, -0.00331075976085840433, -0.00146478085779541508),
        *(-1.32079406248769637e-5, 5.92274870184714132e-5, 5.98024258537344859e-6),
        *(-9.64132245616982635e-7, -1.83347337227144118e-7, 4.4670875627178336e-9),
        2.70963508217727432e-9,
    ),
    (
        *(0.00518854283029316849, 0.00030946583880634746, -0.0113359410782293734),
        *(0.00223304574195814477, 0.00519663740886233021, 0.000343991440762083367),
        *(-0.000591064842747058282, -0.000102299725479358575, 2.08883922169927554e-5),
        *(5.92766549309653596e-6, -1.6423838362436276e-7, -1.51611997009406829e-7),
        -5.90780369820666796e-9,
    ),
    (
        *(-0.0013397160907194569, 0.0037442151363793937, -0.00133031789193214681),
        *(-0.00226546607654717871, 0.000954849999850673042, 0.000601003845896360391),
        *(-0.00010128858286776622, -6.86573344929982564e-5, 5.98536679153859816e-7),
        *(3.33165985123994713e-6, 2.19192891024350811e-7, -7.89088424568149441e-8),
        -9.41468508129526215e-9,
    ),
    (
        *(0.000464833893617633819, -0.00100566073653404708, 0.00024044856573725793),
        *(0.00102830861497023219, -0.000765786107175564419, -0.000203652868030848176),
        *(0.000232122904910687279, 3.26021442438651976e-5, -2.55790625179495251e-5),
        *(-4.10746443891574475e-6, 1.17811136403712939e-6, 2.44565614224845785e-7),
        -2.39158247673443224e-8,
    ),
)


def hardy_z(t: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Z(t), real, with |Z(t)| = |zeta(1/2 + i t)|.

    Raises:
      ValueError: If a height lies outside [200, 1e6].
    """
    t = np.atleast_1d(np.asarray(t, np.float64))
    TRUST.check(Box(0.5, 0.5, float(t.min()), float(t.max())))
    return main_sum(t, theta(t)) + _correction(t)


def theta(t: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """The angle theta(t) by Stirling's series, to 3e-12 from t = 14 on."""
    inverse = 1 / (t * t)
    series = 1 / 48 + inverse * (7 / 5760 + inverse * (31 / 80640 + inverse * 127 / 430080))
    return t / 2 * np.log(t / (2 * np.pi)) - t / 2 - np.pi / 8 + series / t


def main_sum(
    t: Float[np.ndarray, " points"], theta: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    """2 sum_n cos(theta - t ln n) / sqrt n for n <= sqrt(t / 2 pi), in the dtype of t."""
    count = np.floor(np.sqrt(t / (2 * np.pi)))
    total = np.zeros_like(t)
    for n in range(1, int(count.max()) + 1):
        term = np.cos(theta - t * t.dtype.type(np.log(n))) / np.sqrt(t.dtype.type(n))
        total += np.where(n <= count, term, 0)
    return 2 * total


def _correction(t: np.ndarray) -> np.ndarray:
    a = np.sqrt(t / (2 * np.pi))
    count = np.floor(a)
    z = 2 * (a - count) - 1
    total = np.zeros_like(t)
    for order, series in enumerate(_SERIES):
        total += np.polyval(series[::-1], z * z) * z ** (order % 2) / a**order
    return np.where(count % 2, 1, -1) * total / np.sqrt(a)
