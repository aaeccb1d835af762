"""The classifiers that transformers are put into. Each maps (N, 3, size, size) to class scores (N, num_classes)."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.layers import FeatureLocalization, Parallel, SpatialTransformer, Warp


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
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
    ) -> None:
        if len(channels) != 2 or min(*channels, hidden) < 1:
            raise ValueError(
                f"channels must be two numbers and hidden one, 1 or more, not {list(channels)} and {hidden}"
            )
        first, second = channels
        size = size_after_pools(image_size, kernel=5, pools=2)
        super().__init__(
            nn.Sequential(nn.Conv2d(in_channels, first, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(first, second, 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
            nn.Flatten(),
            nn.Linear(second * size**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )


class LeNet5(nn.Sequential):
    """LeNet-5 on colour images (LeCun et al. 1998, with ReLU and max-pooling)."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, image_size: int = 32) -> None:
        size = size_after_pools(image_size, kernel=5, pools=2)
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


class Whitening(nn.Conv2d):
    """Fixed 2 x 2 convolution, (N, 3, H, W) -> (N, 24, H - 1, W - 1), of whitened patches and their negatives.

    Of several images side by side as channels, (N, 3 K, H, W), each is whitened alike, to 24 K channels.

    Coates and Ng 2011; fixed by the training images, before the first step, as in airbench94 (K. Jordan 2024,
    section 3.2). Until `fit` is called the filters are random.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(in_channels, 8 * in_channels, 2, groups=in_channels // 3)
        self.weight.requires_grad = False
        self.fitted: Tensor
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, images: Tensor, noise: float = 5e-4) -> None:
        """Sets the filters from normalized images (N, 3, H, W); directions of less variance than `noise` stay small."""
        moments = torch.zeros(12, 12, dtype=torch.float64)
        for part in images.split(50):
            patches = F.unfold(part, 2).mT.flatten(0, 1)
            moments += (patches.T @ patches / len(patches)).cpu() * (len(part) / len(images))
        variances, directions = torch.linalg.eigh(moments)
        filters = (directions / (variances + noise).sqrt()).T.reshape(-1, 3, 2, 2)
        self.weight.copy_(torch.cat((filters, -filters)).repeat(self.groups, 1, 1, 1))
        assert self.bias is not None
        self.bias.zero_()
        self.fitted.fill_(True)


class ConvNorm(nn.Sequential):
    """3 x 3 convolution that starts by handing its input on, max-pool by 2 if asked for, batch norm, GELU."""

    def __init__(self, in_channels: int, out_channels: int, *, pool: bool = False) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.dirac_(conv.weight[:in_channels])
        # No scale: the next convolution has it. Fast averages: a run is some thousand steps long.
        norm = nn.BatchNorm2d(out_channels, momentum=0.4)
        norm.weight.requires_grad = False
        super().__init__(conv, nn.MaxPool2d(2) if pool else nn.Identity(), norm, nn.GELU())


class Residual(nn.Sequential):
    """x + f(x), for the layers f."""

    def forward(self, features: Tensor) -> Tensor:
        """Of the shape of `features`."""
        return features + super().forward(features)


class GlobalMax(nn.Module):
    """The maximum over the map, (N, C, H, W) -> (N, C); the gradient of `nn.AdaptiveMaxPool2d` is random on CUDA."""

    def forward(self, features: Tensor) -> Tensor:
        """The maximum of each channel."""
        return features.amax(dim=(2, 3))


class Scale(nn.Module):
    """Its input times a number."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, scores: Tensor) -> Tensor:
        """Of the shape of `scores`."""
        return scores * self.by


