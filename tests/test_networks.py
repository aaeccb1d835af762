import pytest
import torch
from torch import nn

from stn.networks import ConvNet, LeNet5, WideConvNet, sequential


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
        (WideConvNet(stem=4, widths=[8, 8], num_classes=7), 32),
        (WideConvNet(stem=4, widths=[8, 8], num_classes=7), 50),
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
    plain = WideConvNet(stem=4, widths=[8, 8], scale=1.0).eval()
    scaled = WideConvNet(stem=4, widths=[8, 8], scale=0.125).eval()
    scaled.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(scaled(images), plain(images) / 8)
