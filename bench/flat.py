"""Memory that compiled code and torch share."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bench.compiled import Adam, Array, Trained


def zeros(*shape: int) -> Array:
    """By torch, which aligns to cache lines, where a product's last bits may depend on it."""
    return torch.zeros(shape).numpy()


def settings(optimiser: torch.optim.Optimizer) -> Adam:
    """Those of torch's Adam or AdamW as they are now."""
    group = optimiser.param_groups[0]
    beta1, beta2 = group["betas"]
    return Adam(float(group["lr"]), beta1, beta2, group["eps"], float(group["weight_decay"]))


class Flat:
    """K networks' parameters and Adam's moments of them in one buffer each; the owners' tensors become views.

    `views` cuts a buffer (K, size) into tensors of the parameters' shapes.
    """

    def __init__(
        self, members: int, size: int, views: Callable[[Tensor], list[Tensor]], parameters: Iterable[Tensor],
        optimiser: torch.optim.Optimizer | None = None,
    ) -> None:  # fmt: skip
        self.values, self.moments = torch.zeros(members, size), torch.zeros(2, members, size)
        self.steps = torch.zeros(1)
        self.trained = Trained(self.values.numpy(), self.moments.numpy(), self.steps.numpy())
        self.views, self.parameters, self.optimiser = views, list(parameters), optimiser
        for parameter, view in zip(self.parameters, views(self.values), strict=True):
            parameter.data = view.copy_(parameter.detach())
        self.bind()

    def bind(self) -> None:
        """Take over the optimiser's state after it was replaced; create what is missing."""
        if self.optimiser is None:
            return
        for parameter, *moments in zip(self.parameters, *map(self.views, self.moments), strict=True):
            state: dict[str, Tensor] = self.optimiser.state[parameter]
            for name, view in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                state[name] = view.copy_(state[name]) if name in state else view.zero_()
            self.steps.fill_(float(state.get("step", 0.0)))
            state["step"] = self.steps[0]
