"""Muon: steps for convolution filters that move every direction as far as any other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim


class Muon(optim.SGD):
    """SGD with Nesterov momentum, whose steps for convolution filters are made orthogonal first.

    Groups with `orthogonal=True` hold weights (out, in, h, w). Their step, as a matrix (out, in · h · w), has all its
    singular values set to about 1, and the weights keep the norm √out, that of filters of length 1 (K. Jordan 2024,
    "Muon: An optimizer for hidden layers in neural networks", and as in his airbench94_muon); they do not decay. All
    other groups are trained as by SGD. `torch.optim.Muon` takes matrices alone, and has no such norm.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, after `closure`, where one is given, has made the gradients; returns what it returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else []:
                if weight.grad is not None:
                    self._step_filters(weight, weight.grad, group["lr"], group["momentum"])
                    weight.grad = None  # done: nothing for SGD to do
        super().step()
        return loss

    def _step_filters(self, weight: Tensor, gradient: Tensor, lr: float, momentum: float) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average = state["momentum_buffer"].mul_(momentum).add_(gradient)
        step = orthogonalized(gradient.add(average, alpha=momentum).flatten(1)).view_as(weight)
        weight.mul_(len(weight) ** 0.5 / weight.norm()).add_(step, alpha=-lr)


def orthogonalized(matrix: Tensor, steps: int = 3) -> Tensor:
    """(R, C) with the same singular vectors and singular values of about 1, but for those that were far the smallest.

    By Newton-Schulz iterations of a quintic that is steep at 0 (Jordan 2024).
    """
    wide = matrix.mT if len(matrix) > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide.mT if len(matrix) > matrix.shape[1] else wide
