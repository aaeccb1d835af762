"""Metrics of θ over a whole set, as torchmetrics that add up over batches and processes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from stn.layers import pixel_centres, pose_error
from stn.layers.warps import decompose

WarpFunction = Callable[[Tensor, Tensor], Tensor]  # (theta, points) -> points, as `SpatialTransformer.to_input`

QUANTITIES = ("rotation_degrees", "scale", "shift_x_pixels", "shift_y_pixels")


class ThetaStatistics(Metric):
    """Mean and spread (standard deviation) of rotation, scale and shift, and the share of images that are lost.

    `compute` returns <quantity>_mean and <quantity>_spread for each of `QUANTITIES`, and lost. Rotations, in degrees,
    have a circular mean and deviation. A scale below 1 zooms in. Shifts are in pixels of the warp's input.
    """

    full_state_update = False

    def __init__(self, warp: WarpFunction) -> None:
        super().__init__()
        self.warp = warp
        self.sums: Tensor
        self.lost: Tensor
        self.add_state("sums", torch.zeros(3, len(QUANTITIES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("lost", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, theta: Tensor, height: int, width: int) -> None:
        """Adds θ (N, P) of images of height x width pixels."""
        parts = {name: values.double() for name, values in decompose(self.warp, theta).items()}
        turns = parts["rotation"]
        count = torch.ones_like(turns)
        # For each quantity the count, the sum and the sum of squares; for the rotation the sums of cosine and sine.
        columns = [torch.stack((count, turns.cos(), turns.sin()))]
        for values in (parts["scale"], parts["shift_x"] * width / 2, parts["shift_y"] * height / 2):
            columns.append(torch.stack((count, values, values.square())))
        self.sums += torch.stack(columns, dim=1).sum(dim=2)
        self.lost += is_lost(self.warp, theta).sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns the values that the class describes."""
        count, first, second = self.sums
        mean, spread = first / count, (second / count - (first / count).square()).clamp(min=0).sqrt()
        resultant = torch.hypot(first[0], second[0]) / count[0]
        mean[0] = torch.atan2(second[0], first[0]).rad2deg()
        spread[0] = (-2 * resultant.clamp(1e-12, 1).log()).sqrt().rad2deg()
        found = {f"{name}_mean": value.float() for name, value in zip(QUANTITIES, mean, strict=True)}
        found |= {f"{name}_spread": value.float() for name, value in zip(QUANTITIES, spread, strict=True)}
        return found | {"lost": (self.lost / count[0]).float()}


class PoseError(Metric):
    """Mean distance in pixels between the corners of each figure as a warp finds them and the true ones.

    Which pose counts as upright is fitted for each class, see `pose_error`.
    height, width: of the images. align_corners: of the transformer.
    """

    full_state_update = False

    def __init__(self, warp: WarpFunction, height: int, width: int, *, align_corners: bool = False) -> None:
        super().__init__()
        self.warp = warp
        # With align_corners ±1 is the centre of the outermost pixel, half a pixel from the edge.
        self.height, self.width = (height - 1, width - 1) if align_corners else (height, width)
        self.edge = torch.tensor([width / self.width, height / self.height])
        self.theta: list[Tensor]
        self.truth: list[Tensor]
        self.labels: list[Tensor]
        for name in ("theta", "truth", "labels"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, theta: Tensor, truth: Tensor, labels: Tensor) -> None:
        """Adds images with θ (N, P), true corners (N, 4, 2) in [-1, 1] from edge to edge, and classes (N,)."""
        self.theta.append(theta)
        self.truth.append((truth * self.edge.to(truth)).to(theta.device))
        self.labels.append(labels.to(theta.device))

    def compute(self) -> Tensor:
        """Returns the mean distance; NaN if θ has diverged."""
        theta, truth, labels = (
            torch.cat(list(state)) if isinstance(state, list) else state
            for state in (self.theta, self.truth, self.labels)
        )
        if not theta.isfinite().all():
            return torch.tensor(torch.nan, device=theta.device)
        return pose_error(self.warp, theta, truth, labels, self.height, self.width).mean().float()


def is_lost(warp: WarpFunction, theta: Tensor) -> Tensor:
    """Whether a warp with θ (N, P) has lost the image, (N,).

    An image is lost if more than half of the points lie beyond its border, if they shrink to a line or a point, or if θ
    is not finite.
    """
    points = warp(theta.nan_to_num(0, 0, 0), pixel_centres(8, 8, device=theta.device).to(theta))
    inside = (points.abs() <= 1).all(dim=2).float().mean(dim=1) >= 0.5
    # The variance of the points along the line where it is smallest: the smaller eigenvalue of their covariance.
    x, y = (points - points.mean(dim=1, keepdim=True)).unbind(2)
    xx, yy, xy = (x * x).mean(dim=1), (y * y).mean(dim=1), (x * y).mean(dim=1)
    smallest = (xx + yy) / 2 - torch.hypot((xx - yy) / 2, xy)
    # A comparison with NaN is false, so NaN counts as lost.
    return ~(theta.isfinite().all(dim=1) & inside & (smallest >= 1e-4))
