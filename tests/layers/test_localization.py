import pytest
import torch

from stn.layers import (
    ConvLocalization,
    FeatureLocalization,
    FullyConnectedLocalization,
    KeypointLocalization,
    PoseLocalization,
)
from stn.layers.localization import CellMeans, MeanPlaces


def test_features_have_the_length_promised() -> None:
    localization = ConvLocalization(channels=[4, 6], kernels=[5, 3], hidden=7, in_channels=2, image_size=40, shrink=2)
    assert localization(torch.rand(3, 2, 40, 40)).shape == (3, localization.out_features) == (3, 7)


def test_shrink_sees_the_averages_of_blocks() -> None:
    torch.manual_seed(1)
    whole = ConvLocalization(channels=[4], kernels=[3], hidden=5, image_size=16)
    torch.manual_seed(1)
    shrunk = ConvLocalization(channels=[4], kernels=[3], hidden=5, image_size=32, shrink=2)
    image = torch.rand(2, 3, 16, 16)
    blocks = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(shrunk(blocks), whole(image))


def test_too_small_images_and_uneven_lists_are_named() -> None:
    with pytest.raises(ValueError, match=r"image_size 12 is too small for kernels \[7, 5\]"):
        ConvLocalization(image_size=12)
    with pytest.raises(ValueError, match=r"channels \[64, 128\] and kernels \[7\] must be of one length"):
        ConvLocalization(kernels=[7])


@pytest.mark.parametrize(("height", "width"), [(14, 16), (7, 5), (3, 4)])
def test_means_of_parts_are_adaptive_pooling(height: int, width: int) -> None:
    features = torch.randn(2, 3, height, width)
    torch.testing.assert_close(CellMeans(4)(features), torch.nn.AdaptiveAvgPool2d(4)(features))


def test_a_pose_localization_takes_any_size_and_names_what_is_wrong() -> None:
    localization = PoseLocalization([4, 6], in_channels=2, image_size=20, shrink=2, cells=3)
    for size in (20, 33):
        assert localization(torch.rand(3, 2, size, size)).shape == (3, localization.out_features) == (3, 54)
    with pytest.raises(ValueError, match="image_size 8 is too small for 3 stages and shrink 2"):
        PoseLocalization(image_size=8, shrink=2)
    with pytest.raises(ValueError, match="cells must be at most the image_size of 32, not 1000000000000"):
        PoseLocalization(cells=10**12)
    with pytest.raises(ValueError, match=r"widths \[0\].*must be 1 or more"):
        PoseLocalization([0])


def test_keypoints_are_two_numbers_each_on_images_of_any_size() -> None:
    localization = KeypointLocalization([4, 6], in_channels=2, image_size=20, shrink=2, points=5)
    for size in (20, 33):
        found = localization(torch.rand(3, 2, size, size))
        assert found.shape == (3, localization.out_features) == (3, 10) and found.abs().max() < 1
    with pytest.raises(ValueError, match=r"shrink 1, points 0 must be 1 or more"):
        KeypointLocalization(points=0)


def test_a_mean_place_is_exact_under_bfloat16() -> None:
    places = torch.rand(2, 3, 2) * 1.6 - 0.8
    x, y = (torch.arange(40) * 2 + 1) / 40 - 1, (torch.arange(30) * 2 + 1) / 30 - 1
    # A Gaussian's logits, whose mean place is its centre.
    squares = (y[:, None] - places[..., 1, None, None]) ** 2 + (x - places[..., 0, None, None]) ** 2
    found = MeanPlaces()(-200 * squares)
    torch.testing.assert_close(found, places, atol=1e-3, rtol=0)
    rounded = (-200 * squares).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = MeanPlaces()(rounded)
    torch.testing.assert_close(under_autocast, MeanPlaces()(rounded.float()))


@pytest.mark.parametrize("family", [ConvLocalization, FullyConnectedLocalization])
def test_images_of_another_shape_are_told(family: type[ConvLocalization | FullyConnectedLocalization]) -> None:
    for shape in ((3, 64, 64), (1, 32, 32)):
        with pytest.raises(ValueError, match=r"in_channels=3 and image_size=32, and gets .*(64, 64|1, 32)"):
            family()(torch.rand(2, *shape))


def test_a_fully_connected_localization_has_linear_layers_alone() -> None:
    localization = FullyConnectedLocalization([4, 6], in_channels=2, image_size=5)
    assert localization(torch.rand(3, 2, 5, 5)).shape == (3, localization.out_features) == (3, 6)
    assert sum(parameter.numel() for parameter in localization.parameters()) == 50 * 4 + 4 + 4 * 6 + 6
    with pytest.raises(ValueError, match=r"hidden \[\], in_channels 3 and image_size 32 must be 1 or more"):
        FullyConnectedLocalization([])


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"cells": 0}, {"hidden": 0}])
def test_a_localization_of_features_names_what_is_wrong(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} 0.* must be 1 or more"):
        FeatureLocalization(3, **wrong)
