"""Localization networks: from an image to the features from which θ is regressed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stn.layers.sampling import is_traced, pixel_centres, without_autocast


class ConvLocalization(nn.Sequential):
    """Convolutions, each with max-pool 2 and ReLU, then one hidden layer: (N, C, size, size) -> (N, hidden).

    channels: the output channels of each convolution.
    kernels: the kernel size of each convolution.
    hidden: the features in the end.
    in_channels, image_size: of the images.
    shrink: first averages blocks of shrink x shrink pixels, since low resolution shows the pose at a fraction of the
        cost. Jaderberg et al. 2015, section 4.1, halve the image.
    Raises ValueError for values below 1, and when the image is too small for the kernels.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128),
        kernels: Sequence[int] = (7, 5),
        hidden: int = 256,
        in_channels: int = 3,
        image_size: int = 32,
        shrink: int = 1,
    ) -> None:
        if len(channels) != len(kernels):
            raise ValueError(f"channels {list(channels)} and kernels {list(kernels)} must be of one length")
        if min(*channels, *kernels, hidden, in_channels, image_size, shrink) < 1:
            raise ValueError(
                f"channels {list(channels)}, kernels {list(kernels)}, hidden {hidden}, in_channels {in_channels}, "
                f"image_size {image_size} and shrink {shrink} must be 1 or more"
            )
        stages: list[nn.Module] = [nn.AvgPool2d(shrink)] if shrink > 1 else []
        size, depth = image_size // shrink, in_channels
        for width, kernel in zip(channels, kernels, strict=True):
            stages += [nn.Conv2d(depth, width, kernel), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
            size, depth = (size - kernel + 1) // 2, width
        if size < 1:
            raise ValueError(f"image_size {image_size} is too small for kernels {list(kernels)} and shrink {shrink}")
        super().__init__(*stages, nn.Flatten(), nn.Linear(depth * size**2, hidden), nn.ReLU(inplace=True))
        self.out_features = hidden
        self.shape = (int(in_channels), int(image_size), int(image_size))

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, hidden) of images (N, C, size, size). Raises ValueError for images of another shape."""
        check_shape(image, self.shape)
        return super().forward(image)


def check_shape(image: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises ValueError for images (N, C, H, W) of another (C, H, W) than a localization was built for."""
    if not is_traced() and image.shape[1:] != shape:
        channels, size, _ = shape
        raise ValueError(
            f"the localization was built for images {shape}, in_channels={channels} and image_size={size}, and gets "
            f"{tuple(image.shape[1:])}"
        )


class FullyConnectedLocalization(nn.Sequential):
    """Linear layers with ReLU on the pixels: (N, C, size, size) -> (N, hidden[-1]).

    hidden: the features after each layer. Jaderberg et al. 2015, section 4.1, take three of 32.
    in_channels, image_size: of the images.
    Raises ValueError for values below 1.
    """

    def __init__(self, hidden: Sequence[int] = (32, 32, 32), in_channels: int = 3, image_size: int = 32) -> None:
        if not hidden or min(*hidden, in_channels, image_size) < 1:
            raise ValueError(
                f"hidden {list(hidden)}, in_channels {in_channels} and image_size {image_size} must be 1 or more"
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip((in_channels * image_size**2, *hidden), hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.out_features = hidden[-1]
        self.shape = (int(in_channels), int(image_size), int(image_size))

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, hidden[-1]) of images (N, C, size, size). Raises ValueError for images of another shape."""
        check_shape(image, self.shape)
        return super().forward(image)


class PoseLocalization(nn.Sequential):
    """Stages of two convolutions with batch norm, each of which halves the map: (N, C, H, W) of any size -> (N, F).

    It sees a pose in photographs, which two large convolutions without batch norm do not.

    widths: the channels of each stage.
    in_channels, image_size: of the images.
    shrink: first averages blocks of shrink x shrink pixels.
    cells: the last map is averaged over cells x cells parts, which become the features.
    Raises ValueError for values below 1, and when the image is too small for so many stages or cells.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        in_channels: int = 3,
        image_size: int = 32,
        shrink: int = 1,
        cells: int = 4,
    ) -> None:
        check_pose_sizes(widths, in_channels=in_channels, image_size=image_size, shrink=shrink, cells=cells)
        if cells > image_size:
            raise ValueError(f"cells must be at most the image_size of {image_size}, not {cells}")
        super().__init__(*pose_stages(widths, in_channels, shrink), CellMeans(cells), nn.Flatten())
        self.out_features = widths[-1] * cells**2


