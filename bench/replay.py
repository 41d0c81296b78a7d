"""The replay buffer: one table, one row per transition, so that a batch is one gather."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.types import FloatArray


class Replay:
    """The last transitions, one row each: features (F,), action (D,), features after (F,), reward, terminated."""

    def __init__(self, capacity: int, features: int, actions: int) -> None:
        self.features, self.actions = features, actions
        # NumPy's zeros take memory only once they are written
        self.rows = torch.from_numpy(np.zeros((capacity, 2 * features + actions + 2), np.float32))
        self.place, self.filled = 0, 0

    def add(self, *parts: FloatArray) -> None:
        """Store (B, F), (B, D), (B, F), (B,), (B,); a block that does not fit before the end starts again at row 0."""
        columns = [np.asarray(x, np.float32).reshape(len(parts[0]), -1) for x in parts]
        if self.place + len(parts[0]) > len(self.rows):
            self.place = 0
        end = self.place + len(parts[0])
        np.concatenate(columns, axis=1, out=self.rows[self.place : end].numpy())
        self.place, self.filled = end, max(self.filled, end)

    def sample(self, size: int, draws: torch.Generator) -> Tensor:
        """Rows drawn with replacement, (size, row)."""
        return self.rows.index_select(0, torch.randint(self.filled, (size,), generator=draws))
