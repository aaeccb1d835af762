"""θ's statistics and the pose error of a whole set, however it is divided among batches and processes."""

import math

import pytest
import torch
from torch import Tensor

from stn.layers import Affine, Rotation, Similarity, distance_to_truth, figure_points
from stn.metrics import PoseError, ThetaStatistics, is_lost


def statistics(*parts: Tensor, height: int = 32, width: int = 32) -> dict[str, Tensor]:
    metric = ThetaStatistics(Affine())
    for theta in parts:
        metric.update(theta, height, width)
    return metric.compute()


def test_a_diverged_transformer_has_lost_the_image() -> None:
    theta = Affine().identity().repeat(3, 1)
    theta[1, 0], theta[2, 5] = torch.nan, torch.inf
    assert is_lost(Affine(), theta).tolist() == [False, True, True]


def test_the_lost_share_is_that_of_all_batches() -> None:
    within, beside = Affine().identity().repeat(6, 1), torch.tensor([[1.0, 0, 2, 0, 1, 0]]).repeat(2, 1)
    assert statistics(within, beside)["lost"].item() == pytest.approx(2 / 8)


def test_rotations_are_averaged_around_the_circle() -> None:
    degrees = torch.tensor([170.0, -170.0, 175.0, -175.0]).deg2rad()
    zeros = torch.zeros(4)
    theta = torch.stack((degrees.cos(), -degrees.sin(), zeros, degrees.sin(), degrees.cos(), zeros), dim=1)
    found = statistics(theta)
    assert abs(found["rotation_degrees_mean"].item()) == pytest.approx(180, abs=1e-3)
    expected = torch.tensor([10.0, 10, 5, 5]).square().mean().sqrt().item()
    assert found["rotation_degrees_spread"].item() == pytest.approx(expected, rel=0.01)


def test_means_and_spreads_are_those_of_all_images_however_they_are_batched() -> None:
    theta = torch.randn(60, 6) * 0.2 + Affine().identity()
    found = statistics(*theta.split([50, 10]), height=24, width=40)
    decomposed = Affine().decompose(theta)
    for quantity, values in {
        "scale": decomposed["scale"],
        "shift_x_pixels": decomposed["shift_x"] * 20,
        "shift_y_pixels": decomposed["shift_y"] * 12,
    }.items():
        assert found[f"{quantity}_mean"].item() == pytest.approx(values.mean().item(), rel=1e-4, abs=1e-5)
        assert found[f"{quantity}_spread"].item() == pytest.approx(values.std(unbiased=False).item(), rel=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_pose_error_of_a_shift_is_its_length_in_pixels(align_corners: bool) -> None:
    """Half of the images are read two pixels beside the truth: one warp for all is off by one pixel."""
    width = 16
    half = (width - align_corners) / 2
    theta = Similarity().identity().repeat(10, 1)
    theta[5:, 2] += 2 / half
    edge = width / (width - align_corners)
    metric = PoseError(Similarity(), 12, width, align_corners=align_corners)
    truth = (figure_points().float() / edge).expand(10, -1, -1)
    for part in (slice(0, 3), slice(3, 10)):
        metric.update(theta[part], truth[part], torch.zeros(10)[part])
    found = metric.compute()
    assert found["pose_error_pixels"].item() == pytest.approx(1.0, abs=1e-4)
    metric.reset()
    metric.update(theta[:5], figure_points().float().expand(5, -1, -1), torch.zeros(5))  # the figure fills the image
    found = metric.compute()
    assert found["corner_error_pixels"].item() == pytest.approx(0.0, abs=1e-4)
    assert found["angle_error_degrees"].item() == pytest.approx(0.0, abs=1e-3)


def test_the_distance_to_the_truth_is_in_pixels_and_degrees() -> None:
    """Half a turn and 10 degrees apart, over the cut of the circle; the corners move along a circle of √2 · 16."""
    turned = torch.tensor([[-175.0], [175.0], [20.0]]).deg2rad()
    figure = Rotation()(torch.tensor([[175.0], [175.0], [20.0]]).deg2rad(), figure_points().float())
    pixels, degrees = distance_to_truth(Rotation(), turned, figure, 32, 32)
    assert degrees.tolist() == pytest.approx([10, 0, 0], abs=1e-3)
    assert pixels.tolist() == pytest.approx([2 * math.sin(math.radians(5)) * 16 * math.sqrt(2), 0, 0], abs=1e-3)


def test_a_diverged_theta_has_no_pose_error() -> None:
    metric = PoseError(Affine(), 32, 32)
    metric.update(torch.full((2, 6), torch.nan), figure_points().expand(2, -1, -1), torch.zeros(2))
    assert all(math.isnan(value.item()) for value in metric.compute().values())
