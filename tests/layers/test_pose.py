import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stn import Affine, Attention, Projective, Rotation, Similarity, ThinPlateSpline, Translation, Warp, pose_error
from stn.layers import RotationClasses, corners, figure_points, share_left
from stn.layers.warps import lattice_points


def poses(count: int) -> Tensor:
    """Similarities of every angle and many sizes, (count, 4)."""
    angle, scale = torch.rand(count) * 2 * math.pi, 0.3 + torch.rand(count)
    return torch.stack((scale * angle.cos(), scale * angle.sin(), *torch.randn(2, count)), dim=1)


def test_the_truth_has_no_error() -> None:
    theta = poses(12)
    truth = Similarity()(theta, corners().float())
    error = pose_error(Similarity(), theta, truth, torch.arange(12) % 3, 32, 32)
    assert error.shape == (12,) and error.max() < 1e-4


@pytest.mark.parametrize("family", [Similarity, Affine, Projective, ThinPlateSpline])
def test_what_is_done_to_all_images_of_a_figure_alike_is_no_error(family: Callable[[], Warp]) -> None:
    """One further warp of the output for each figure: no label tells which pose is upright."""
    true, figures, warp = poses(20), torch.arange(20) % 2, family()
    alike = torch.tensor([[0.5, 0.3, 0.2, -0.1], [-0.9, 0.8, -0.4, 0.3]])[figures]
    matrices = Similarity().matrix(Similarity().compose(true, alike))
    if isinstance(warp, ThinPlateSpline):
        lattice = lattice_points(warp.size).float()
        theta = (Affine()(matrices[:, :2].flatten(1), lattice) - lattice).flatten(1)
    else:
        theta = warp.parameters_of(matrices)  # type: ignore[operator]
    error = pose_error(warp, theta, Similarity()(true, corners().float()), figures, 32, 32)
    assert error.max() < 1e-3
    together = pose_error(warp, theta, Similarity()(true, corners().float()), torch.zeros(20), 32, 32)
    assert together.mean() > 1


def test_what_differs_between_images_is_told_in_pixels() -> None:
    """Half of the images are found 3 pixels too far left and 4 too low, half too far right and too high."""
    true = torch.randn(10, 2)
    off = torch.tensor([3 / 20, 4 / 8]) * torch.tensor([-1.0, 1.0]).repeat(5)[:, None]
    truth = Translation()(true, corners().float())
    error = pose_error(Translation(), true + off, truth, torch.zeros(10), height=16, width=40)
    torch.testing.assert_close(error, torch.full((10,), 5.0), atol=1e-4, rtol=0)


def test_a_transformer_that_does_nothing_is_as_far_off_as_the_poses_are_spread() -> None:
    angle = torch.tensor([-0.5, 0.5])
    truth = Rotation()(angle[:, None], corners().float())
    error = pose_error(Rotation(), torch.zeros(2, 1), truth, torch.zeros(2), 32, 32)
    # Either corner lies a half-diagonal times sin(0.5) beside the mean of both.
    torch.testing.assert_close(error, torch.full((2,), 16 * 2**0.5 * math.sin(0.5)))


@pytest.mark.parametrize(
    ("warp", "low", "high"),
    [
        (Similarity(), 0.0, 0.02),
        (RotationClasses(), 0.0, 0.1),
        (Affine(), 0.0, 0.02),
        (Rotation(), 0.1, 0.5),
        (Attention(), 0.5, 1.0),
        (Translation(), 0.8, 1.0),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_family_that_cannot_undo_a_similarity_is_known(warp: Warp, low: float, high: float) -> None:
    draw = torch.rand(4, 40)
    angle, scale = (2 * draw[0] - 1) * 1.5, 0.7 + 0.5 * draw[1]
    truth = torch.stack((scale * angle.cos(), scale * angle.sin(), *(0.4 * draw[2:] - 0.2)), dim=1)
    assert low <= share_left(warp, Similarity()(truth, figure_points().float())) <= high