class WideConvNet(nn.Sequential):
    """A shallow, wide, all-convolutional network: whitened 2 x 2 patches, then stages that halve the map.

    After airbench94 and airbench96 (K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, sections 3
    and 4). `convolutions` is how many each stage adds to the one that halves the map: 1, or 2 with a skip around
    them. `scale` multiplies the class scores: maxima are large, and a network that starts out sure of itself loses
    its first epochs.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        convolutions: Sequence[int] = (1, 1, 2),
        scale: float = 0.125,
        in_channels: int = 3,
        num_classes: int = 10,
    ) -> None:
        if len(widths) != len(convolutions) or not set(convolutions) <= {1, 2}:
            raise ValueError(
                f"convolutions must be 1 or 2 for each of the {len(widths)} widths, not {list(convolutions)}"
            )
        if min(widths) < 1:
            raise ValueError(f"widths must be 1 or more, not {list(widths)}")
        stem: list[nn.Module] = [Whitening(in_channels), nn.GELU()]
        stages: list[nn.Module] = []
        for before, width, count in zip((8 * in_channels, *widths), widths, convolutions, strict=False):
            halving = ConvNorm(before, width, pool=True)
            rest = [ConvNorm(width, width) for _ in range(count)]
            stages.append(nn.Sequential(*stem, halving, Residual(*rest) if count > 1 else rest[0]))
            stem = []
        head = nn.Sequential(nn.Linear(widths[-1], num_classes, bias=False), Scale(scale))
        super().__init__(*stages, GlobalMax(), head)


Placement = Literal["none", "input", "features", "deep", "parallel", "shared"]


def transformed(
    classifier: Callable[..., nn.Sequential],
    localization: Callable[..., nn.Module],
    warp: Warp,
    transformer: Callable[..., SpatialTransformer],
    placement: Placement = "input",
    image_size: int = 32,
) -> nn.Sequential:
    """A classifier with spatial transformers in it: its stages in order, the transformers among them by name.

    placement: "none"; "input"; "features", on the map that the first stage gives; "deep", on the input and on what the
    first and the second stage give; "parallel", two on the input, what they read side by side as channels; "shared", on
    the input, but looking at it by the classifier's own first stage, so that warps of the image are predicted from
    features without warping those (Finnveden et al. 2020, "Understanding when spatial transformer networks do not
    support invariance, and what to do about it").
    classifier: makes the classifier for `in_channels`, its first two parts being stages. localization: makes the
    network that looks at the image; a feature map has a `FeatureLocalization`. transformer: makes a transformer from a
    localization and the warp.
    """
    on_image: list[SpatialTransformer] = []
    if placement in ("input", "deep", "parallel"):
        on_image = [transformer(localization(), warp) for _ in range(2 if placement == "parallel" else 1)]
    stages = list(classifier(in_channels=3 * max(1, len(on_image))))
    if placement in ("features", "deep", "shared"):
        after_first = channels_of(nn.Sequential(*stages[:1]), image_size)
        after_second = channels_of(nn.Sequential(*stages[:2]), image_size)
    named: dict[str, nn.Module] = {}
    if on_image:
        named["transformer"] = Parallel(on_image) if placement == "parallel" else on_image[0]
    elif placement == "shared":
        named["transformer"] = transformer(Looking(stages[0], after_first), warp)
    if placement in ("features", "deep"):
        named["stage_1"] = stages.pop(0)
        named["transformer_1"] = transformer(FeatureLocalization(after_first), warp)
    if placement == "deep":
        named["stage_2"] = stages.pop(0)
        named["transformer_2"] = transformer(FeatureLocalization(after_second), warp)
    return sequential(**named, classifier=nn.Sequential(*stages))


class Looking(nn.Sequential):
    """A localization that looks at an image by the first stage of a classifier, which stays the classifier's."""

    def __init__(self, stage: nn.Module, channels: int) -> None:
        own = FeatureLocalization(channels)
        super().__init__(stage, own)
        self.out_features = own.out_features


@torch.no_grad()
def channels_of(stages: nn.Sequential, image_size: int) -> int:
    """How many channels `stages` make of an image."""
    images = torch.zeros(2, 3, image_size, image_size)
    features: Tensor = stages.eval()(images)
    stages.train()
    return features.shape[1]
