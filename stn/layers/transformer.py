"""The spatial transformer (Jaderberg et al. 2015, section 3)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.layers.sampling import Mode, Padding, check_sampling, is_traced, pixel_centres, sample, without_autocast
from stn.layers.warps import Affine, Warp, decompose

MOST_LOOKS = 16
LARGEST_OUTPUT = 1024  # pixels a side
LARGEST_SUPERSAMPLE = 8
LARGEST_THETA = 1e4  # far beyond any image; larger values may overflow


class NotFiniteError(ValueError):
    """θ is not finite: the training has diverged, or the image is not finite."""


class SpatialTransformer(nn.Module):
    """Localization -> warp -> sampling: reads an image or feature map (N, C, H, W) where the localization says.

    The localization maps the image to features (N, F), and has F as its attribute `out_features`. The transformer adds
    the last, linear layer, from features to θ. That layer starts with zero weights and the warp's identity as bias, so
    a new transformer changes nothing. θ, the points and the sampling are float32 under any autocast.

    warp: `Affine()` unless given.
    num_looks: above 1, the localization looks again at the warped image. The warps are composed, and the image is
        sampled once, from the original (Lin and Lucey 2017, "Inverse Compositional Spatial Transformer Networks").
    output_size: (height, width), or the side of a square; the input's unless given.
    supersample: each output pixel is the mean of supersample x supersample readings. Above 1 it prevents aliasing where
        the warp or the output size shrinks the image.
    append_theta: appends θ to the output as constant channels, for the layers that follow.
    classifier_gradient: how much of the gradient of what follows reaches θ, from 0 to 1; 0 for a
        pose that is learned from the truth, see `Warp.pose_loss`.
    mode, padding, align_corners, gather: see `sample`.
    Raises ValueError for values out of range, a localization without `out_features`, or a warp that is none.
    """

    def __init__(
        self,
        localization: nn.Module,
        warp: Warp | None = None,
        *,
        num_looks: int = 1,
        output_size: int | Sequence[int] | None = None,
        supersample: int = 1,
        append_theta: bool = False,
        classifier_gradient: float = 1.0,
        mode: Mode = "bilinear",
        padding: Padding = "border",
        align_corners: bool = False,
        gather: bool | None = None,
    ) -> None:
        super().__init__()
        check_sampling(mode, padding)
        if not (1 <= num_looks <= MOST_LOOKS and 1 <= supersample <= LARGEST_SUPERSAMPLE):
            raise ValueError(
                f"num_looks must lie between 1 and {MOST_LOOKS}, and supersample between 1 and {LARGEST_SUPERSAMPLE}, "
                f"not {num_looks} and {supersample}"
            )
        if not 0 <= classifier_gradient <= 1:
            raise ValueError(f"classifier_gradient must lie between 0 and 1, not {classifier_gradient}")
        features = getattr(localization, "out_features", None)
        if not isinstance(features, int):
            raise ValueError(
                f"the localization {type(localization).__name__} needs an attribute out_features, the number "
                "of features that it returns for an image"
            )
        self.localization = localization
        self.warp = Affine() if warp is None else checked_warp(warp)
        self.head = nn.Linear(features, self.warp.num_params)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(self.warp.identity())
        self.num_looks, self.supersample, self.append_theta = num_looks, supersample, append_theta
        self.classifier_gradient = classifier_gradient
        self.output_size = None if output_size is None else height_and_width(output_size)
        self.mode: Mode = mode
        self.padding: Padding = padding
        self.align_corners, self.gather = align_corners, gather

    def look(self, image: Tensor) -> Tensor:
        """θ (N, P) of one warp, from a single look at images (N, C, H, W)."""
        features = self.localization(image)
        with without_autocast(image.device):
            return self.head(features.to(self.head.weight.dtype))

    def theta(self, image: Tensor) -> Tensor:
        """θ (N, num_looks · P) for images (N, C, H, W): the parameters of every look, concatenated."""
        theta = self.look(image)
        for _ in range(1, self.num_looks):
            theta = torch.cat((theta, self.look(self.read(image, theta, *image.shape[2:]))), dim=1)
        return theta

    def to_input(self, theta: Tensor, points: Tensor) -> Tensor:
        """Maps points (M, 2) or (N, M, 2) of the output to the input: (N, M, 2), (x, y) in [-1, 1].

        Raises ValueError for a θ of another length, and NotFiniteError for one on a CPU that is not finite.
        """
        check_finite(theta)
        return self._to_input(theta, points)

    def _to_input(self, theta: Tensor, points: Tensor) -> Tensor:
        each = self.warp.num_params
        if theta.ndim != 2 or theta.shape[1] % each or theta.shape[1] == 0:
            raise ValueError(f"theta must be (N, {each}) for each look, not {tuple(theta.shape)}")
        with without_autocast(theta.device):
            # A point that is not finite would make F.grid_sample's gradient read beyond the image's memory on a CPU.
            theta = theta.nan_to_num(0.0).clamp(-LARGEST_THETA, LARGEST_THETA)
            # Each look warps the output of the look before, so the last look's warp acts on output points first.
            for part in reversed(theta.split(each, dim=1)):
                points = self.warp(part, points.to(theta.dtype))
            return points

    def to_output(self, theta: Tensor, points: Tensor) -> Tensor:
        """Maps points (M, 2) or (N, M, 2) of the input to the output: (N, M, 2), (x, y) in [-1, 1].

        A point is not finite where no inverse is found, see `Warp.invert`.
        """
        with without_autocast(theta.device):
            for part in theta.split(self.warp.num_params, dim=1):
                points = self.warp.invert(part, points.to(theta.dtype))
            return points

    def boxes_to_input(self, theta: Tensor, boxes: Tensor) -> Tensor:
        """Bounding boxes in the input of boxes (N, K, 4) in the output, (left, top, right, bottom) in [-1, 1]."""
        along = torch.linspace(0, 1, 9).to(boxes)
        zero, one = torch.zeros_like(along), torch.ones_like(along)
        border = torch.cat(
            [torch.stack(side, 1) for side in ((along, zero), (along, one), (zero, along), (one, along))]
        )
        low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
        points = self.to_input(theta, (low + (high - low) * border).flatten(1, 2)).unflatten(1, (boxes.shape[1], -1))
        return torch.cat((points.amin(dim=2), points.amax(dim=2)), dim=-1)

    def decompose(self, theta: Tensor) -> dict[str, Tensor]:
        """Rotation, scale and shift of θ (N, num_looks · P), see `Warp.decompose`."""
        return decompose(self.to_input, theta)

    def grid(self, theta: Tensor, height: int, width: int) -> Tensor:
        """The sampling grid of a height x width output: (N, height · supersample, width · supersample, 2)."""
        centres = pixel_centres(
            height, width, align_corners=self.align_corners, supersample=self.supersample, device=theta.device
        )
        return self._to_input(theta, centres).unflatten(1, (height * self.supersample, width * self.supersample))

    def read(self, image: Tensor, theta: Tensor, height: int, width: int) -> Tensor:
        """`image` (N, C, H, W) warped by θ to height x width."""
        grid = self.grid(theta, height, width)
        read = sample(
            image, grid, mode=self.mode, padding=self.padding, align_corners=self.align_corners, gather=self.gather
        )
        return F.avg_pool2d(read, self.supersample) if self.supersample > 1 else read

    def transform(self, image: Tensor, theta: Tensor) -> Tensor:
        """`image` (N, C, H, W) warped by a given θ (N, num_looks · P), in the output's size.

        Raises ValueError for a θ of another length, and NotFiniteError for one on a CPU that is not finite.
        """
        check_finite(theta)
        return self._transform(image, theta)

    def _transform(self, image: Tensor, theta: Tensor) -> Tensor:
        height, width = self.output_size or image.shape[2:]
        return self.read(image, theta, height, width)

    def _held(self, theta: Tensor) -> Tensor:
        """θ with the share `classifier_gradient` of its gradient."""
        share = self.classifier_gradient
        if share == 1:
            return theta
        return theta.detach() if share == 0 else share * theta + (1 - share) * theta.detach()

    def forward(self, image: Tensor, return_theta: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The warped image (N, C, h, w), with `append_theta` (N, C + num_looks · P, h, w); and θ on request."""
        if image.ndim != 4:
            raise ValueError(f"a spatial transformer takes (N, C, H, W), not {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"a spatial transformer takes floats, not {image.dtype}: divide pixels by 255")
        theta = self.theta(image)
        if not self.training:  # a training step must not wait for a result
            check_finite(theta)
        warped = self._transform(image, self._held(theta))
        if self.append_theta:
            channels = theta.to(warped.dtype)[:, :, None, None].expand(-1, -1, *warped.shape[2:])
            warped = torch.cat((warped, channels), dim=1)
        return (warped, theta) if return_theta else warped


def check_finite(theta: Tensor) -> None:
    """Raises NotFiniteError if θ on a CPU is not finite. On a GPU it is not checked, because that would synchronize."""
    if theta.device.type == "cpu" and not is_traced() and not theta.isfinite().all():
        raise NotFiniteError("theta must be finite, and is not: the training has diverged")


def checked_warp(warp: Warp) -> Warp:
    """`warp`, with a ValueError for a class in place of an object, and for what lacks a part of a warp."""
    if isinstance(warp, type):
        raise ValueError(f"warp must be an object such as Affine(), not the class {warp.__name__}")
    parts = {"num_params": "num_params", "identity": "identity()", "__call__": "the call warp(theta, points)"}
    missing = [name for part, name in parts.items() if not hasattr(warp, part)]
    if missing:
        kind, lacks = type(warp).__name__, " and ".join(missing)
        raise ValueError(f"warp must be a Warp such as Affine(), not an object of class {kind}, which lacks {lacks}")
    return warp


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """A size (height, width), or the side of a square, as (height, width), with a ValueError for anything else."""
    sides = size if isinstance(size, Sequence) else (size, size)
    fits = [isinstance(side, int) and side is not True and 0 < side <= LARGEST_OUTPUT for side in sides]
    if len(fits) != 2 or not all(fits):
        raise ValueError(
            f"output_size must be a whole number or (height, width), each from 1 to {LARGEST_OUTPUT}, not {size!r}"
        )
    return sides[0], sides[1]


class Parallel(nn.ModuleList):
    """Several transformers on the same image; their outputs are joined as channels: (N, K · C, h, w).

    They start with windows that tile the image, row by row, if their warp has windows (`Warp.window`): transformers
    that start alike learn the same region (Jaderberg et al. 2015, section 4.3, has up to four).
    Raises ValueError for no branches.
    """

    def __init__(self, branches: Sequence[SpatialTransformer]) -> None:
        if not branches:
            raise ValueError("branches must hold a transformer or more")
        super().__init__(branches)
        rows = math.isqrt(len(branches))
        columns = -(-len(branches) // rows)
        scale = (rows * columns) ** -0.5
        across, down = ([(1 - scale) * (2 * k / max(n - 1, 1) - (n > 1)) for k in range(n)] for n in (columns, rows))
        for index, transformer in enumerate(branches):
            x, y = across[index % columns], down[index // columns]
            with torch.no_grad():
                transformer.head.bias.copy_(transformer.warp.window(scale, x, y))

    def forward(self, image: Tensor) -> Tensor:
        """The outputs of all branches for images (N, C, H, W), joined along the channels."""
        return torch.cat([transformer(image) for transformer in self], dim=1)
