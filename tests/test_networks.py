import copy
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import normalize

from stn.networks import ConvNet, ConvNorm, FullyConnected, LeNet5, Normalization, Residual, Whitening, WideConvNet


def test_images_side_by_side_are_whitened_alike() -> None:
    images = torch.rand(4, 3, 9, 9)
    one, two = Whitening(), Whitening(in_channels=6)
    for layer in (one, two):
        layer.fit(images)
    torch.testing.assert_close(two(torch.cat((images, images), dim=1)), one(images).repeat(1, 2, 1, 1))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_images_of_any_number_of_channels_are_whitened(channels: int) -> None:
    images = torch.rand(4, channels, 9, 9)
    layer = Whitening(in_channels=channels)
    layer.fit(images)
    assert layer(images).shape == (4, 8 * channels, 8, 8)


def test_channels_beyond_the_images_keep_their_filters() -> None:
    """As θ's are, where it is appended to the image."""
    images, appended = torch.rand(4, 3, 9, 9), torch.rand(4, 2, 9, 9)
    one, more = Whitening(), Whitening(in_channels=5)
    for layer in (one, more):
        layer.fit(images)
    found = more(torch.cat((images, appended), dim=1))
    torch.testing.assert_close(found[:, :24], one(images))
    assert found[:, 24:].abs().min(dim=0).values.max() > 0


def test_normalization_is_torchvisions_for_bytes_and_floats() -> None:
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    layer = Normalization()
    assert torch.equal(layer(images), images / 255)
    layer.fit(mean, std)
    for pixels in (images, images / 255):
        torch.testing.assert_close(layer(pixels), normalize(images / 255, mean, std))
    assert set(layer.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (ConvNet(num_classes=7), 32),
        (ConvNet(num_classes=7, image_size=48), 48),
        (ConvNet(num_classes=7, hidden=0), 32),
        (FullyConnected([4, 5, 6], num_classes=7, image_size=9), 9),
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
    with pytest.raises(ValueError, match=r"image_size 12 is too small for convolutions with kernels \[5, 5\]"):
        network(image_size=12)


def test_the_tutorials_network_drops_whole_maps_and_single_features() -> None:
    network = ConvNet(dropout=0.5)
    images = torch.rand(2, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_the_papers_network_for_digits_has_its_size() -> None:
    """5,248 + 200,768 in the convolutions and 2,570 behind them."""
    network = ConvNet([64, 64], [9, 7], hidden=0, dropout=0.0, in_channels=1, image_size=28)
    assert sum(parameter.numel() for parameter in network.parameters()) == 208_586


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


@pytest.mark.parametrize("options", [{"channels": [16]}, {"channels": [0, 4]}, {"kernels": [5]}, {"hidden": -1}])
def test_the_tutorials_network_names_what_does_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="channels and kernels must be two numbers each"):
        ConvNet(**options)


@pytest.mark.parametrize("hidden", [[8], [8, 0]])
def test_a_fully_connected_network_names_what_does_not_fit(hidden: list[int]) -> None:
    with pytest.raises(ValueError, match="hidden must be two numbers or more"):
        FullyConnected(hidden)


def test_wide_net_names_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="image_size 4 is too small for 2 stages that halve it"):
        WideConvNet(widths=[8, 8], convolutions=[1, 1], image_size=4)
    assert WideConvNet(widths=[8, 8], convolutions=[1, 1], image_size=5).eval()(torch.rand(1, 3, 5, 5)).shape == (1, 10)


@pytest.mark.parametrize("convolutions", [[1], [1, 3]])
def test_wide_net_names_what_does_not_fit(convolutions: list[int]) -> None:
    with pytest.raises(ValueError, match="convolutions must be 1 or 2 for each of the 2 widths"):
        WideConvNet(widths=[8, 8], convolutions=convolutions)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_has_the_same_gradients_in_bfloat16() -> None:
    network = WideConvNet([8, 16], [1, 1], image_size=16)
    compiled, images = copy.deepcopy(network), torch.randn(16, 3, 16, 16)
    compiled.compile()
    for one in (network, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            scores = one(images)
        scores.float().square().sum().backward()
    for (name, expected), found in zip(network.named_parameters(), compiled.parameters(), strict=True):
        if expected.requires_grad:
            assert expected.grad is not None and found.grad is not None
            difference = (found.grad - expected.grad).norm() / expected.grad.norm().clamp(min=1e-3)
            assert difference < 0.5, (name, difference)  # bfloat16 has ties, of which each takes another
