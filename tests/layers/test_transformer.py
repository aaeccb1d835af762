import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import kornia.geometry.transform as kornia
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn import (
    Affine,
    AffineExponential,
    Attention,
    BSpline,
    ConvLocalization,
    Diffeomorphic,
    LogPolar,
    Parallel,
    Projective,
    Rotation,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Translation,
    Warp,
    recording,
    thetas,
    transformers,
)
from stn.layers.sampling import Mode

FAMILIES: list[Callable[[], Warp]] = [
    Affine,
    AffineExponential,
    Attention,
    BSpline,
    Diffeomorphic,
    LogPolar,
    Projective,
    Rotation,
    Similarity,
    ThinPlateSpline,
    Translation,
]


def turned(warp: Warp | None = None, seed: int = 0, by: float = 0.5, **options: object) -> SpatialTransformer:
    """A transformer whose last layer has random weights, so that every image is warped in its own way."""
    torch.manual_seed(seed)
    localization = ConvLocalization(channels=[4, 4], hidden=8)
    transformer = SpatialTransformer(localization, warp, **options)  # type: ignore[arg-type]
    nn.init.normal_(transformer.head.weight, std=by)
    return transformer


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family is not LogPolar])
@pytest.mark.parametrize("num_looks", [1, 3])
def test_a_new_transformer_changes_nothing(family: Callable[[], Warp], num_looks: int) -> None:
    images = torch.rand(4, 3, 32, 32)
    transformer = SpatialTransformer(ConvLocalization(), family(), num_looks=num_looks)
    assert torch.equal(transformer.theta(images), family().identity().repeat(num_looks).expand(4, -1))
    torch.testing.assert_close(transformer(images), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("padding", "align_corners"), list(product(["zeros", "border", "reflection"], [False, True])))
