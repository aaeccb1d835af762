from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from stn.layers import Affine, ConvLocalization, SpatialTransformer, Warp
from stn.networks import LeNet5, WideConvNet
from stn.optimization import Optimization
from stn.placement import build_network


def placed(placement: Any, warp: Warp | None = None, **sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return build_network(
        partial(WideConvNet, widths=[8, 12], convolutions=[1, 1]),
        partial(ConvLocalization, channels=[4], kernels=[5], hidden=8),
        warp or Affine(),
        SpatialTransformer,
        placement,
        **sizes,
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
    groups = Optimization("sgd", 1.0, "constant", localization_lr_scale=0.1).groups(network)
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert all(rates[parameter] == 1.0 for parameter in stage.parameters() if parameter.requires_grad)
    assert all(rates[parameter] == 0.1 for parameter in network.get_submodule("transformer.head").parameters())
    assert all(rates[p] == 0.1 for p in network.get_submodule("transformer.localization.1").parameters())


@pytest.mark.parametrize("placement", ["none", "input", "features", "deep", "parallel", "shared"])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_number_of_channels(placement: Any, channels: int) -> None:
    network = placed(placement, in_channels=channels, image_size=20, num_classes=7).eval()
    assert network(torch.rand(2, channels, 20, 20)).shape == (2, 7)


@pytest.mark.parametrize("placement", ["input", "parallel", "deep"])
def test_the_classifier_is_made_for_what_the_transformer_gives(placement: Any) -> None:
    transformer = partial(SpatialTransformer, output_size=[24, 24], append_theta=placement != "deep")
    small = partial(ConvLocalization, channels=[4], kernels=[5], hidden=8)
    network = build_network(LeNet5, small, Affine(), transformer, "input" if placement == "deep" else placement).eval()
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_parts_that_do_not_fit_are_named() -> None:
    small = partial(ConvLocalization, channels=[4], kernels=[5], hidden=8)
    with pytest.raises(ValueError, match="the parts of the network do not fit together"):
        build_network(LeNet5, small, Affine(), partial(SpatialTransformer, output_size=[24, 24]), "features")
    with pytest.raises(ValueError, match=r"placement must be one of none, input, .*, not 'everywhere'"):
        placed("everywhere")
