import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn import Affine, ConvLocalization, SpatialTransformer, thetas, transformers


def turned(seed: int = 0, **options: object) -> SpatialTransformer:
    """A transformer whose last layer has random weights, so that every image is warped in its own way."""
    torch.manual_seed(seed)
    transformer = SpatialTransformer(ConvLocalization(channels=[4, 4], hidden=8), **options)  # type: ignore[arg-type]
    nn.init.normal_(transformer.head.weight, std=0.5)
    return transformer


def test_a_new_transformer_changes_nothing() -> None:
    images = torch.rand(4, 3, 32, 32)
    transformer = SpatialTransformer(ConvLocalization())
    assert torch.equal(transformer.theta(images), Affine().identity().expand(4, 6))
    torch.testing.assert_close(transformer(images), images, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_forward_is_pytorchs_affine_grid_and_grid_sample(padding: str, align_corners: bool) -> None:
    transformer = turned(padding=padding, align_corners=align_corners)
    images = torch.rand(4, 3, 32, 32)
    theta = transformer.theta(images)
    grid = F.affine_grid(theta.view(4, 2, 3), [4, 3, 32, 32], align_corners=align_corners)
    expected = F.grid_sample(images, grid, padding_mode=padding, align_corners=align_corners)
    torch.testing.assert_close(transformer(images), expected, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_reference() -> None:
    transformer = turned()
    images = torch.rand(4, 3, 32, 32)
    weight = torch.rand(4, 3, 32, 32)
    theta = transformer.theta(images)
    grid = F.affine_grid(theta.view(4, 2, 3), [4, 3, 32, 32], align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    wanted = torch.autograd.grad((expected * weight).sum(), list(transformer.parameters()))
    got = torch.autograd.grad((transformer(images) * weight).sum(), list(transformer.parameters()))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)


def test_theta_grid_and_sampling_stay_in_float32_under_autocast() -> None:
    transformer = turned()
    images = torch.rand(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        theta = transformer.theta(images)
        grid = transformer.grid(theta, 32, 32)
        warped = transformer.transform(images, theta)
    assert theta.dtype is grid.dtype is warped.dtype is torch.float32
    assert torch.equal(grid, transformer.grid(theta, 32, 32))
    assert torch.equal(warped, transformer.transform(images, theta))


def test_localization_features_use_autocast() -> None:
    transformer = turned()
    with torch.autocast("cpu", torch.bfloat16):
        assert transformer.localization(torch.rand(1, 3, 32, 32)).dtype is torch.bfloat16


def test_a_feature_map_is_warped_as_an_image_is() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        SpatialTransformer(ConvLocalization(channels=[4], kernels=[3], in_channels=5, hidden=8)),
        nn.Conv2d(5, 2, 3, padding=1),
    )
    images = torch.rand(2, 3, 32, 32)
    assert list(transformers(network)) == ["1"]
    assert network(images).shape == (2, 2, 32, 32)
    found = thetas(network, images)
    assert found["1"].shape == (2, 6)
    assert not network[1].head._forward_hooks


def test_what_cannot_be_a_transformer_is_named() -> None:
    with pytest.raises(ValueError, match="the localization Identity needs an attribute out_features"):
        SpatialTransformer(nn.Identity())
    with pytest.raises(ValueError, match="padding must be one of zeros, border, reflection, not 'same'"):
        SpatialTransformer(ConvLocalization(), padding="same")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"takes \(N, C, H, W\), not \(3, 32, 32\)"):
        SpatialTransformer(ConvLocalization())(torch.rand(3, 32, 32))
