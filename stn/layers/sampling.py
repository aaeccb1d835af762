"""Reads an image at points (Jaderberg et al. 2015, section 3.3)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["nearest", "bilinear", "bicubic"]
Border = Literal["zeros", "border", "reflection"]
Padding = Border | Sequence[float]


def check_sampling(mode: str, padding: Padding) -> None:
    """Raises ValueError unless `mode` is one of `Mode`, and `padding` one of `Border` or a number for each channel."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if isinstance(padding, str) and padding not in get_args(Border):
        choices = ", ".join(get_args(Border))
        raise ValueError(f"padding must be one of {choices}, or a number for each channel, not {padding!r}")


def pixel_centres(
    height: int,
    width: int,
    *,
    align_corners: bool = False,
    supersample: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Centres of an image's pixels as (x, y) in [-1, 1], row by row: (height * width, 2), float32.

    The outermost centres lie at ±(1 - 1/width), or at ±1 with `align_corners`. With `supersample` S above 1, each pixel
    is divided into S x S parts, and the centres are those of the parts: (height · S · width · S, 2).
    Raises ValueError for a size or `supersample` below 1.
    """
    if min(height, width, supersample) < 1:
        raise ValueError(f"height, width and supersample must be 1 or more, not {height}, {width} and {supersample}")

    def axis(size: int) -> Tensor:
        last = 1.0 if align_corners and size > 1 else 1 - 1 / size
        centres = torch.linspace(-last, last, size, device=device)
        if supersample == 1:
            return centres
        pitch = 2 / (size - 1) if align_corners and size > 1 else 2 / size
        parts = (torch.arange(supersample, device=device) + 0.5) / supersample - 0.5
        return (centres[:, None] + pitch * parts).flatten()

    y, x = torch.meshgrid(axis(height), axis(width), indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2)


def sample(
    image: Tensor,
    points: Tensor,
    *,
    mode: Mode = "bilinear",
    padding: Padding = "border",
    align_corners: bool = False,
    gather: bool | None = None,
) -> Tensor:
    """Reads `image` (N, C, H, W) at `points` (N, h, w, 2): (N, C, h, w) of the image's dtype.

    Points beyond the image read its edge ("border"), its mirror image ("reflection"), 0 ("zeros") or, where `padding`
    is a number for each channel, that. Computed in float32 at least, also under autocast: a position in bfloat16 is off
    by up to a quarter of a pixel in 64.

    gather: by plain indexing instead of `F.grid_sample`, which is slower, but deterministic on CUDA under
    `torch.use_deterministic_algorithms` and differentiable twice; None for: where the first is needed.
    """
    check_sampling(mode, padding)
    if image.ndim != 4:
        raise ValueError(f"image must be (N, C, H, W), not {tuple(image.shape)}")
    if not isinstance(padding, str):
        if len(padding) != image.shape[1]:
            raise ValueError(f"padding must be {image.shape[1]} numbers, one for each channel, not {list(padding)}")
        # Every mode's weights sum to 1: what is read of (image - fill) beyond the border is 0, so fill in the end.
        fill = torch.tensor(padding, dtype=image.dtype, device=image.device).view(-1, 1, 1)
        shifted = sample(image - fill, points, mode=mode, padding="zeros", align_corners=align_corners, gather=gather)
        return shifted + fill
    if gather is None:
        gather = must_gather(image)
    dtype = torch.promote_types(image.dtype, torch.float32)
    # The CPU's sampler is about twice as slow on channels-last input, and returns contiguous output either way.
    # Autocast leaves it as it is: it takes the wider dtype of its inputs on a GPU and float32 on a CPU.
    read = image.to(dtype).contiguous()
    if gather:
        return gathered(read, points.to(dtype), mode, padding, align_corners).to(image.dtype)
    sampled = F.grid_sample(read, points.to(dtype), mode=mode, padding_mode=padding, align_corners=align_corners)
    return sampled.to(image.dtype)


def must_gather(image: Tensor) -> bool:
    """Whether reading `image` by `F.grid_sample` would have a gradient that must be deterministic, and is not."""
    return image.is_cuda and torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()


def gathered(image: Tensor, points: Tensor, mode: Mode, padding: Border, align_corners: bool) -> Tensor:
    """What `F.grid_sample` returns, made of `torch.gather` alone."""
    channels, (height, width) = image.shape[1], image.shape[2:]
    columns = taps(points[..., 0], width, mode, padding, align_corners)
    rows = taps(points[..., 1], height, mode, padding, align_corners)
    flat = image.flatten(2)
    total = torch.zeros((), dtype=image.dtype, device=image.device)
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = (row * width + column).flatten(1)[:, None].expand(-1, channels, -1)
            values = flat.gather(2, index).unflatten(2, points.shape[1:3])
            total = total + values * (row_weight * column_weight)[:, None]
    return total


def taps(where: Tensor, size: int, mode: Mode, padding: Border, align_corners: bool) -> list[tuple[Tensor, Tensor]]:
    """Along one axis, which pixels are read at coordinates `where` in [-1, 1], and their weights: (index, weight)s."""
    pixel = (where + 1) / 2 * (size - 1) if align_corners else ((where + 1) * size - 1) / 2
    first = pixel.detach().round() if mode == "nearest" else pixel.detach().floor()
    part = pixel - first
    if mode == "nearest":
        weights = {0: torch.ones_like(part)}
    elif mode == "bilinear":
        weights = {0: 1 - part, 1: part}
    else:
        weights = {offset: cubic((part - offset).abs()) for offset in (-1, 0, 1, 2)}
    found = []
    for offset, weight in weights.items():
        index = first + offset
        if padding == "zeros":
            weight = torch.where((index >= 0) & (index < size), weight, 0)
        elif padding == "reflection" and size > 1:
            period, low = (2 * (size - 1), 0.0) if align_corners else (2 * size, -0.5)
            index = low + period / 2 - ((index - low).remainder(period) - period / 2).abs()
        found.append((index.clamp(0, size - 1).long(), weight))
    return found


def cubic(distance: Tensor) -> Tensor:
    """Weight of a pixel at a distance from 0 to 2 pixels: Keys' cubic convolution with a = -0.75, as in PyTorch."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)
