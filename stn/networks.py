"""The classifiers that transformers are put into. Each maps (N, 3, size, size) to class scores (N, num_classes)."""

from collections.abc import Sequence

from torch import Tensor, nn


def sequential(**stages: nn.Module) -> nn.Sequential:
    """The stages in the order given, under their names: a network as `conf/model` composes it."""
    net = nn.Sequential()
    for name, stage in stages.items():
        net.add_module(name, stage)
    return net


def size_after_pools(image_size: int, kernel: int, pools: int) -> int:
    """Side of the feature map after `pools` rounds of an unpadded convolution and a max-pool by 2."""
    size = image_size
    for _ in range(pools):
        size = (size - kernel + 1) // 2
    if size < 1:
        raise ValueError(f"image_size {image_size} is too small for {pools} convolutions with kernel {kernel}")
    return size


class ConvNet(nn.Sequential):
    """Two convolutions and two linear layers with dropout, as in PyTorch's spatial transformer tutorial."""

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        hidden: int = 1024,
        dropout: float = 0.5,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> None:
        first, second = channels
        size = size_after_pools(image_size, kernel=5, pools=2)
        super().__init__(
            nn.Conv2d(3, first, 5),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 5),
            nn.Dropout2d(dropout),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(second * size**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )


class LeNet5(nn.Sequential):
    """LeNet-5 on colour images (LeCun et al. 1998, with ReLU and max-pooling)."""

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        size = size_after_pools(image_size, kernel=5, pools=2)
        super().__init__(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * size**2, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )


def conv_bn(in_channels: int, out_channels: int, *, pool: bool = False) -> nn.Sequential:
    """3 x 3 convolution, max-pool by 2 if asked for, batch norm, GELU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
    )


class WideConvNet(nn.Sequential):
    """A shallow, wide, all-convolutional network: a stem on 2 x 2 patches, then stages that halve the map.

    After airbench94 (K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.1), its first layer
    learned rather than set to whiten. `scale` multiplies the class scores: maxima are large, and a network that starts
    out sure of itself loses its first epochs.
    """

    def __init__(
        self,
        stem: int = 24,
        widths: Sequence[int] = (64, 256, 256),
        scale: float = 0.125,
        num_classes: int = 10,
    ) -> None:
        stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, stem, 2), nn.GELU())]
        for before, width in zip((stem, *widths), widths, strict=False):
            stages.append(nn.Sequential(conv_bn(before, width, pool=True), conv_bn(width, width)))
        head = nn.Linear(widths[-1], num_classes, bias=False)
        super().__init__(*stages, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, num_classes) of images (N, 3, H, W)."""
        return super().forward(images) * self.scale
