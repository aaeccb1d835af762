"""Reads an image at points (Jaderberg et al. 2015, section 3.3)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["nearest", "bilinear", "bicubic"]
Border = Literal["zeros", "border", "reflection"]
Padding = Border | Sequence[float]

FARTHEST = 1e4  # half-widths, far beyond any image


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turns autocast off on a device that has it. Meta tensors, which are shapes without numbers, have none."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def is_traced() -> bool:
    """Whether torch records what it computes as a graph, which keeps only one side of each `if`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


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
    """Centres of an image's pixels as (x, y) in [-1, 1], row by row: (height · width, 2), float32.

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

    It computes in float32 or more, also under autocast: a position in bfloat16 is wrong by up to a quarter of a pixel
    in 64.

    points: a coordinate that is NaN counts as 0, the middle; one beyond ±1e4 counts as ±1e4. They have no gradient.
    mode: how values between pixels are found: "bilinear", "bicubic", or "nearest", the value of the nearest pixel.
    padding: what points beyond the image read: "border", its edge; "reflection", its mirror image; "zeros"; or a number
        for each channel.
    align_corners: whether ±1 is the centre of the outermost pixel, rather than its edge.
    gather: reads by plain indexing instead of `F.grid_sample`. It is slower, but can be differentiated twice, and is
        deterministic on CUDA. None: where `torch.use_deterministic_algorithms` asks for it.
    Raises ValueError for another mode or padding, or an image of another shape.
    """
    check_sampling(mode, padding)
    if image.ndim != 4:
        raise ValueError(f"image must be (N, C, H, W), not {tuple(image.shape)}")
    if not isinstance(padding, str):
        if len(padding) != image.shape[1]:
            raise ValueError(f"padding must be {image.shape[1]} numbers, one for each channel, not {list(padding)}")
        # The weights of every mode sum to 1. So beyond the border (image - fill) reads 0, and the result is fill.
        fill = torch.tensor(padding, dtype=image.dtype, device=image.device).view(-1, 1, 1)
        shifted = sample(image - fill, points, mode=mode, padding="zeros", align_corners=align_corners, gather=gather)
        return shifted + fill
    if gather is None:
        gather = must_gather(image)
    dtype = torch.promote_types(image.dtype, torch.float32)
    # On a CPU, sampling is about twice as slow for channels-last input, and its output is contiguous anyway.
    # Autocast changes nothing here: it takes the wider dtype of the inputs on a GPU, and float32 on a CPU.
    read, points = image.to(dtype).contiguous(), bounded(points.to(dtype))
    if gather:
        return gathered(read, points, mode, padding, align_corners).to(image.dtype)
    sampled = F.grid_sample(read, points, mode=mode, padding_mode=padding, align_corners=align_corners)
    return sampled.to(image.dtype)


def bounded(points: Tensor) -> Tensor:
    """`points` with NaN as 0 and the rest within ±`FARTHEST`: other values end the process in `F.grid_sample`."""
    on_cpu = points.device.type == "cpu" and points.numel() > 0
    if on_cpu and not is_traced() and not torch._C._are_functorch_transforms_active():
        # A look at the extremes costs a CPU a tenth of what bounding does. It cannot be taken while tracing, and makes
        # a GPU wait.
        seen = points.detach()
        # The grids of many warps are planes of x and of y, of which the extremes are found faster than through strides.
        low, high = (seen if seen.is_contiguous() else seen.movedim(-1, 1)).aminmax()
        if low >= -FARTHEST and high <= FARTHEST:
            return points
    return points.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)


def must_gather(image: Tensor) -> bool:
    """Whether the gradient of `F.grid_sample` would break the determinism that torch is asked for."""
    return image.is_cuda and torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()


def gathered(image: Tensor, points: Tensor, mode: Mode, padding: Border, align_corners: bool) -> Tensor:
    """As `F.grid_sample`, by `torch.gather` alone."""
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
    """The pixels read at coordinates `where` in [-1, 1] along one axis: pairs (index, weight), of its shape."""
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
    """Weight of a pixel at a distance of 0 to 2 pixels, by Keys' cubic convolution with a = -0.75, as in PyTorch."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)
