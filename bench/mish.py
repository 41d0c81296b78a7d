"""Mish and its slope in one pass over memory, compiled: torch's own takes three transcendental functions an element.

In a file of its own because Numba's cache looks at this file alone to see whether it is stale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from bench.compile_cache import mend

Array = npt.NDArray[np.float32]

F, INT = np.float32, np.int32
LOG2E, LN2_HIGH, LN2_LOW = F(np.log2(np.e)), F(0.693359375), F(np.log(2) - 0.693359375)
LOWEST, HIGHEST = F(-80), F(20)  # beyond them Mish is 0 and x to the last bit
BIAS, EXPONENT = F(127), F(1 << 23)  # of a 32-bit float


def _kernel(x: Array, slope: Array) -> None:
    """x (N,) becomes x tanh(log(1 + eˣ)), and slope (N,) its derivative.

    With e = eˣ and w = e (e + 2): t = tanh(log(1 + e)) = w / (w + 2), 1 − t = 2 / (w + 2), and the derivative of
    log(1 + eˣ) is s = e / (1 + e).
    eˣ is 2ⁿ eᶠ with |f| ≤ ½ ln 2, eᶠ by its Taylor polynomial of degree 7 (next term below 6e-9).
    """
    for i in range(x.size):
        v = x[i]
        u = v if v > LOWEST else LOWEST
        u = u if u < HIGHEST else HIGHEST
        n = F(INT(u * LOG2E + F(128.5))) - F(128)
        f = (u - n * LN2_HIGH) - n * LN2_LOW
        p = F(1 / 5040) * f + F(1 / 720)
        p = p * f + F(1 / 120)
        p = p * f + F(1 / 24)
        p = p * f + F(1 / 6)
        p = p * f + F(0.5)
        e = (p * f * f + f + F(1)) * INT((n + BIAS) * EXPONENT).view(F)
        w = e * (e + F(2))
        inverse = F(1) / ((w + F(2)) * (F(1) + e))
        t = w * (F(1) + e) * inverse
        rest = F(2) * (F(1) + e) * inverse
        s = e * (w + F(2)) * inverse
        x[i] = v * t
        slope[i] = t + v * s * rest * (F(2) - rest)


kernel: Any = njit(cache=True, error_model="numpy", fastmath={"contract", "nsz", "arcp", "nnan", "ninf"})(_kernel)
mend([kernel])
