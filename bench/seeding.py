"""Named children of one seed, and the fence that restores global random states around libraries that draw from them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


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
