from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from stn.layers import Affine, ConvLocalization, SpatialTransformer, Warp
from stn.networks import ConvNet, ConvNorm, LeNet5, Residual, Whitening, WideConvNet, sequential, transformed
from stn.optimization import Optimization


def placed(placement: Any, warp: Warp | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return transformed(
        partial(WideConvNet, widths=[8, 12], convolutions=[1, 1]),
        partial(ConvLocalization, channels=[4], kernels=[5], hidden=8),
        warp or Affine(),
        SpatialTransformer,
        placement,
    )


@pytest.mark.parametrize(
    ("placement", "names"),
    [
        ("none", ["classifier"]),
        ("input", ["transformer", "classifier"]),
        ("features", ["stage_1", "transformer_1", "classifier"]),
        ("deep", ["transformer", "stage_1", "transformer_1", "stage_2", "transformer_2", "classifier"]),
        ("parallel", ["transformer", "classifier"]),
        ("shared", ["transformer", "classifier"]),
    ],
)
def test_transformers_stand_where_they_are_placed(placement: str, names: list[str]) -> None:
    network, images = placed(placement).eval(), torch.rand(2, 3, 32, 32)
    assert [name for name, _ in network.named_children()] == names
    assert network(images).shape == (2, 10)


@pytest.mark.parametrize("placement", ["input", "features", "deep", "shared"])
def test_a_new_transformer_anywhere_changes_nothing(placement: str) -> None:
    network, images = placed(placement).eval(), torch.rand(2, 3, 32, 32)
    bare = nn.Sequential(*[stage for name, stage in network.named_children() if not name.startswith("transformer")])
    torch.testing.assert_close(network(images), bare(images), atol=1e-4, rtol=1e-4)


def test_a_shared_stage_is_the_classifiers_own_and_trains_at_its_rate() -> None:
    network = placed("shared")
    stage = network.get_submodule("classifier.0")
    assert network.get_submodule("transformer.localization.0") is stage
    groups = Optimization("sgd", 1.0, "constant", localization_lr=0.1).groups(network)
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert all(rates[parameter] == 1.0 for parameter in stage.parameters() if parameter.requires_grad)
    assert all(rates[parameter] == 0.1 for parameter in network.get_submodule("transformer.head").parameters())
    assert all(rates[p] == 0.1 for p in network.get_submodule("transformer.localization.1").parameters())


def test_images_side_by_side_are_whitened_alike() -> None:
    images = torch.rand(4, 3, 9, 9)
    one, two = Whitening(), Whitening(in_channels=6)
    for layer in (one, two):
        layer.fit(images)
    torch.testing.assert_close(two(torch.cat((images, images), dim=1)), one(images).repeat(1, 2, 1, 1))


def test_sequential_keeps_names_and_order() -> None:
    net = sequential(first=nn.Linear(3, 4), second=nn.Linear(4, 2))
    assert [name for name, _ in net.named_children()] == ["first", "second"]
    assert net(torch.rand(5, 3)).shape == (5, 2)


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (ConvNet(num_classes=7), 32),
        (ConvNet(num_classes=7, image_size=48), 48),
        (LeNet5(num_classes=7), 32),
        (LeNet5(num_classes=7, image_size=28), 28),
        (WideConvNet(widths=[8, 8], convolutions=[1, 2], num_classes=7), 32),
        (WideConvNet(widths=[8, 8], convolutions=[1, 2], num_classes=7), 50),
    ],
)
def test_scores_of_any_image_size(network: nn.Module, size: int) -> None:
    assert network(torch.rand(3, 3, size, size)).shape == (3, 7)


@pytest.mark.parametrize("network", [ConvNet, LeNet5])
def test_too_small_images_are_named(network: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="image_size 12 is too small for 2 convolutions with kernel 5"):
        network(image_size=12)


def test_the_tutorials_network_drops_whole_maps_and_single_features() -> None:
    network = ConvNet(dropout=0.5)
    images = torch.rand(2, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_wide_net_scales_its_scores() -> None:
    torch.manual_seed(0)
    plain = WideConvNet(widths=[8, 8], convolutions=[1, 2], scale=1.0).eval()
    scaled = WideConvNet(widths=[8, 8], convolutions=[1, 2], scale=0.125).eval()
    scaled.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(scaled(images), plain(images) / 8)


def test_whitened_patches_are_uncorrelated_and_of_variance_one() -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 3, 16, 16).cumsum(2) @ torch.rand(16, 16)
    layer = Whitening()
    layer.fit(images)
    responses = layer(images).mT.flatten(2).mT.flatten(0, 1)
    torch.testing.assert_close(responses[:, :12], -responses[:, 12:])
    second_moments = responses[:, :12].T @ responses[:, :12] / len(responses)
    assert (second_moments - torch.diag(second_moments.diag())).abs().max() < 1e-2
    assert second_moments.diag()[1:].sub(1).abs().max() < 0.1
    assert layer.fitted and not layer.weight.requires_grad


def test_a_new_convolution_hands_its_input_on() -> None:
    images = torch.rand(2, 4, 6, 6)
    torch.testing.assert_close(ConvNorm(4, 7)[0](images)[:, :4], images)


def test_residual_adds_its_input() -> None:
    double = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(double.weight, 2.0)
    torch.testing.assert_close(Residual(double)(torch.ones(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 3.0))


@pytest.mark.parametrize("options", [{"channels": [16]}, {"channels": [0, 4]}, {"hidden": 0}])
def test_the_tutorials_network_names_what_does_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="channels must be two numbers and hidden one"):
        ConvNet(**options)


@pytest.mark.parametrize("convolutions", [[1], [1, 3]])
def test_wide_net_names_what_does_not_fit(convolutions: list[int]) -> None:
    with pytest.raises(ValueError, match="convolutions must be 1 or 2 for each of the 2 widths"):
        WideConvNet(widths=[8, 8], convolutions=convolutions)