class KeypointLocalization(nn.Sequential):
    """As `PoseLocalization`, but its features are the places of keypoints: (N, C, H, W) of any size -> (N, 2 · points).

    It finds an object anywhere on a large canvas, since keypoints move with the object. Each is the mean place of a
    map, weighted by its softmax (Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies").

    widths, in_channels, image_size, shrink: see `PoseLocalization`.
    points: the number of keypoints.
    Raises ValueError for values below 1, and when the image is too small for so many stages.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        in_channels: int = 3,
        image_size: int = 32,
        shrink: int = 1,
        points: int = 16,
    ) -> None:
        check_pose_sizes(widths, in_channels=in_channels, image_size=image_size, shrink=shrink, points=points)
        stages = pose_stages(widths, in_channels, shrink)
        super().__init__(*stages, nn.Conv2d(widths[-1], points, 1), MeanPlaces(), nn.Flatten())
        self.out_features = 2 * points


def pose_stages(widths: Sequence[int], in_channels: int, shrink: int) -> list[nn.Module]:
    """Stages of two convolutions with batch norm, each of which halves the map, on an image shrunk at first."""
    stages: list[nn.Module] = [nn.AvgPool2d(shrink)] if shrink > 1 else []
    depth = in_channels
    for width in widths:
        for before, pool in ((depth, True), (width, False)):
            stages += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2)][: 1 + pool]
            stages += [nn.BatchNorm2d(width), nn.GELU()]
        depth = width
    return stages


def check_pose_sizes(widths: Sequence[int], *, in_channels: int, image_size: int, shrink: int, **last: int) -> None:
    """Raises ValueError for values below 1, and when the image is too small for so many stages."""
    named = {"in_channels": in_channels, "image_size": image_size, "shrink": shrink, **last}
    if not widths or min(*widths, *named.values()) < 1:
        said = ", ".join(f"{name} {value}" for name, value in named.items())
        raise ValueError(f"widths {list(widths)}, {said} must be 1 or more")
    if (image_size // shrink) >> len(widths) < 1:
        raise ValueError(f"image_size {image_size} is too small for {len(widths)} stages and shrink {shrink}")


class MeanPlaces(nn.Module):
    """The mean place of each channel of a map, weighted by its softmax."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2), (x, y) in [-1, 1]."""
        height, width = features.shape[2:]
        with without_autocast(features.device):  # bfloat16 has only 128 numbers between 0.5 and 1
            weights = features.float().flatten(2).softmax(dim=2)
            return weights @ pixel_centres(height, width, device=features.device)


class CellMeans(nn.Module):
    """Means over `cells` x `cells` parts of a map. Unlike `nn.AdaptiveAvgPool2d` it is deterministic on CUDA."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, cells, cells)."""
        rows, columns = (self.shares(size, features) for size in features.shape[2:])
        return rows @ features @ columns.mT

    def shares(self, size: int, like: Tensor) -> Tensor:
        """The weight of each of `size` pixels in the mean of each part: (cells, size)."""
        pixel = torch.arange(size, device=like.device)
        part = torch.arange(self.cells, device=like.device)[:, None]
        # Parts overlap by a pixel where `cells` does not divide `size`.
        inside = (pixel >= part * size // self.cells) & (pixel < -(-(part + 1) * size // self.cells))
        return (inside / inside.sum(dim=1, keepdim=True)).to(like.dtype)


class FeatureLocalization(nn.Sequential):
    """One convolution, means over parts of the map, one hidden layer: (N, C, H, W) of any size -> (N, hidden).

    in_channels: of the map. channels: of the convolution. cells: the map is averaged over cells x cells parts.
    Raises ValueError for values below 1.
    """

    def __init__(self, in_channels: int, channels: int = 32, cells: int = 4, hidden: int = 64) -> None:
        if min(in_channels, channels, cells, hidden) < 1:
            raise ValueError(
                f"in_channels {in_channels}, channels {channels}, cells {cells} and hidden {hidden} must be 1 or more"
            )
        super().__init__(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            CellMeans(cells),
            nn.Flatten(),
            nn.Linear(channels * cells**2, hidden),
            nn.ReLU(inplace=True),
        )
        self.out_features = hidden