def test_forward_is_pytorchs_affine_grid_and_grid_sample(padding: str, align_corners: bool) -> None:
    transformer = turned(padding=padding, align_corners=align_corners)
    images = torch.rand(4, 3, 32, 32)
    theta = transformer.theta(images)
    grid = F.affine_grid(theta.view(4, 2, 3), [4, 3, 32, 32], align_corners=align_corners)
    expected = F.grid_sample(images, grid, padding_mode=padding, align_corners=align_corners)
    torch.testing.assert_close(transformer(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("warp", [Affine(), Projective()])
def test_forward_is_kornias_homography_warp(warp: Affine | Projective) -> None:
    transformer = turned(warp, by=0.1, padding="zeros", align_corners=True).double()
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    matrix = warp.matrix(transformer.theta(images))
    expected = kornia.homography_warp(images, matrix, (32, 32), align_corners=True)
    torch.testing.assert_close(transformer(images), expected, atol=1e-5, rtol=1e-5)


def test_forward_is_kornias_warp_affine() -> None:
    transformer = turned(by=0.1, padding="zeros", align_corners=True).double()
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    # kornia's matrix goes from the input's pixels to the output's.
    to_pixels = torch.tensor([[15.5, 0, 15.5], [0, 15.5, 15.5], [0, 0, 1]], dtype=torch.float64)
    matrix = to_pixels @ Affine().matrix(transformer.theta(images)).inverse() @ to_pixels.inverse()
    expected = kornia.warp_affine(images, matrix[:, :2], (32, 32), align_corners=True)
    torch.testing.assert_close(transformer(images), expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_reference() -> None:
    transformer = turned()
    images, weight = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    theta = transformer.theta(images)
    grid = F.affine_grid(theta.view(4, 2, 3), [4, 3, 32, 32], align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    wanted = torch.autograd.grad((expected * weight).sum(), list(transformer.parameters()))
    got = torch.autograd.grad((transformer(images) * weight).sum(), list(transformer.parameters()))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_the_image_is_that_of_float64(family: Callable[[], Warp]) -> None:
    """‖a − b‖/‖a‖ below 1e-3 for the same localization features: θ, grid and sampling are an island of float32."""
    transformer = turned(family(), by=0.3)
    images = torch.rand(4, 3, 32, 32).cumsum(3) / 16
    with torch.autocast("cpu", torch.bfloat16):
        features = transformer.localization(images)
        transformer.localization = Given(features)
        warped, theta = transformer(images, return_theta=True)
    assert features.dtype is torch.bfloat16
    assert theta.dtype is warped.dtype is torch.float32
    transformer.double()
    transformer.localization = Given(features)
    assert relative_error(warped, transformer(images.double())) < 1e-3


class Given(nn.Module):
    """A localization that gives the same features for every image."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features, self.out_features = features, features.shape[1]

    def forward(self, image: Tensor) -> Tensor:
        return self.features


def test_low_precision_images_are_read_at_float32_points() -> None:
    transformer, images = turned(), torch.rand(4, 3, 32, 32)
    theta = transformer.theta(images)
    for dtype in (torch.bfloat16, torch.float16):
        low = images.to(dtype)
        warped = transformer.transform(low, theta)
        assert warped.dtype is dtype
        torch.testing.assert_close(warped, transformer.transform(low.float(), theta).to(dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_looking_again_composes_the_warps_and_reads_the_original(family: Callable[[], Warp]) -> None:
    transformer = turned(family(), by=0.05, num_looks=2)
    once = turned(family(), by=0.05)
    images = torch.rand(3, 3, 32, 32)
    first = once.theta(images)
    second = once.theta(once.transform(images, first))
    theta = transformer.theta(images)
    torch.testing.assert_close(theta, torch.cat((first, second), dim=1), atol=1e-5, rtol=1e-5)
    points = torch.rand(10, 2) * 2 - 1
    both = once.warp(first, once.warp(second, points))
    torch.testing.assert_close(transformer.to_input(theta, points), both)
    if hasattr(transformer.warp, "compose"):
        composed = transformer.warp.compose(first, second)
        torch.testing.assert_close(transformer(images), once.transform(images, composed), atol=1e-4, rtol=1e-4)


def test_what_left_the_image_at_one_look_is_back_at_the_next() -> None:
    transformer = SpatialTransformer(ConvLocalization(), Translation(), num_looks=2, padding="zeros")
    images = torch.rand(1, 3, 32, 32)
    there_and_back = torch.tensor([[0.9, 0.3, -0.9, -0.3]])
    torch.testing.assert_close(transformer.transform(images, there_and_back), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
def test_another_output_size_sees_the_same_region(align_corners: bool) -> None:
    transformer = turned(output_size=[12, 20], align_corners=align_corners)
    images = torch.rand(2, 3, 32, 32)
    theta = transformer.theta(images)
    grid = F.affine_grid(theta.view(2, 2, 3), [2, 3, 12, 20], align_corners=align_corners)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=align_corners)
    torch.testing.assert_close(transformer(images), expected, atol=1e-4, rtol=1e-4)


def test_a_number_as_output_size_is_a_square() -> None:
    transformer = SpatialTransformer(ConvLocalization(), output_size=24)
    assert transformer(torch.rand(2, 3, 32, 32)).shape == (2, 3, 24, 24)


def test_samples_average_what_a_smaller_output_would_skip() -> None:
    images = torch.rand(2, 3, 32, 32)
    plain = SpatialTransformer(ConvLocalization(), output_size=[8, 8])
    smooth = SpatialTransformer(ConvLocalization(), output_size=[8, 8], supersample=4)
    torch.testing.assert_close(smooth(images), F.avg_pool2d(images, 4), atol=1e-5, rtol=0)
    assert (plain(images) - F.avg_pool2d(images, 4)).abs().max() > 0.1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("family", [Attention, Similarity, Affine, Projective])
def test_parallel_transformers_start_tiling_the_image(family: Callable[[], Warp], count: int) -> None:
    parts = [SpatialTransformer(ConvLocalization(), family()) for _ in range(count)]
    images = torch.rand(2, 3, 32, 32)
    joined = Parallel(parts)(images)
    assert joined.shape == (2, 3 * count, 32, 32)
    starts = {tuple(part.head.bias.tolist()) for part in parts}
    assert len(starts) == count
    if count == 4:
        corners = [images[:, :, y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
        for part, corner in zip(joined.split(3, dim=1), corners, strict=True):
            inner = F.interpolate(corner, scale_factor=2, mode="bilinear")[:, :, 1:-1, 1:-1]
            torch.testing.assert_close(part[:, :, 1:-1, 1:-1], inner, atol=1e-5, rtol=0)


def test_theta_is_handed_on_as_channels() -> None:
    transformer, images = turned(append_theta=True), torch.rand(2, 3, 32, 32)
    warped, theta = transformer(images, return_theta=True)
    assert warped.shape == (2, 9, 32, 32)
    assert torch.equal(warped[:, 3:], theta[:, :, None, None].expand(-1, -1, 32, 32))
    torch.testing.assert_close(warped[:, :3], transformer.transform(images, theta))


@pytest.mark.parametrize(("family", "num_looks"), list(product(FAMILIES, [1, 2])))
def test_points_go_to_the_output_and_back(family: Callable[[], Warp], num_looks: int) -> None:
    """Points of each image, and points of all images."""
    transformer = turned(family(), by=0.02, num_looks=num_looks)
    theta = transformer.theta(torch.rand(3, 3, 32, 32))
    for points in (torch.rand(3, 9, 2) - 0.5, torch.rand(9, 2) - 0.5):
        found = transformer.to_output(theta, points)
        within = 0.01 if family is Diffeomorphic else 1e-4
        back = transformer.to_input(theta, found)
        torch.testing.assert_close(back, points.expand(3, -1, -1), atol=within, rtol=0)


def test_a_box_found_in_the_output_encloses_its_place_in_the_input() -> None:
    transformer = SpatialTransformer(ConvLocalization(), Attention())
    boxes = torch.tensor([[[-1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]]])
    found = transformer.boxes_to_input(torch.tensor([[0.5, 0.25, -0.25]]), boxes)
    torch.testing.assert_close(found, torch.tensor([[[-0.25, -0.75, 0.75, 0.25], [0.25, -0.25, 0.5, 0.25]]]))
    quarter = SpatialTransformer(ConvLocalization(), Rotation())
    turned_box = quarter.boxes_to_input(torch.tensor([[torch.pi / 2]]), torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]))
    torch.testing.assert_close(turned_box, torch.tensor([[[-1.0, 0.0, 0.0, 0.5]]]), atol=1e-6, rtol=0)


def test_localization_features_use_autocast() -> None:
    transformer = turned()
    with torch.autocast("cpu", torch.bfloat16):
        assert transformer.localization(torch.rand(1, 3, 32, 32)).dtype is torch.bfloat16


def test_a_feature_map_is_warped_as_an_image_is() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        SpatialTransformer(ConvLocalization(channels=[4], kernels=[3], in_channels=5, hidden=8), num_looks=2),
        nn.Conv2d(5, 2, 3, padding=1),
    )
    images = torch.rand(2, 3, 32, 32)
    assert list(transformers(network)) == ["1"]
    assert network(images).shape == (2, 2, 32, 32)
    found = thetas(network, images)
    assert torch.equal(found["1"], network[1].theta(network[0](images)))
    assert not network[1].head._forward_hooks and not network[1]._forward_hooks


def test_recording_keeps_every_pass() -> None:
    transformer = turned()
    with recording(transformer) as seen:
        transformer.theta(torch.rand(2, 3, 32, 32))  # no pass
        transformer(torch.rand(2, 3, 32, 32))
        transformer(torch.rand(5, 3, 32, 32))
    assert [(one.theta.shape, one.height, one.width) for one in seen[""]] == [((2, 6), 32, 32), ((5, 6), 32, 32)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_to_one_graph_for_any_batch(backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    torch.compiler.reset()
    transformer = turned(by=0.05, num_looks=2)
    compiled = torch.compile(transformer, fullgraph=True, dynamic=True, backend=backend)
    for count in (2, 5):
        images = torch.rand(count, 3, 32, 32)
        results = []
        for module in (transformer, compiled):
            transformer.zero_grad()
            warped = module(images)
            warped.square().sum().backward()
            results.append((warped.detach(), transformer.head.weight.grad.clone()))
        for plain, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_warp_compiles_to_one_graph_for_any_batch(family: Callable[[], Warp]) -> None:
    """Of two looks, the first to act is given the same points for all images, and the other one those of each."""
    torch.compiler.reset()
    transformer = turned(family(), by=0.05, num_looks=2)
    compiled = torch.compile(transformer.transform, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (2, 5):
        images = torch.rand(count, 3, 32, 32)
        theta = transformer.theta(images).detach().requires_grad_()
        results = []
        for transform in (transformer.transform, compiled):
            warped = transform(images, theta)
            (gradient,) = torch.autograd.grad(warped.square().sum(), theta)
            results.append((warped.detach(), gradient))
        for plain, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_exported_with_any_batch(family: Callable[[], Warp]) -> None:
    transformer = turned(family(), by=0.05).eval()
    batch = {"image": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(transformer, (torch.rand(2, 3, 32, 32),), dynamic_shapes=(batch["image"],))
    images = torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(exported.module()(images), transformer(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [Affine, Projective, ThinPlateSpline])
def test_onnxruntime_gives_the_same(family: Callable[[], Warp], tmp_path: Path) -> None:
    transformer = turned(family(), by=0.05).eval()
    path = tmp_path / "transformer.onnx"
    batch = {0: torch.export.Dim("batch")}
    program = torch.onnx.export(
        transformer, (torch.rand(2, 3, 32, 32),), dynamo=True, dynamic_shapes=(batch,), verbose=False
    )
    assert program is not None
    program.save(path)
    images = torch.rand(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), transformer(images), atol=1e-4, rtol=1e-4)


def test_a_projective_horizon_in_the_image_gives_finite_gradients() -> None:
    transformer, images = turned(Projective()), torch.rand(4, 3, 32, 32, requires_grad=True)
    theta = torch.tensor([1.0, 0, 0, 0, 1, 0, 2, -3]).repeat(4, 1).requires_grad_()
    warped = transformer.transform(images, theta)
    warped.square().sum().backward()
    assert all(tensor is not None and tensor.isfinite().all() for tensor in (warped, images.grad, theta.grad))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"padding": "same"}, "padding must be one of zeros, border, reflection, or a number.*not 'same'"),
        ({"mode": "cubic"}, "mode must be one of nearest, bilinear, bicubic, not 'cubic'"),
        *(
            (
                {"output_size": size},
                "output_size must be a whole number or .height, width., each from 1 to 1024, not " + said,
            )
            for size, said in [
                ([0, 8], r"\[0, 8\]"),
                ([8], r"\[8\]"),
                ([8, 8.5], r"\[8, 8.5\]"),
                ([8, True], r"\[8, True\]"),
                (0, "0"),
                (-3, "-3"),
                (24.0, "24.0"),
                (True, "True"),
                ("24", "'24'"),
                (1025, "1025"),
            ]
        ),
        ({"num_looks": 0}, "num_looks must lie between 1 and 16, and supersample between 1 and 8, not 0 and 1"),
        ({"supersample": 0}, "num_looks must lie between 1 and 16, and supersample between 1 and 8, not 1 and 0"),
    ],
)
def test_options_that_cannot_be_meant_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SpatialTransformer(ConvLocalization(), **options)  # type: ignore[arg-type]


def test_what_cannot_be_transformed_is_named() -> None:
    with pytest.raises(ValueError, match="branches must hold a transformer or more"):
        Parallel([])
    with pytest.raises(ValueError, match="the localization Identity needs an attribute out_features"):
        SpatialTransformer(nn.Identity())
    transformer, images = SpatialTransformer(ConvLocalization()), torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"takes \(N, C, H, W\), not \(3, 32, 32\)"):
        transformer(images[0])
    with pytest.raises(ValueError, match=r"theta must be \(N, 6\) for each look, not \(2, 5\)"):
        transformer.transform(images, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="theta must be finite"):
        transformer.transform(images, torch.full((2, 6), torch.nan))


class Bare:
    """A warp that is no `Warp`, with all that a transformer needs."""

    num_params = 2

    def identity(self) -> Tensor:
        return torch.zeros(2)

    def __call__(self, theta: Tensor, points: Tensor) -> Tensor:
        return points + theta[:, None]


class WithoutIdentity:
    num_params = 2

    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        return points


class WithoutParameters(Warp):
    def identity(self) -> Tensor:
        return torch.zeros(2)

    def move(self, theta: Tensor, points: Tensor) -> Tensor:
        return points


class WithoutMove(Warp):
    num_params = 2

    def identity(self) -> Tensor:
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("warp", "said"),
    [
        (Affine, "warp must be an object such as Affine.., not the class Affine"),
        (ThinPlateSpline, "warp must be an object such as Affine.., not the class ThinPlateSpline"),
        (
            "affine",
            "warp must be a Warp such as Affine.., not an object of class str, which lacks num_params and identity",
        ),
        (nn.Identity(), "class Identity, which lacks num_params and identity..$"),
        (WithoutIdentity(), "class WithoutIdentity, which lacks identity.. and the call warp.theta, points.$"),
        (WithoutParameters(), "class WithoutParameters, which lacks num_params$"),
    ],
)
def test_what_is_no_warp_is_told_what_it_lacks(warp: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SpatialTransformer(ConvLocalization(), warp)  # type: ignore[arg-type]


def test_a_warp_of_ones_own_needs_move_and_no_base() -> None:
    with pytest.raises(TypeError, match=r"abstract class WithoutMove .*move"):
        WithoutMove()  # type: ignore[abstract]
    images = torch.rand(2, 3, 32, 32)
    transformer = SpatialTransformer(ConvLocalization(), Bare())  # type: ignore[arg-type]
    torch.testing.assert_close(transformer(images), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_images_and_theta_that_are_not_finite_do_no_harm(family: Callable[[], Warp], padding: str) -> None:
    """A step of training on them has a gradient; it ended the process, where the sampler was given a NaN."""
    modes: list[Mode] = ["nearest", "bilinear", "bicubic"]
    for mode, bad in product(modes, (torch.nan, torch.inf, 1e30)):
        transformer = turned(family(), padding=padding, mode=mode)
        images = torch.rand(16, 3, 32, 32)
        images[3] = bad
        transformer(images).sum().backward()
    for bad in (torch.nan, torch.inf, -torch.inf, 1e30, 1e4):
        theta = torch.full((4, transformer.warp.num_params), bad)
        grid = transformer.grid(theta, 8, 8)
        assert grid.isfinite().all(), bad


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_the_gradient_that_reaches_theta(share: float) -> None:
    image = torch.rand(3, 1, 12, 12)
    gradients = {}
    for value in (1.0, share):
        torch.manual_seed(1)
        localization = ConvLocalization([4], [3], 8, in_channels=1, image_size=12)
        transformer = SpatialTransformer(localization, classifier_gradient=value)
        warped, theta = transformer(image, return_theta=True)
        (warped.square().sum() + theta[:, 0].sum()).backward()  # a loss of what is read, and one of θ itself
        assert transformer.head.bias.grad is not None
        gradients[value] = transformer.head.bias.grad.clone()
    own = torch.tensor([3.0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(gradients[share], own + share * (gradients[1.0] - own))


def test_a_share_of_the_gradient_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="classifier_gradient must lie between 0 and 1, not 2"):
        SpatialTransformer(ConvLocalization(), classifier_gradient=2)


def test_pixels_that_are_no_floats_are_told() -> None:
    with pytest.raises(ValueError, match=r"takes floats, not torch\.uint8: divide pixels by 255"):
        SpatialTransformer(ConvLocalization())(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
