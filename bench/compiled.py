"""What compiled code is made of here: Numba's settings, a product of matrices, activations, layer norm, Adam.

Functions of this file are put into what other files compile, so a change here makes their caches stale, too.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding
import numpy as np
import numpy.typing as npt
import torch
from numba import njit, types
from numba.extending import get_cython_function_address

from bench.compile_cache import mend

Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

F, INT = np.float32, np.int32
RELU, MISH, SILU, TANH = range(4)
LOG2E, LN2_HIGH, LN2_LOW = F(np.log2(np.e)), F(0.693359375), F(np.log(2) - 0.693359375)
LOWEST, HIGHEST = F(-80), F(20)  # beyond them every activation is its limit, to 1e-32 and to the last bit
BIAS, EXPONENT = F(127), F(1 << 23)  # of a 32-bit float
NORM_EPSILON = F(1e-5)  # torch's layer normalisation


class Trained(NamedTuple):
    """Parameters of K networks, P numbers each, and the state of Adam."""

    values: Array  # (K, P)
    moments: Array  # (2, K, P)
    steps: Array  # (1,) taken so far


class Adam(NamedTuple):
    """Settings of AdamW; Adam's where nothing decays."""

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    decay: float


def _sgemm() -> int:
    """The address of a product of matrices as BLAS defines it: of torch's library, or else of SciPy's."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.sgemm_, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return int(get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))


llvmlite.binding.add_symbol("bench_sgemm", _sgemm())
sgemm: Any = types.ExternalFunction("bench_sgemm", types.void(*[types.intp] * 13))  # every argument is an address


def compiled(function: Function, freedom: frozenset[str] = frozenset(), entry: bool = False) -> Function:
    """Sums are taken in the order that is written; infinities and NaN keep their meaning.

    All parts are put into what Python calls, and only that is cached: of a part that stood by itself there would be
    several translations, and whether the caller was just compiled would decide which of them rounds the last bits.
    """
    fastmath = {"contract", "nsz", "arcp", *freedom}
    options: dict[str, Any] = {"cache": True} if entry else {"forceinline": True}
    return njit(error_model="numpy", nogil=True, fastmath=fastmath, **options)(function)  # type: ignore[no-any-return]


def entry(function: Function) -> Function:
    """What Python calls."""
    found = compiled(function, entry=True)
    mend([found], parts=[__file__])
    return found


def reordered(function: Function) -> Function:
    """Sums along a row may be taken in the order that suits vectors. Not for `exponential`: it would lose digits."""
    return compiled(function, frozenset({"reassoc"}))


@compiled
def product(x: Array, x_turned: bool, y: Array, y_turned: bool, out: Array) -> None:
    """out (M, N) becomes x (M, I) times y (I, N), each transposed first if `turned`.

    BLAS reads matrices by columns, so it is told outᵀ = yᵀ xᵀ.
    """
    m, n = out.shape
    sizes, factors, letters = np.empty(6, INT), np.empty(2, F), np.empty(2, np.uint8)
    sizes[0], sizes[1], sizes[2] = n, m, x.shape[0] if x_turned else x.shape[1]
    sizes[3], sizes[4], sizes[5] = y.shape[1], x.shape[1], n
    factors[0], factors[1] = F(1), F(0)
    letters[0], letters[1] = ord("T") if y_turned else ord("N"), ord("T") if x_turned else ord("N")
    size, factor, letter = sizes.ctypes.data, factors.ctypes.data, letters.ctypes.data
    sgemm(letter, letter + 1, size, size + 4, size + 8, factor, y.ctypes.data, size + 12, x.ctypes.data, size + 16,
          factor + 4, out.ctypes.data, size + 20)  # fmt: skip
    sizes[0] = factors[0] = letters[0] = 0  # Numba frees an array after its last use: let that not be before the call


@compiled
def exponential(v: Any) -> Any:
    """(p, d) with eᵛ = p + p d and d near 0 if v is, for v from LOWEST to HIGHEST, cut off there.

    p = 2ⁿ and d = eᶠ − 1 with |f| ≤ ½ ln 2, eᶠ by its Taylor polynomial of degree 7 (next term below 6e-9).
    """
    u = LOWEST if v < LOWEST else v
    u = HIGHEST if u > HIGHEST else u
    n = F(INT(u * LOG2E + F(128.5))) - F(128)
    f = (u - n * LN2_HIGH) - n * LN2_LOW
    p = F(1 / 5040) * f + F(1 / 720)
    p = p * f + F(1 / 120)
    p = p * f + F(1 / 24)
    p = p * f + F(1 / 6)
    p = p * f + F(0.5)
    return INT((n + BIAS) * EXPONENT).view(F), p * f * f + f


@compiled
def exp(v: Any) -> Any:
    p, d = exponential(v)
    return p + p * d


@compiled
def tanh(v: Any) -> Any:
    p, d = exponential(F(2) * v)
    e = p * d + (p - F(1))  # e²ᵛ − 1, to rounding also near 0
    return e / (e + F(2))


@compiled
def activate(kind: int, x: Array, slope: Array, r: int) -> None:
    """Row r of x (B, W) becomes its activation, and that of the slope (B, W) the derivative.

    Mish is v t with t = tanh(log(1 + eᵛ)). With e = eᵛ and w = e (e + 2): t = w / (w + 2), 1 − t = 2 / (w + 2), and the
    derivative of log(1 + eᵛ) is s = e / (1 + e). SiLU is v s.
    """
    one, two = F(1), F(2)
    for j in range(x.shape[1]):
        v = x[r, j]
        if kind == RELU:
            x[r, j] = F(0) if v <= F(0) else v
            slope[r, j] = F(0) if v <= F(0) else one
        elif kind == TANH:
            t = tanh(v)
            x[r, j] = t
            slope[r, j] = one - t * t
        elif kind == SILU:
            e = exp(v)
            s = e / (one + e)
            x[r, j] = v * s
            slope[r, j] = s + v * s * (one - s)
        else:
            e = exp(v)
            w = e * (e + two)
            inverse = one / ((w + two) * (one + e))
            t = w * (one + e) * inverse
            rest = two * (one + e) * inverse
            s = e * (w + two) * inverse
            x[r, j] = v * t
            slope[r, j] = t + v * s * rest * (two - rest)


@reordered
def normalise(x: Array, r: int, gain: Array, shift: Array, normed: Array, inverse: Array, out: Array) -> None:
    """Row r of x (B, W) with mean 0 and deviation 1 becomes that of normed, and times gain plus shift (W,) that of out.

    1 / deviation goes into inverse (B,).
    """
    width, share = x.shape[1], F(1) / F(x.shape[1])
    mean = square = F(0)
    for j in range(width):
        mean += x[r, j]
    mean *= share
    for j in range(width):
        d = x[r, j] - mean
        normed[r, j] = d
        square += d * d
    scale = F(1) / np.sqrt(square * share + NORM_EPSILON)
    inverse[r] = scale
    for j in range(width):
        h = normed[r, j] * scale
        normed[r, j] = h
        out[r, j] = gain[j] * h + shift[j]


@reordered
def through_norm(
    grad: Array, m: int, normed: Array, r: int, inverse: Array, gain: Array, by_gain: Array, by_shift: Array
) -> None:
    """Row m of grad (M, W) by what `normalise` made of row r becomes that by row r.

    The gradients (W,) of gains and shifts are added to.
    """
    width, share = grad.shape[1], F(1) / F(grad.shape[1])
    total = along = F(0)
    for j in range(width):
        g, h = grad[m, j], normed[r, j]
        by_shift[j] += g
        by_gain[j] += g * h
        g *= gain[j]
        grad[m, j] = g
        total += g
        along += g * h
    total, along = total * share, along * share
    for j in range(width):
        grad[m, j] = inverse[r] * (grad[m, j] - total - along * normed[r, j])


@compiled
def part(numbers: Array, start: int, rows: int, columns: int) -> Array:
    """The matrix (rows, columns) that begins at `start`."""
    return numbers[start : start + rows * columns].reshape((rows, columns))


@compiled
def adam(net: Trained, k: int, gradient: Array, settings: Adam) -> None:
    """Network k's step along its gradient (P,), as torch takes it."""
    beta1, beta2 = F(settings.beta1), F(settings.beta2)
    rest1, rest2 = F(1 - settings.beta1), F(1 - settings.beta2)
    rate = F(settings.rate / (1 - settings.beta1 ** net.steps[0]))
    scale = F(1 / math.sqrt(1 - settings.beta2 ** net.steps[0]))
    kept, epsilon = F(1 - settings.rate * settings.decay), F(settings.epsilon)
    values, first, second = net.values[k], net.moments[0, k], net.moments[1, k]
    for p in range(len(values)):
        g = gradient[p]
        m, v = beta1 * first[p] + rest1 * g, beta2 * second[p] + rest2 * g * g
        first[p], second[p] = m, v
        values[p] = kept * values[p] - rate * m / (np.sqrt(v) * scale + epsilon)


@compiled
def copy(source: Array, start: int, out: Array, column: int, width: int) -> None:
    """Columns from `start` on become those of `out` from `column` on."""
    for r in range(len(out)):
        into, found = out[r, column:], source[r, start:]
        for j in range(width):
            into[j] = found[j]
