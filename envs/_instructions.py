"""Instructions: fixed random vectors that stand in for goals, so that no nearness of goals shows in them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZE = 8
SEED = 20260512


def draw(*shape: int) -> npt.NDArray[np.float32]:
    """(*shape, 8) standard normal, the same in every process."""
    return np.random.default_rng(SEED).standard_normal((*shape, SIZE)).astype(np.float32)
