import math
from collections.abc import Callable
from typing import Any

import cv2
import kornia.geometry.transform as kornia
import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import BSpline as SciPySpline
from scipy.interpolate import RBFInterpolator
from torch import Tensor, nn

from stn.layers import (
    Affine,
    AffineExponential,
    Attention,
    BSpline,
    Diffeomorphic,
    LogPolar,
    Projective,
    Rotation,
    RotationClasses,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Translation,
    Warp,
    corners,
    pixel_centres,
    pose_error,
)
from stn.layers.warps import MatrixGroup, jacobian, lattice_points

GROUPS: list[Callable[[], MatrixGroup]] = [Translation, Rotation, Attention, Similarity, Affine, Projective]
FAMILIES: list[Callable[[], Warp]] = [
    *GROUPS,
    AffineExponential,
    ThinPlateSpline,
    BSpline,
    Diffeomorphic,
    LogPolar,
    RotationClasses,
]
SEEDS = st.integers(0, 2**31)


def near_identity(warp: Warp, count: int, seed: int = 0, by: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (warp.identity() + by * torch.randn(count, warp.num_params, generator=generator)).to(dtype)


def some_points(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(dtype)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family is not LogPolar])
@given(count=st.integers(1, 4), height=st.integers(1, 12), width=st.integers(1, 12), align_corners=st.booleans())
def test_identity_moves_nothing(
    family: Callable[[], Warp], count: int, height: int, width: int, align_corners: bool
) -> None:
    warp = family()
    points = pixel_centres(height, width, align_corners=align_corners)
    moved = warp(warp.identity().expand(count, -1), points)
    torch.testing.assert_close(moved, points.expand(count, -1, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_points_of_each_image_or_of_all(family: Callable[[], Warp]) -> None:
    warp = family()
    theta, points = near_identity(warp, 3), torch.stack([some_points(7, seed) for seed in range(3)])
    each = warp(theta, points)
    assert each.shape == (3, 7, 2)
    for index in range(3):
        alone = warp(theta[index : index + 1], points[index])
        torch.testing.assert_close(alone[0], each[index], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_theta_has_the_gradient_that_finite_differences_show(family: Callable[[], Warp]) -> None:
    warp = family()
    theta = near_identity(warp, 2, dtype=torch.float64).requires_grad_()
    points = some_points(9, dtype=torch.float64).requires_grad_()
    # Before torch 2.15 the flow's sampler has no forward mode.
    assert torch.autograd.gradcheck(warp, (theta, points), check_forward_ad=family is not Diffeomorphic)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family is not Diffeomorphic])
def test_the_gradient_has_a_gradient(family: Callable[[], Warp]) -> None:
    """But for the flow, whose sampler PyTorch differentiates once."""
    warp = family()
    theta = near_identity(warp, 2, dtype=torch.float64).requires_grad_()
    for points in (some_points(5, dtype=torch.float64), torch.rand(2, 5, 2, dtype=torch.float64) - 0.5):
        assert torch.autograd.gradgradcheck(warp, (theta, points.requires_grad_()))


@pytest.mark.parametrize("family", FAMILIES)
def test_vmap_over_theta(family: Callable[[], Warp]) -> None:
    warp = family()
    theta, points = near_identity(warp, 4), some_points(6)
    mapped = torch.vmap(lambda one: warp(one[None], points)[0])(theta)
    torch.testing.assert_close(mapped, warp(theta, points), atol=1e-6, rtol=1e-5)
    if family is not Diffeomorphic:  # before torch 2.15 the flow's sampler has no forward mode
        backward, forward = (derive(warp)(theta, points) for derive in (torch.func.jacrev, torch.func.jacfwd))
        torch.testing.assert_close(backward, forward, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_under_vmap_and_autocast_are_those_without(family: Callable[[], Warp]) -> None:
    warp, points = family(), some_points(6)
    gradients = []
    for how in ("plain", "vmap", "autocast"):
        theta = near_identity(warp, 4).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            moved = torch.vmap(lambda t: warp(t[None], points)[0])(theta) if how == "vmap" else warp(theta, points)
        moved.float().square().sum().backward()
        gradients.append(theta.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[0], atol=0.2, rtol=0.1)


@pytest.mark.parametrize("family", GROUPS)
@given(seed=SEEDS)
def test_inverse_undoes_and_compose_does_one_after_the_other(family: Callable[[], MatrixGroup], seed: int) -> None:
    warp = family()
    first, second = (near_identity(warp, 2, number, dtype=torch.float64) for number in (seed, seed + 1))
    points = some_points(9, seed, torch.float64) / 2
    torch.testing.assert_close(warp(warp.inverse(first), warp(first, points)), points.expand(2, -1, -1))
    both = warp(second, warp(first, points))
    torch.testing.assert_close(warp(warp.compose(second, first), points), both)


@pytest.mark.parametrize(
    ("family", "within"), [(AffineExponential, 1e-5), (Diffeomorphic, 0.01)], ids=["exponential", "diffeomorphic"]
)
@given(seed=SEEDS)
def test_the_other_sign_undoes(family: Callable[[], Any], within: float, seed: int) -> None:
    warp = family()
    theta, points = near_identity(warp, 2, seed), some_points(9, seed) / 2
    back = warp(warp.inverse(theta), warp(theta, points))
    torch.testing.assert_close(back, points.expand(2, -1, -1), atol=within, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_invert_finds_the_output_point_that_is_read(family: Callable[[], Warp]) -> None:
    warp = family()
    theta, points = near_identity(warp, 3, by=0.05), some_points(20) * 0.8
    within = 0.01 if family is Diffeomorphic else 1e-5
    torch.testing.assert_close(warp.invert(theta, warp(theta, points)), points.expand(3, -1, -1), atol=within, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_invert_takes_points_of_each_image_or_of_all(family: Callable[[], Warp]) -> None:
    warp = family()
    theta, points = near_identity(warp, 3, by=0.05), some_points(20) * 0.6
    found = warp.invert(theta, points)
    within = 0.01 if family is Diffeomorphic else 1e-5
    torch.testing.assert_close(warp(theta, found), points.expand(3, -1, -1), atol=within, rtol=0)
    torch.testing.assert_close(warp.invert(theta, points.repeat(3, 1, 1)), found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", [ThinPlateSpline, BSpline])
def test_an_inverse_that_is_not_found_is_nan(family: Callable[[], Warp]) -> None:
    """Where the warp folds, Newton's method goes astray, and it said nothing."""
    warp = family()
    theta, points = near_identity(warp, 50, by=1), torch.rand(50, 20, 2) * 1.6 - 0.8
    found = warp.invert(theta, warp(theta, points))
    missed = found.isnan().any(dim=2)
    assert 0 < missed.float().mean() < 0.5 and torch.equal(missed, found.isnan().all(dim=2))
    off = (warp(theta, found) - warp(theta, points)).norm(dim=2)
    assert off[~missed].max() * 16 < 0.02  # pixels


def test_a_warp_to_a_single_point_has_no_inverse() -> None:
    warp = ThinPlateSpline()
    theta = -lattice_points(4).float().flatten().repeat(2, 1)
    assert warp.invert(theta, some_points(3)).isnan().all()


@pytest.mark.parametrize("family", [ThinPlateSpline, BSpline])
def test_the_gradient_of_the_inverse_is_that_of_finite_differences(family: Callable[[int], Warp]) -> None:
    warp = family(4)
    theta = near_identity(warp, 1, by=0.05, dtype=torch.float64).requires_grad_()
    points = (some_points(3, dtype=torch.float64) * 0.8).requires_grad_()
    assert torch.autograd.gradcheck(warp.invert, (theta, points), atol=1e-4)


def test_a_point_without_an_inverse_spares_the_gradients_of_the_others() -> None:
    warp = ThinPlateSpline()
    theta = torch.stack((warp.identity(), -lattice_points(4).float().flatten())).requires_grad_()
    warp.invert(theta, some_points(3)).nansum().backward()
    assert theta.grad is not None and theta.grad.isfinite().all() and theta.grad[0].count_nonzero() > 0


@pytest.mark.parametrize("family", [ThinPlateSpline, BSpline, Diffeomorphic, Projective])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_inverse_and_jacobian_need_no_forward_mode(
    family: Callable[[], Warp], context: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before torch 2.15 the sampler has none."""
    warp, points = family(), some_points(5).expand(2, -1, -1) / 2
    theta, d = near_identity(warp, 2, by=0.05), 1e-3
    # The columns of the Jacobians by differences.
    ahead, behind = (torch.stack([warp(theta, points + by * axis) for axis in torch.eye(2)], -1) for by in (d, -d))
    monkeypatch.setattr("torch.autograd.forward_ad.make_dual", None)
    with context():
        found = jacobian(lambda at: warp(theta, at), points)
        torch.testing.assert_close(found, (ahead - behind) / (2 * d), atol=2e-3, rtol=0)
        assert warp.invert(theta, points).isfinite().all()
        assert pose_error(warp, theta, warp(theta, corners().float()), torch.zeros(2), 32, 32).isfinite().all()


def test_a_theta_that_is_not_finite_does_not_end_the_process() -> None:
    warp = Diffeomorphic()
    theta = torch.full((8, warp.num_params), torch.nan, requires_grad=True)
    warp(theta, pixel_centres(32, 32)).sum().backward()
    assert warp.invert(theta, some_points(3)).isnan().all()


@given(seed=SEEDS, by=st.floats(0, 100))
def test_a_diffeomorphic_warp_never_folds(seed: int, by: float) -> None:
    """The Jacobian is positive everywhere, whatever θ: each little triangle keeps its orientation."""
    warp, size = Diffeomorphic(), 50
    moved = warp(near_identity(warp, 2, seed, by), pixel_centres(size, size)).view(2, size, size, 2)
    right, down = moved[:, :-1, 1:] - moved[:, :-1, :-1], moved[:, 1:, :-1] - moved[:, :-1, :-1]
    area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    assert area.min() > 0


def test_a_spline_that_is_not_diffeomorphic_does_fold() -> None:
    """That the test above can fail."""
    warp, size = BSpline(), 50
    moved = warp(near_identity(warp, 2, 0, by=2), pixel_centres(size, size)).view(2, size, size, 2)
    right, down = moved[:, :-1, 1:] - moved[:, :-1, :-1], moved[:, 1:, :-1] - moved[:, :-1, :-1]
    assert (right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]).min() < 0


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 9), (2, 4)])
def test_affine_is_pytorchs_affine_grid(height: int, width: int, align_corners: bool) -> None:
    theta = torch.randn(4, 6)
    points = pixel_centres(height, width, align_corners=align_corners)
    grid = Affine()(theta, points).view(4, height, width, 2)
    expected = F.affine_grid(theta.view(4, 2, 3), [4, 1, height, width], align_corners=align_corners)
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=1e-5)


def test_projective_is_opencvs() -> None:
    theta, points = near_identity(Projective(), 1, by=0.2), some_points(30)
    expected = cv2.perspectiveTransform(points[None].numpy(), Projective().matrix(theta)[0].numpy())
    torch.testing.assert_close(Projective()(theta, points), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_exponential_is_scipys() -> None:
    theta = near_identity(AffineExponential(), 3, by=0.7, dtype=torch.float64)
    for one, matrix in zip(theta, AffineExponential().matrix(theta), strict=True):
        expected = scipy.linalg.expm(np.vstack([one.view(2, 3).numpy(), np.zeros(3)]))
        np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_thin_plate_spline_is_scipys_and_kornias(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_default_dtype", lambda: torch.float64)
        warp = ThinPlateSpline(size)
    theta, points = near_identity(warp, 2, dtype=torch.float64), some_points(40, dtype=torch.float64)
    control, moved = lattice_points(size), warp(theta, points)
    for one, found in zip(theta.view(2, -1, 2), moved, strict=True):
        spline = RBFInterpolator(control.numpy(), (control + one).numpy(), kernel="thin_plate_spline")
        np.testing.assert_allclose(found.numpy(), spline(points.numpy()), atol=1e-8)
    # kornia's own solution has its kernels where the lattice goes, not where it is; what it makes of ours is the same.
    bent, flat = (warp.solution @ theta.view(2, -1, 2)).split([size**2, 3], dim=1)
    flat = flat + torch.eye(3, dtype=torch.float64)[:, 1:]
    expected = kornia.warp_points_tps(points.expand(2, -1, -1), control.expand(2, -1, -1), 2 * bent, flat)
    torch.testing.assert_close(moved, expected, atol=1e-8, rtol=1e-8)


def test_thin_plate_spline_meets_its_lattice_unless_ridge_lets_it_go() -> None:
    for ridge, met in ((0.0, True), (0.5, False)):
        warp = ThinPlateSpline(4, ridge=ridge)
        theta, control = near_identity(warp, 2), lattice_points(4).float()
        target = control + theta.view(2, -1, 2)
        assert torch.allclose(warp(theta, control), target, atol=1e-5) is met


@pytest.mark.parametrize("size", [4, 6])
def test_b_spline_is_scipys(size: int) -> None:
    warp = BSpline(size)
    theta, points = near_identity(warp, 1, dtype=torch.float64), some_points(40, dtype=torch.float64)
    spacing = 2 / (size - 3)
    knots = -1 + spacing * (np.arange(size + 4) - 3)
    x, y = points.numpy().T
    along_x, along_y = (SciPySpline.design_matrix(axis, knots, 3).toarray() for axis in (x, y))
    control = theta.view(size, size, 2).numpy()
    expected = points.numpy() + np.einsum("my,mx,yxd->md", along_y, along_x, control)
    np.testing.assert_allclose(warp(theta, points)[0].numpy(), expected, atol=1e-10)


def test_a_constant_velocity_is_a_shift() -> None:
    warp = Diffeomorphic()
    inner = some_points(20) / 2
    theta = torch.tensor([0.1, -0.2]).repeat(warp.num_params // 2)[None]
    by = 0.5 * (torch.tensor([0.1, -0.2]) / 0.5).tanh()
    torch.testing.assert_close(warp(theta, inner)[0], inner + by, atol=1e-5, rtol=0)


def test_a_diffeomorphic_warp_is_the_flow_of_its_velocity() -> None:
    """Against a fine Euler integration of the same velocity."""
    warp = Diffeomorphic()
    theta, found = near_identity(warp, 2, by=0.3), some_points(30).expand(2, -1, -1) / 2
    moved = warp(theta, found)
    velocity = warp.bound * (theta / warp.bound).tanh()
    field = BSpline(warp.size)
    steps = 2000
    for _ in range(steps):
        found = found + (field(velocity, found) - found) / steps
    torch.testing.assert_close(moved, found, atol=0.01, rtol=0)


def test_log_polar_is_opencvs() -> None:
    """Where cv2.warpPolar reads, column = log-radius and row = angle from 0; seen in an image of its coordinates."""
    size, centre, outer = 64, (30.0, 34.0), 24.0
    y, x = np.mgrid[:size, :size].astype(np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_POLAR_LOG
    rows, columns = 16, 24
    read = np.stack([cv2.warpPolar(axis, (columns, rows), centre, outer, flags) for axis in (x, y)], axis=-1)
    # OpenCV's angle goes once around from row 0; its radius is ours less 1 pixel, so that it starts at 0.
    row, column = np.mgrid[:rows, 1:columns]
    angle = (2 * row / rows + 1) % 2 - 1
    points = np.stack((angle, 2 * column / columns - 1), axis=-1).reshape(-1, 2).astype(np.float32)
    warp = LogPolar(inner=1 / (size / 2), outer=outer / (size / 2))
    origin = torch.tensor([[(axis + 0.5) / (size / 2) - 1 for axis in centre]])
    pixels = (warp(origin, torch.from_numpy(points))[0].numpy() + 1) * size / 2 - 0.5
    outwards = np.stack((np.cos(np.pi * angle), np.sin(np.pi * angle)), axis=-1)
    np.testing.assert_allclose(pixels.reshape(rows, columns - 1, 2) - outwards, read[:, 1:], atol=0.05)


def test_log_polar_comes_round() -> None:
    theta, points = torch.tensor([[0.1, 0.2]]), some_points(20)
    around = points + torch.tensor([2.0, 0.0])
    torch.testing.assert_close(LogPolar()(theta, around), LogPolar()(theta, points), atol=1e-5, rtol=0)


def test_log_polar_turns_a_rotation_and_a_scale_into_a_shift() -> None:
    warp, theta = LogPolar(), torch.zeros(1, 2)
    points, turn, scale = some_points(20), 0.3, 1.2
    matrix = scale * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    shift = torch.tensor([turn / math.pi, 2 * math.log(scale) / math.log(16)])
    torch.testing.assert_close(warp(theta, points) @ matrix.T, warp(theta, points + shift), atol=1e-5, rtol=0)


@given(
    degrees=st.floats(-179, 179),
    scale=st.floats(0.1, 3),
    aspect=st.floats(0.3, 3),
    shear=st.floats(-1, 1),
    shift=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_decompose_finds_what_composed_it(
    degrees: float, scale: float, aspect: float, shear: float, shift: tuple[float, float]
) -> None:
    turn, root = math.radians(degrees), math.sqrt(aspect)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ torch.tensor([[1, shear], [0, 1]]) @ torch.diag(torch.tensor([scale / root, scale * root]))
    theta = torch.cat((linear, torch.tensor(shift)[:, None]), dim=1).view(1, 6)
    parts = {name: value.item() for name, value in Affine().decompose(theta).items()}
    assert math.cos(parts["rotation"] - turn) == pytest.approx(1, abs=1e-6)
    assert parts["scale"] == pytest.approx(scale, rel=1e-4)
    assert parts["aspect"] == pytest.approx(aspect, rel=1e-3)
    assert parts["shear"] == pytest.approx(shear, abs=1e-3)
    assert (parts["shift_x"], parts["shift_y"]) == pytest.approx(shift, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_in_the_same_terms(family: Callable[[], Warp]) -> None:
    warp = family()
    parts = warp.decompose(near_identity(warp, 3))
    assert list(parts) == ["rotation", "scale", "aspect", "shear", "shift_x", "shift_y"]
    assert all(value.shape == (3,) for value in parts.values())


def mirrored(warp: Warp, theta: Tensor) -> Tensor:
    """θ of what the warps of θ are seen to do in a mirror, left for right."""
    if isinstance(warp, MatrixGroup):
        mirror = torch.tensor([-1.0, 1.0, 1.0])
        return warp.parameters_of(mirror[:, None] * warp.matrix(theta) * mirror)
    if isinstance(warp, AffineExponential):
        return theta * torch.tensor([1.0, -1, -1, -1, 1, 1])
    if isinstance(warp, RotationClasses):
        return torch.cat((theta[:, :-3].flip(1), theta[:, -3:] * torch.tensor([1.0, -1, 1])), dim=1)
    assert isinstance(warp, (ThinPlateSpline, BSpline, Diffeomorphic))
    lattice = theta.unflatten(1, (warp.size, warp.size, 2))
    return (lattice.flip(2) * torch.tensor([-1.0, 1.0])).flatten(1)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family is not LogPolar])
@given(seed=SEEDS, height=st.integers(4, 20), width=st.integers(4, 20))
def test_mirroring_the_image_and_theta_mirrors_what_is_sampled(
    family: Callable[[], Warp], seed: int, height: int, width: int
) -> None:
    transformer = SpatialTransformer(nn.Linear(1, 1), family())
    theta = near_identity(transformer.warp, 2, seed)
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    seen = transformer.transform(image.flip(3), mirrored(transformer.warp, theta)).flip(3)
    torch.testing.assert_close(seen, transformer.transform(image, theta), atol=1e-4, rtol=0)


def test_a_projective_divisor_near_zero_gives_finite_points_and_gradients() -> None:
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, 1, 0], [1.0, 0, 0, 0, 1, 0, -3, 2]], requires_grad=True)
    moved = Projective()(theta, lattice_points(41).float())
    moved.square().mean().backward()
    assert moved.isfinite().all() and theta.grad is not None and theta.grad.isfinite().all()
    # What the horizon holds has no gradient for the divisor, computed by hand or to be differentiated again.
    at = torch.tensor([[-1.0, 0.0]])
    (by_hand,), (again,) = (
        torch.autograd.grad(Projective()(theta[:1], at).sum(), theta, create_graph=twice) for twice in (False, True)
    )
    torch.testing.assert_close(by_hand, again.detach())
    assert by_hand[0, 6:].abs().max() == 0 < by_hand[0, :6].abs().max()
    # The divisor keeps its sign on either side of the horizon.
    beside = Projective()(theta.detach()[:1], torch.tensor([[-0.9999, 0.0], [-1.0001, 0.0]]))
    assert beside[0, 0, 0] < 0 < beside[0, 1, 0]


@pytest.mark.parametrize(
    ("theta", "points", "said"),
    [
        (torch.zeros(2, 5), torch.zeros(4, 2), r"theta must be \(N, 6\) for Affine, not \(2, 5\)"),
        (torch.zeros(6), torch.zeros(4, 2), r"theta must be \(N, 6\) for Affine, not \(6,\)"),
        (torch.zeros(2, 6), torch.zeros(4, 3), r"points must be \(M, 2\).*\(4, 3\)"),
    ],
)
def test_other_shapes_are_named(theta: Tensor, points: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Affine()(theta, points)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ThinPlateSpline(1), "size must lie between 2 and 32 control points a side, not 1"),
        (lambda: BSpline(3), "size must lie between 4 and 32 control points a side, not 3"),
        (lambda: Diffeomorphic(1), "size must lie between 4 and 32 control points a side, not 1"),
        (lambda: Diffeomorphic(bound=0), "bound 0, nodes 33 and squarings 6 must be above 0"),
        (lambda: ThinPlateSpline(ridge=-1), "ridge must not be negative, not -1"),
        (lambda: Projective(horizon=0), "horizon must be above 0, not 0"),
        (lambda: LogPolar(inner=2), "0 < inner < outer must hold, not 2 and 1.0"),
    ],
)
def test_what_cannot_be_a_warp_is_named(make: Callable[[], Warp], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(("classes", "span"), [(25, 180.0), (24, 360.0), (25, 360.0)])
def test_rotation_classes_find_the_angle_between_two_classes(classes: int, span: float) -> None:
    warp = RotationClasses(classes, span)
    angle = torch.linspace(-span / 2, span / 2, 101).deg2rad()
    shares = warp.shares(angle)
    assert torch.allclose(shares.sum(dim=1), torch.ones(101)) and ((shares > 0).sum(dim=1) <= 2).all()
    theta = torch.cat((shares.clamp(min=1e-12).log(), torch.zeros(101, 3)), dim=1)
    found = warp.decompose(theta)["rotation"]
    assert ((found - angle).cos() > 1 - 1e-6).all()


def test_a_rotation_between_two_far_classes_is_one_of_them() -> None:
    warp = RotationClasses()
    theta = warp.identity()[None].clone()
    theta[0, :25] = 0
    theta[0, [2, 14]] = torch.tensor([9.0, 10.0])  # -75 and 15 degrees
    assert abs(float(warp.decompose(theta)["rotation"].rad2deg()) - 15) < 0.1


@pytest.mark.parametrize(
    "warp", [RotationClasses(), Affine(), ThinPlateSpline(3)], ids=lambda warp: type(warp).__name__
)
def test_the_pose_loss_is_least_at_the_truth(warp: Warp) -> None:
    truth = torch.tensor([[0.6, -0.5, 0.1, 0.5, 0.6, -0.2], [0.9, 0.1, 0.0, -0.1, 0.9, 0.3]])
    figure = Affine()(truth, lattice_points(4).float())
    theta = warp.identity().repeat(2, 1).requires_grad_()
    start = warp.pose_loss(theta, figure)
    optimizer = torch.optim.Adam([theta], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        warp.pose_loss(theta, figure).sum().backward()
        optimizer.step()
    assert start.shape == (2,)
    error = (warp(theta, lattice_points(4).float()) - figure).norm(dim=-1)
    assert error.max() < 0.03, error.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 24}, "classes must be odd unless span is 360 degrees, not 24"),
        ({"classes": 1}, "classes must lie between 2 and 360"),
        ({"span": 400}, "span between 0 and 360"),
        ({"largest_scale": 1}, "largest_scale must be above 1"),
        ({"largest_shift": 1e30}, "both up to 100, not 2.0 and 1e\\+30"),
        ({"largest_shift": 0}, "largest_shift above 0"),
    ],
)
def test_rotation_classes_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotationClasses(**options)


@pytest.mark.parametrize("span", [180.0, 360.0])
def test_the_second_best_rotation_is_another_hypothesis(span: float) -> None:
    warp = RotationClasses(25, span)
    step = math.degrees(warp.step)
    theta = torch.full((2, 28), -20.0)
    theta[:, -3:] = torch.tensor([0.3, -0.2, 0.1])
    theta[0, [0, 1, 12]] = torch.tensor([2.0, 1.5, 1.0])  # the first two are one hypothesis
    theta[1, [23, 24, 0, 6]] = torch.tensor([0.5, 2.0, 1.9, 1.0])  # on the full circle, so are the first three
    other, share = warp.second_best(theta)
    found = warp.decompose(other)["rotation"].rad2deg()
    last = (6 - 12) * step if span == 360 else -12 * step
    assert ((found - torch.tensor([0.0, last])).deg2rad().cos() > 1 - 1e-4).all(), found
    shares = theta[:, :25].softmax(dim=1)
    expected = [shares[0, :4].sum(), shares[1, [21, 22, 23, 24, 0]].sum() if span == 360 else shares[1, 21:].sum()]
    torch.testing.assert_close(share, torch.stack(expected))
    for name in ("scale", "shift_x", "shift_y"):
        torch.testing.assert_close(warp.decompose(other)[name], warp.decompose(theta)[name])
