"""The classifiers that `placement` puts transformers into, and their layers.

Each takes in_channels, image_size and num_classes, and maps (N, C, size, size) to class scores (N, num_classes).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def size_after_pools(image_size: int, kernels: Sequence[int]) -> int:
    """Side of the feature map after unpadded convolutions, each followed by a max-pool by 2.

    Raises ValueError if the image is too small.
    """
    size = image_size
    for kernel in kernels:
        size = (size - kernel + 1) // 2
    if size < 1:
        raise ValueError(f"image_size {image_size} is too small for convolutions with kernels {list(kernels)}")
    return size


class ConvNet(nn.Sequential):
    """Two convolutions and two linear layers with dropout, as in PyTorch's spatial transformer tutorial.

    channels, kernels: of the two convolutions.
    hidden: the features between the two linear layers; 0 for a single linear layer.
    dropout: the share that is set to 0 in training, of the channels of the second convolution and of the features.
    Raises ValueError for values out of range.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        kernels: Sequence[int] = (5, 5),
        hidden: int = 1024,
        dropout: float = 0.5,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> None:
        if len(channels) != 2 or len(kernels) != 2 or min(*channels, *kernels) < 1 or hidden < 0:
            raise ValueError(
                "channels and kernels must be two numbers each, 1 or more, and hidden 0 or more, not "
                f"{list(channels)}, {list(kernels)} and {hidden}"
            )
        features = channels[1] * size_after_pools(image_size, kernels) ** 2
        first, second = (
            nn.Conv2d(before, width, kernel)
            for before, width, kernel in zip((in_channels, channels[0]), channels, kernels, strict=True)
        )
        between: list[nn.Module] = []
        if hidden:
            between, features = [nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)], hidden
        super().__init__(
            nn.Sequential(first, nn.MaxPool2d(2), nn.ReLU(inplace=True)),
            nn.Sequential(second, nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
            nn.Flatten(),
            *between,
            nn.Linear(features, num_classes),
        )


class FullyConnected(nn.Sequential):
    """Linear layers with ReLU between them, on the pixels.

    hidden: the features after each layer but the last.
    Raises ValueError for fewer than two hidden layers, or values below 1.
    """

    def __init__(
        self, hidden: Sequence[int] = (256, 256), in_channels: int = 3, num_classes: int = 10, image_size: int = 32
    ) -> None:
        if len(hidden) < 2 or min(*hidden, in_channels, image_size) < 1:
            raise ValueError(
                f"hidden must be two numbers or more, and in_channels and image_size one each, all 1 or more, not "
                f"{list(hidden)}, {in_channels} and {image_size}"
            )
        features = in_channels * image_size**2
        layers = [
            nn.Sequential(nn.Linear(before, after), nn.ReLU(inplace=True))
            for before, after in zip((features, *hidden), hidden, strict=False)
        ]
        layers[0].insert(0, nn.Flatten())
        super().__init__(*layers, nn.Linear(hidden[-1], num_classes))


class LeNet5(nn.Sequential):
    """LeNet-5 (LeCun et al. 1998), with ReLU and max-pooling."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, image_size: int = 32) -> None:
        size = size_after_pools(image_size, (5, 5))
        super().__init__(
            nn.Sequential(nn.Conv2d(in_channels, 6, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
            nn.Flatten(),
            nn.Linear(16 * size**2, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )


class Normalization(nn.Module):
    """Pixels (N, C, H, W), uint8 or floats in [0, 1], to floats of mean 0 and deviation 1 in each channel.

    `mean` and `std` are those of each channel for values in [0, 1]; until `fit` is called they are 0 and 1.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def fit(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets the mean and the deviation of each channel."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.tensor(values).view_as(buffer))

    def forward(self, images: Tensor) -> Tensor:
        """Returns a tensor of the shape of `images`, in the dtype of the buffers."""
        if images.is_floating_point():
            return (images - self.mean) / self.std
        return images.to(self.mean.dtype).sub_(self.mean * 255).div_(self.std * 255)

    def undo(self, images: Tensor) -> Tensor:
        """The pixels, as floats in [0, 1], of normalized images (N, C, H, W)."""
        return images * self.std + self.mean


class Whitening(nn.Conv2d):
    """Fixed 2 x 2 convolution that whitens patches, with each filter in both signs: (N, C, H, W) -> (N, 8 C, H-1, W-1).

    It is fitted to the training images before the first step, as in airbench94 (Coates and Ng 2011; K. Jordan 2024,
    section 3.2). Until then the filters are random.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels, 8 * in_channels, 2)
        self.weight.requires_grad = False
        self.fitted: Tensor
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, images: Tensor, noise: float = 5e-4) -> None:
        """Sets the filters from normalized images (N, c, H, W).

        noise: directions with a smaller variance are hardly amplified.
        If the input has K images joined as channels, C = K c, each is whitened by the same filters. Channels beyond
        those images keep their random filters.
        """
        channels = images.shape[1]
        moments = torch.zeros(4 * channels, 4 * channels, dtype=torch.float64)
        for part in images.split(50):
            patches = F.unfold(part, 2).mT.flatten(0, 1)
            moments += (patches.T @ patches / len(patches)).cpu() * (len(part) / len(images))
        variances, directions = torch.linalg.eigh(moments)
        filters = (directions / (variances + noise).sqrt()).T.reshape(-1, channels, 2, 2)
        filters = torch.cat((filters, -filters))
        for first in range(0, self.in_channels - channels + 1, channels):
            rows = self.weight[8 * first : 8 * (first + channels)].zero_()
            rows[:, first : first + channels] = filters
        assert self.bias is not None
        self.bias.zero_()
        self.fitted.fill_(True)


class ConvNorm(nn.Sequential):
    """3 x 3 convolution that starts as the identity, max-pool by 2 if `pool`, batch norm without scale, GELU."""

    def __init__(self, in_channels: int, out_channels: int, *, pool: bool = False) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.dirac_(conv.weight[:in_channels])
        # No scale: the next convolution can scale. High momentum: a run has only some thousand steps.
        norm = nn.BatchNorm2d(out_channels, momentum=0.4)
        norm.weight.requires_grad = False
        super().__init__(conv, nn.MaxPool2d(2) if pool else nn.Identity(), norm, nn.GELU())


class Residual(nn.Sequential):
    """x + f(x), for the layers f."""

    def forward(self, features: Tensor) -> Tensor:
        """Returns a tensor of the shape of `features`."""
        return features + super().forward(features)


class GlobalMax(nn.Module):
    """The maximum over the map, (N, C, H, W) -> (N, C). Unlike `nn.AdaptiveMaxPool2d` it is deterministic on CUDA."""

    def forward(self, features: Tensor) -> Tensor:
        """The maximum of each channel."""
        if torch.compiler.is_compiling():
            # The compiler makes the features anew in the backward pass, in another precision, and the gradient of amax
            # looks for the maximum among them: it finds none under bfloat16, and is NaN.
            return features.flatten(2).max(dim=2).values
        return features.amax(dim=(2, 3))


class Scale(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, scores: Tensor) -> Tensor:
        """Returns a tensor of the shape of `scores`."""
        return scores * self.factor


class WideConvNet(nn.Sequential):
    """A shallow, wide, all-convolutional network: whitened 2 x 2 patches, then stages that halve the map.

    After airbench94 and airbench96 (K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, sections 3
    and 4).

    widths: channels of each stage.
    convolutions: how many each stage has after the one that halves the map: 1, or 2 with a skip connection.
    scale: multiplies the class scores. Maxima over the map are large, and large scores at the start waste the first
        epochs.
    Raises ValueError for values out of range, or an image too small for so many stages.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        convolutions: Sequence[int] = (1, 1, 2),
        scale: float = 0.125,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> None:
        if not widths or len(widths) != len(convolutions) or not set(convolutions) <= {1, 2}:
            raise ValueError(
                f"convolutions must be 1 or 2 for each of the {len(widths)} widths, not {list(convolutions)}"
            )
        if min(widths) < 1:
            raise ValueError(f"widths must be 1 or more, not {list(widths)}")
        if (image_size - 1) >> len(widths) < 1:
            raise ValueError(f"image_size {image_size} is too small for {len(widths)} stages that halve it")
        stem: list[nn.Module] = [Whitening(in_channels), nn.GELU()]
        stages: list[nn.Module] = []
        for before, width, count in zip((8 * in_channels, *widths), widths, convolutions, strict=False):
            halving = ConvNorm(before, width, pool=True)
            rest = [ConvNorm(width, width) for _ in range(count)]
            stages.append(nn.Sequential(*stem, halving, Residual(*rest) if count > 1 else rest[0]))
            stem = []
        head = nn.Sequential(nn.Linear(widths[-1], num_classes, bias=False), Scale(scale))
        super().__init__(*stages, GlobalMax(), head)
