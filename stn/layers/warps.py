"""Families of warps: functions from the points of the output image to points of the input image.

Every warp has `num_params`, `identity()` and `warp(theta, points)`. Points are (x, y) in [-1, 1] of the image's
half-width and half-height, so that one θ means the same at every resolution.
"""

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """Affine warp (x, y) -> (a x + b y + tx, c x + d y + ty), θ = (a, b, tx, c, d, ty).

    Jaderberg et al. 2015, equation 1.
    """

    num_params = 6

    def identity(self) -> Tensor:
        """θ of the warp that moves nothing, shape (6,)."""
        return torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])

    def forward(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where in the input each output point is read.

        theta: (N, 6). points: (M, 2), the same for the batch, or (N, M, 2). Returns (N, M, 2).
        Raises ValueError for other shapes.
        """
        if theta.ndim != 2 or theta.shape[1] != self.num_params:
            raise ValueError(f"theta must be (N, {self.num_params}) for an affine warp, not {tuple(theta.shape)}")
        if points.ndim not in (2, 3) or points.shape[-1] != 2:
            raise ValueError(f"points must be (M, 2) or (N, M, 2), not {tuple(points.shape)}")
        matrix = theta.view(-1, 2, 3)
        return points @ matrix[:, :, :2].mT + matrix[:, None, :, 2]

    def decompose(self, theta: Tensor) -> dict[str, Tensor]:
        """θ in terms a person reads, each (N,): rotation of the sampled region, its size, and where its centre lies.

        `rotation` in radians from x towards y (clockwise in a picture), the nearest rotation to the matrix;
        `scale` = sqrt(|det|), below 1 when the transformer zooms in; `shift_x`, `shift_y` in fractions of the
        half-width and half-height.
        """
        a, b, tx, c, d, ty = theta.unbind(1)
        return {
            "rotation": torch.atan2(c - b, a + d),
            "scale": (a * d - b * c).abs().sqrt(),
            "shift_x": tx,
            "shift_y": ty,
        }
