"""The spatial transformer (Jaderberg et al. 2015, section 3)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn.layers.sampling import Mode, Padding, check_sampling, pixel_centres, sample
from stn.layers.warps import Affine, Warp, decompose


class SpatialTransformer(nn.Module):
    """Localization -> warp -> sampling: an image or feature map (N, C, H, W) read where the localization says.

    `localization` maps the image to features (N, F) and has F as `out_features` (as `nn.Linear` has); the last,
    linear layer from F to θ is the transformer's own. It starts with zero weights and the warp's identity as bias, so
    a new transformer changes nothing. θ, the points and the sampling are float32 under any autocast.

    warp: affine unless given. looks: above 1, the localization looks again at what it made of the image, the warps are
    composed and the image is read once, from the original (Lin and Lucey 2017, "Inverse Compositional Spatial
    Transformer Networks"). output_size: (height, width), the input's unless given. samples: above 1, the mean of so
    many readings each way makes a pixel, against aliasing where the warp or the output size shrinks the image.
    append_theta: θ as constant channels after the image's, for the rest of the network. mode, padding, align_corners,
    gather: see `sample`.
    """

    def __init__(
        self,
        localization: nn.Module,
        warp: Warp | None = None,
        *,
        looks: int = 1,
        output_size: Sequence[int] | None = None,
        samples: int = 1,
        append_theta: bool = False,
        mode: Mode = "bilinear",
        padding: Padding = "border",
        align_corners: bool = False,
        gather: bool | None = None,
    ) -> None:
        super().__init__()
        check_sampling(mode, padding)
        if looks < 1 or samples < 1:
            raise ValueError(f"looks and samples must be 1 or more, not {looks} and {samples}")
        if output_size is not None and (len(output_size) != 2 or min(output_size) < 1):
            raise ValueError(f"output_size must be (height, width), each 1 or more, not {tuple(output_size)}")
        features = getattr(localization, "out_features", None)
        if not isinstance(features, int):
            raise ValueError(
                f"the localization {type(localization).__name__} needs an attribute out_features, the length of the "
                "feature vector it gives"
            )
        self.localization = localization
        self.warp = Affine() if warp is None else warp
        self.head = nn.Linear(features, self.warp.num_params)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(self.warp.identity())
        self.looks, self.samples, self.append_theta = looks, samples, append_theta
        self.output_size = None if output_size is None else (output_size[0], output_size[1])
        self.mode: Mode = mode
        self.padding: Padding = padding
        self.align_corners, self.gather = align_corners, gather

    def look(self, image: Tensor) -> Tensor:
        """What the localization makes of images (N, C, H, W): θ of one warp, (N, P)."""
        features = self.localization(image)
        with torch.autocast(image.device.type, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    def theta(self, image: Tensor) -> Tensor:
        """θ (N, looks · P) for images (N, C, H, W): the warps of all looks, side by side."""
        theta = self.look(image)
        for _ in range(1, self.looks):
            theta = torch.cat((theta, self.look(self.read(image, theta, *image.shape[2:]))), dim=1)
        return theta

    def to_input(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where in the input the output's points (M, 2) or (N, M, 2) are read: (N, M, 2), (x, y) in [-1, 1].

        Raises ValueError for a θ of another length or, on a CPU, one that is not finite.
        """
        check_finite(theta)
        return self._to_input(theta, points)

    def _to_input(self, theta: Tensor, points: Tensor) -> Tensor:
        each = self.warp.num_params
        if theta.ndim != 2 or theta.shape[1] % each or theta.shape[1] == 0:
            raise ValueError(f"theta must be (N, {each}) for each look, not {tuple(theta.shape)}")
        with torch.autocast(theta.device.type, enabled=False):
            # What was seen last was made last: its warp comes first on the way back to the original.
            for part in reversed(theta.split(each, dim=1)):
                points = self.warp(part, points.to(theta.dtype))
            return points

    def to_output(self, theta: Tensor, points: Tensor) -> Tensor:
        """Where in the output the input's points (M, 2) or (N, M, 2) come to lie: (N, M, 2), (x, y) in [-1, 1]."""
        with torch.autocast(theta.device.type, enabled=False):
            for part in theta.split(self.warp.num_params, dim=1):
                points = self.warp.invert(part, points.to(theta.dtype))
            return points

    def boxes_to_input(self, theta: Tensor, boxes: Tensor) -> Tensor:
        """What encloses, in the input, boxes (N, K, 4) of the output: (left, top, right, bottom) in [-1, 1]."""
        along = torch.linspace(0, 1, 9).to(boxes)
        zero, one = torch.zeros_like(along), torch.ones_like(along)
        border = torch.cat(
            [torch.stack(side, 1) for side in ((along, zero), (along, one), (zero, along), (one, along))]
        )
        low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
        points = self.to_input(theta, (low + (high - low) * border).flatten(1, 2)).unflatten(1, (boxes.shape[1], -1))
        return torch.cat((points.amin(dim=2), points.amax(dim=2)), dim=-1)

    def decompose(self, theta: Tensor) -> dict[str, Tensor]:
        """θ (N, looks · P) in terms a person reads, see `Warp.decompose`."""
        return decompose(self.to_input, theta)

    def grid(self, theta: Tensor, height: int, width: int) -> Tensor:
        """Where in the input each pixel of a height x width output is read, or each of its `samples`: (N, h, w, 2)."""
        centres = pixel_centres(
            height, width, align_corners=self.align_corners, samples=self.samples, device=theta.device
        )
        return self._to_input(theta, centres).unflatten(1, (height * self.samples, width * self.samples))

    def read(self, image: Tensor, theta: Tensor, height: int, width: int) -> Tensor:
        """`image` (N, C, H, W) warped by θ to height x width."""
        grid = self.grid(theta, height, width)
        read = sample(
            image, grid, mode=self.mode, padding=self.padding, align_corners=self.align_corners, gather=self.gather
        )
        return F.avg_pool2d(read, self.samples) if self.samples > 1 else read

    def transform(self, image: Tensor, theta: Tensor) -> Tensor:
        """`image` (N, C, H, W) warped by a given θ (N, looks · P), in the output's size.

        Raises ValueError for a θ of another length or, on a CPU, one that is not finite.
        """
        check_finite(theta)
        return self._transform(image, theta)

    def _transform(self, image: Tensor, theta: Tensor) -> Tensor:
        height, width = self.output_size or image.shape[2:]
        return self.read(image, theta, height, width)

    def forward(self, image: Tensor, return_theta: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The warped image, (N, C, h, w), or with `append_theta` (N, C + looks · P, h, w); and θ on request."""
        if image.ndim != 4:
            raise ValueError(f"a spatial transformer takes (N, C, H, W), not {tuple(image.shape)}")
        theta = self.theta(image)
        if not self.training:  # a step of training reads nothing back
            check_finite(theta)
        warped = self._transform(image, theta)
        if self.append_theta:
            channels = theta.to(warped.dtype)[:, :, None, None].expand(-1, -1, *warped.shape[2:])
            warped = torch.cat((warped, channels), dim=1)
        return (warped, theta) if return_theta else warped


def check_finite(theta: Tensor) -> None:
    """Raises ValueError for a θ on a CPU that is not finite; a GPU would have to be waited for."""
    if theta.device.type == "cpu" and not torch.compiler.is_compiling() and not theta.isfinite().all():
        raise ValueError("theta must be finite, but has values that are not: the training has diverged")


class Parallel(nn.ModuleList):
    """Several transformers on the same image, what they read side by side as channels: (N, K · C, h, w).

    They start with windows that tile the image, in the order of reading, so that they do not all learn the same one
    (Jaderberg et al. 2015, section 4.3, has up to four).
    """

    def __init__(self, transformers: Sequence[SpatialTransformer]) -> None:
        super().__init__(transformers)
        rows = math.isqrt(len(transformers))
        columns = -(-len(transformers) // rows)
        scale = (rows * columns) ** -0.5
        across, down = ([(1 - scale) * (2 * k / max(n - 1, 1) - (n > 1)) for k in range(n)] for n in (columns, rows))
        for index, transformer in enumerate(transformers):
            x, y = across[index % columns], down[index // columns]
            with torch.no_grad():
                transformer.head.bias.copy_(transformer.warp.window(scale, x, y))

    def forward(self, image: Tensor) -> Tensor:
        """What each reads of images (N, C, H, W), joined along the channels."""
        return torch.cat([transformer(image) for transformer in self], dim=1)


def transformers(network: nn.Module) -> dict[str, SpatialTransformer]:
    """Every spatial transformer in a network by its name, in order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, SpatialTransformer)}


