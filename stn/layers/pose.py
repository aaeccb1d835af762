"""How far a transformer is from a pose that is known."""

from collections.abc import Callable

import torch
from torch import Tensor

from stn.layers.warps import lattice_points

FARTHEST = 4.0  # half-widths from the middle of the output at which a corner is looked for


def corners() -> Tensor:
    """The corners of the square [-1, 1], row by row: (4, 2), (x, y), float64."""
    return lattice_points(2)


def pose_error(
    warp: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    truth: Tensor,
    figures: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """Mean distance in pixels between where `warp` sends the corners of each upright figure and the truth, (N,).

    theta (N, P): of `warp`, from the output to an input of height x width pixels. truth (N, 4, 2): where in the input
    the `corners` of the upright figure lie, (x, y) in [-1, 1]. figures (N,): which figure each image shows.

    Class labels do not tell which pose is the upright one: a transformer that turns every star too far by the same
    angle has found them all. So where the output has the corners of a figure is fitted to all its images, by least
    squares; what differs between those is the error.
    """
    pixels = torch.tensor([width / 2, height / 2], dtype=torch.float64, device=theta.device)
    theta, truth = theta.detach().double(), truth.to(theta.device).double()
    error = torch.empty(len(theta), dtype=torch.float64, device=theta.device)
    for figure in figures.unique():
        shown = (figures == figure).to(theta.device)
        error[shown] = ((nearest(warp, theta[shown], truth[shown]) - truth[shown]) * pixels).norm(dim=-1).mean(dim=1)
    return error


def nearest(warp: Callable[[Tensor, Tensor], Tensor], theta: Tensor, truth: Tensor) -> Tensor:
    """Where warps of θ (N, P) send the four points that they send nearest to `truth` (N, 4, 2): (N, 4, 2)."""
    points = corners().to(theta)

    def warped(at: Tensor) -> Tensor:
        return warp(theta, at)

    best, least = points, torch.full((4,), torch.inf).to(points)
    # Gauss-Newton: exact after one step where the warp is affine in the points.
    for _ in range(8):
        axes = torch.eye(2).to(points)
        moved, columns = zip(
            *(torch.func.jvp(warped, (points,), (axis.expand_as(points),)) for axis in axes), strict=True
        )
        left = truth - moved[0]
        distance = left.square().sum(dim=(0, 2))
        best = torch.where((distance < least)[:, None], points, best)
        least = torch.minimum(distance, least)
        jacobian = torch.stack(columns, dim=-1).transpose(0, 1).flatten(1, 2)  # (4, 2 N, 2)
        step = torch.linalg.pinv(jacobian) @ left.transpose(0, 1).flatten(1)[..., None]
        points = (points + step.squeeze(-1)).clamp(-FARTHEST, FARTHEST)
    return warp(theta, best)
