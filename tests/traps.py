"""Two transformers that walk into a trap, for the ablations of docs/results.md; the other traps are settings.

PYTHONPATH=tests python -m stn.train experiment=does_it_help arm=transformer data/distortion=rotation \
  trainer.max_epochs=6 model.transformer._target_=traps.RandomStart
"""

from typing import Any

import torch
from torch import Tensor

from stn.layers import SpatialTransformer


class RandomStart(SpatialTransformer):
    """A transformer whose last layer starts as torch starts a linear layer, instead of at the identity."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.head.reset_parameters()


class RoundedTheta(SpatialTransformer):
    """A transformer that reads its image where θ, rounded to bfloat16, says."""

    def _to_input(self, theta: Tensor, points: Tensor) -> Tensor:
        return super()._to_input(theta.to(torch.bfloat16).to(theta.dtype), points)
