"""Named children of one seed, and the fence that restores global random states around libraries that draw from them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt


def child(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and the names, and on nothing else: equal names, equal child."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of the named child."""
    return np.random.default_rng(child(seed, *names))


@contextmanager
def fence(seed: int) -> Iterator[None]:
    """Seed the global generators of random, NumPy and torch inside the block and restore them after it, always.

    Stable-Baselines3, OGBench and torch's initialisers draw from them; nothing of ours does outside a fence.
    """
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def pack_generator(rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    """The state of a PCG64 generator as (6,) uint64."""
    state: dict[str, Any] = dict(rng.bit_generator.state)
    words = [w for key in ("state", "inc") for w in divmod(state["state"][key], 2**64)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64)


def unpack_generator(packed: npt.NDArray[np.uint64]) -> np.random.Generator:
    """A generator with the state that `pack_generator` gave, (6,) uint64."""
    w = [int(x) for x in packed]
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": w[0] * 2**64 + w[1], "inc": w[2] * 2**64 + w[3]},
        "has_uint32": w[4],
        "uinteger": w[5],
    }
    return np.random.Generator(bits)
