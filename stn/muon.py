"""Muon: an optimizer whose steps for convolution filters are orthogonal matrices."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim


class Muon(optim.SGD):
    """SGD with Nesterov momentum, whose steps for convolution filters are orthogonalized.

    Groups with `orthogonal=True` hold weights (out, in, h, w). Their step is a matrix (out, in · h · w) whose singular
    values are set to about 1. The weights keep the norm √out, that of filters of length 1, and do not decay (K. Jordan
    2024, "Muon: An optimizer for hidden layers in neural networks", and his airbench94_muon). All other groups are
    trained by SGD. `torch.optim.Muon` takes matrices only, and does not keep the norm.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Calls `closure`, if given, for the gradients, and returns what it returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else []:
                if weight.grad is not None:
                    self._step_filters(weight, weight.grad, group["lr"], group["momentum"])
                    weight.grad = None  # SGD skips it
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
    """A matrix (R, C) with the same singular vectors, and singular values of about 1.

    By Newton-Schulz iterations (Jordan 2024); singular values far below the largest stay smaller.
    """
    wide = matrix.mT if len(matrix) > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return wide.mT if len(matrix) > matrix.shape[1] else wide
