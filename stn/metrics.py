"""Metrics of θ and of classes of images over a whole set, as torchmetrics that add up over batches and processes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from stn.layers import corners_of, distance_to_truth, pixel_centres, pose_error
from stn.layers.warps import decompose

WarpFunction = Callable[[Tensor, Tensor], Tensor]  # (theta, points) -> points, as `SpatialTransformer.to_input`

POSE_ERRORS = ("pose_error_pixels", "corner_error_pixels", "angle_error_degrees")
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
        self.seen: list[Tensor]
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(self, theta: Tensor, height: int, width: int) -> None:
        """Adds θ (N, P) of images of height x width pixels."""
        parts = decompose(self.warp, theta)
        shift_x, shift_y = parts["shift_x"] * width / 2, parts["shift_y"] * height / 2
        columns = (parts["rotation"], parts["scale"], shift_x, shift_y, is_lost(self.warp, theta))
        self.seen.append(torch.stack([column.to(theta.dtype) for column in columns], dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Returns the values that the class describes."""
        seen = dim_zero_cat(self.seen)
        # On the CPU, because not every device has float64.
        rotation, *others, lost = seen.cpu().double().unbind(1)
        cos, sin = rotation.cos().mean(), rotation.sin().mean()
        mean = [torch.atan2(sin, cos).rad2deg(), *(values.mean() for values in others)]
        circular = (-2 * torch.hypot(cos, sin).clamp(1e-12, 1).log()).sqrt().rad2deg()
        spread = [circular, *(values.std(correction=0) for values in others)]
        found = {f"{name}_mean": value for name, value in zip(QUANTITIES, mean, strict=True)}
        found |= {f"{name}_spread": value for name, value in zip(QUANTITIES, spread, strict=True)}
        return {name: value.to(seen) for name, value in (found | {"lost": lost.mean()}).items()}


class PoseError(Metric):
    """How far the poses that a warp finds are from the true ones; each NaN if θ has diverged.

    `compute` returns pose_error_pixels, the mean of `pose_error`, which fits to each class which pose counts as
    upright; and of `distance_to_truth`, which takes it for known, the medians corner_error_pixels and
    angle_error_degrees.
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

    def update(self, theta: Tensor, figures: Tensor, labels: Tensor) -> None:
        """Adds images with θ (N, P) and classes (N,), and `figure_points` (N, 16, 2) in [-1, 1] from edge to edge."""
        self.theta.append(theta)
        self.truth.append((figures * self.edge.to(figures)).to(theta))
        self.labels.append(labels.to(theta.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns the values that the class describes."""
        theta, truth, labels = (dim_zero_cat(state) for state in (self.theta, self.truth, self.labels))
        if not theta.isfinite().all():
            return dict.fromkeys(POSE_ERRORS, theta.new_tensor(torch.nan))
        edge = self.edge.to(theta)
        from_edges = lambda theta, points: self.warp(theta, points * edge)  # noqa: E731
        corner, angle = distance_to_truth(from_edges, theta, truth, self.height, self.width)
        fitted = pose_error(self.warp, theta, corners_of(truth), labels, self.height, self.width)
        return dict(zip(POSE_ERRORS, (fitted.mean(), corner.median(), angle.median()), strict=True))


class ClassMeans(Metric):
    """The mean image of each class, and the variance of its pixels within each class, of images of one size.

    `compute` returns the means (K, C, H, W) and the variances (K,), the mean over the pixels; both in float64 on the
    CPU, and NaN for a class without images.
    """

    full_state_update = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.count: Tensor
        self.total: Tensor
        self.squares: Tensor
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.shape: tuple[int, ...] = ()

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Adds images (N, C, H, W) of classes (N,)."""
        self.shape = tuple(images.shape[1:])
        # In float64, since the variance is a small difference of large sums. Not every device has it.
        pixels = images.flatten(1).cpu().double()
        member = F.one_hot(labels.cpu(), self.classes).double().T
        self.count = self.count + member.sum(dim=1)
        self.total = self.total + member @ pixels
        self.squares = self.squares + member @ pixels.square().mean(dim=1)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Returns what the class describes."""
        means = self.total / self.count[:, None]
        variances = self.squares / self.count - means.square().mean(dim=1)
        return means.view(-1, *self.shape), variances.clamp(min=0)


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
