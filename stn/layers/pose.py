"""The distance between the pose that a transformer finds and the true one."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stn.layers.warps import Warp, jacobian, lattice_points, nearest_affine

FARTHEST = 4.0  # half-widths from the centre of the output: corners are searched up to here


def corners() -> Tensor:
    """The corners of the square [-1, 1], row by row: (4, 2), (x, y), float64."""
    return lattice_points(2)


FIGURE_SIDE = 4


def figure_points() -> Tensor:
    """Points that span an upright figure, [-1, 1], row by row: (16, 2), (x, y), float64."""
    return lattice_points(FIGURE_SIDE)


def corners_of(figure: Tensor) -> Tensor:
    """The corners (N, 4, 2) of the points (N, 16, 2) of figures."""
    last = FIGURE_SIDE - 1
    return figure.unflatten(1, (FIGURE_SIDE, FIGURE_SIDE))[:, ::last, ::last].flatten(1, 2)


def distance_to_truth(
    warp: Callable[[Tensor, Tensor], Tensor], theta: Tensor, figure: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """How far the poses that a warp finds are from the true ones: in pixels (N,), and in degrees (N,).

    theta (N, P): parameters of `warp`, from the output to an input of height x width pixels.
    figure (N, 16, 2): where in the input the `figure_points` are.
    In pixels it is the mean distance of the corners, and in degrees the angle between the two rotations. Unlike
    `pose_error` it takes the upright pose for known.
    """
    theta, figure = theta.detach(), figure.to(theta)
    found = warp(theta, figure_points().to(theta))
    pixels = torch.tensor([width / 2, height / 2]).to(theta)
    corner = (corners_of(found - figure) * pixels).norm(dim=-1).mean(dim=1)
    angle, true_angle = (nearest_affine(points)["rotation"] for points in (found, figure))
    turn = (angle - true_angle + math.pi).remainder(2 * math.pi) - math.pi
    return corner, turn.abs().rad2deg()


def share_left(warp: Warp, figure: Tensor) -> float:
    """The share of the distance to the true poses that a family of warps cannot undo, from 0 to 1.

    figure (N, 16, 2): where in the input the `figure_points` are. θ is fitted to each by gradient descent.
    """
    upright = figure_points().to(figure)
    theta = warp.identity().to(figure).repeat(len(figure), 1).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    with torch.enable_grad():
        for _ in range(200):
            optimizer.zero_grad()
            warp.pose_loss(theta, figure).sum().backward()
            optimizer.step()
            schedule.step()
    left = (warp(theta.detach(), upright) - figure).norm(dim=-1).mean()
    return min(1.0, float(left / (upright - figure).norm(dim=-1).mean().clamp(min=1e-6)))


def pose_error(
    warp: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    truth: Tensor,
    figures: Tensor,
    height: int,
    width: int,
) -> Tensor:
    """Mean distance in pixels between the corners that a warp finds and the true ones, (N,), of θ's dtype.

    theta (N, P): parameters of `warp`, from the output to an input of height x width pixels.
    truth (N, 4, 2): the corners of the figure's square in the input, (x, y) in [-1, 1].
    figures (N,): which figure each image shows.

    Class labels do not tell which pose is upright: a transformer that turns every star too far by the same angle has
    found them all. So the corners in the output are fitted once for each figure, to all its images, by least squares.
    The error is what differs between those images.
    """
    theta, truth = theta.detach(), truth.to(theta)
    pixels = torch.tensor([width / 2, height / 2]).to(theta)
    error = theta.new_zeros(len(theta))
    for figure in figures.unique():
        shown = (figures == figure).to(theta.device)
        error[shown] = (
            ((fit_corners(warp, theta[shown], truth[shown]) - truth[shown]) * pixels).norm(dim=-1).mean(dim=1)
        )
    return error


def fit_corners(warp: Callable[[Tensor, Tensor], Tensor], theta: Tensor, truth: Tensor) -> Tensor:
    """Fits four output points that the warps of θ (N, P) map as near to `truth` (N, 4, 2) as they can.

    Returns where the warps map them, (N, 4, 2).
    """
    points = corners().to(theta)
    best, least = points, torch.full((4,), torch.inf).to(points)
    # Gauss-Newton, which needs a single step where the warp is affine in the points.
    for _ in range(8):
        left = truth - warp(theta, points)
        distance = left.square().sum(dim=(0, 2))
        best = torch.where((distance < least)[:, None], points, best)
        least = torch.minimum(distance, least)
        slopes = jacobian(lambda at: warp(theta, at), points.expand(len(theta), -1, -1))
        # Least squares over all images: (4, 2 N, 2) and (4, 2 N), on the CPU, where every machine has float64.
        matrix, right = (of_all.transpose(0, 1).flatten(1, 2).cpu().double() for of_all in (slopes, left[..., None]))
        step = torch.linalg.pinv(matrix, rtol=1e-6) @ right  # the matrix is no more exact than that
        points = (points + step.squeeze(-1).to(points)).clamp(-FARTHEST, FARTHEST)
    return warp(theta, best)
