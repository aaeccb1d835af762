import math

import pytest
import torch
import torch.nn.functional as F

from stn.layers import Affine, pixel_centres


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 9), (1, 4)])
def test_affine_grid_is_pytorchs(height: int, width: int, align_corners: bool) -> None:
    theta = torch.randn(4, 6)
    points = pixel_centres(height, width, align_corners=align_corners)
    grid = Affine()(theta, points).view(4, height, width, 2)
    expected = F.affine_grid(theta.view(4, 2, 3), [4, 1, height, width], align_corners=align_corners)
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=1e-5)


def test_identity_moves_nothing() -> None:
    warp = Affine()
    points = torch.rand(17, 2) * 2 - 1
    assert torch.equal(warp(warp.identity().expand(3, 6), points), points.expand(3, 17, 2))


def test_points_of_each_image_or_of_all() -> None:
    theta, points = torch.randn(3, 6), torch.randn(3, 7, 2)
    each = Affine()(theta, points)
    for index in range(3):
        torch.testing.assert_close(Affine()(theta[index : index + 1], points[index])[0], each[index])


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1), (30, 0.5), (-75, 2), (179, 0.1)])
def test_decompose_finds_what_composed_it(degrees: float, scale: float) -> None:
    turn = math.radians(degrees)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    parts = Affine().decompose(torch.tensor([[cos, -sin, 0.2, sin, cos, -0.3]]))
    assert parts["rotation"].item() == pytest.approx(turn, abs=1e-6)
    assert parts["scale"].item() == pytest.approx(scale, rel=1e-5)
    assert (parts["shift_x"].item(), parts["shift_y"].item()) == pytest.approx((0.2, -0.3))


@pytest.mark.parametrize(
    ("theta", "points", "said"),
    [
        (torch.zeros(2, 5), torch.zeros(4, 2), r"theta must be \(N, 6\).*\(2, 5\)"),
        (torch.zeros(6), torch.zeros(4, 2), r"theta must be \(N, 6\).*\(6,\)"),
        (torch.zeros(2, 6), torch.zeros(4, 3), r"points must be \(M, 2\).*\(4, 3\)"),
    ],
)
def test_other_shapes_are_named(theta: torch.Tensor, points: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Affine()(theta, points)