class Seen(NamedTuple):
    """What a transformer did in one forward pass: θ (N, looks · P), for an input of height x width pixels."""

    theta: Tensor
    height: int
    width: int


@contextmanager
def recording(network: nn.Module) -> Iterator[dict[str, list[Seen]]]:
    """While it is open, what every transformer in a network does, by the transformer's name, pass by pass.

    What is compiled runs as it is written meanwhile, so that it can be watched.
    """
    found = transformers(network)
    seen: dict[str, list[Seen]] = {name: [] for name in found}
    hooks = []
    for name, module in found.items():
        looks: list[Tensor] = []

        def after_look(head: nn.Module, features: object, theta: Tensor, looks: list[Tensor] = looks) -> None:
            looks.append(theta.detach())

        def after_pass(
            module: nn.Module, inputs: tuple[Tensor], output: object, name: str = name, looks: list[Tensor] = looks
        ) -> None:
            height, width = inputs[0].shape[2:]
            seen[name].append(Seen(torch.cat(looks, dim=1), height, width))
            looks.clear()

        hooks += [module.head.register_forward_hook(after_look), module.register_forward_hook(after_pass)]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def thetas(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """θ of every transformer in a network, by the transformer's name, for a batch of images (N, C, H, W)."""
    with recording(network) as seen:
        network(images)
    return {name: passes[-1].theta for name, passes in seen.items()}
