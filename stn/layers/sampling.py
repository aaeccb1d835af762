"""Reads an image at points (Jaderberg et al. 2015, section 3.3)."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["zeros", "border", "reflection"]


def check_padding(padding: str) -> None:
    """Raises ValueError unless `padding` is one of `Padding`."""
    if padding not in get_args(Padding):
        raise ValueError(f"padding must be one of {', '.join(get_args(Padding))}, not {padding!r}")


def pixel_centres(
    height: int, width: int, *, align_corners: bool = False, device: torch.device | None = None
) -> Tensor:
    """Centres of an image's pixels as (x, y) in [-1, 1], row by row: (height * width, 2), float32.

    The outermost centres lie at ±(1 - 1/width), or at ±1 with `align_corners`.
    """

    def axis(size: int) -> Tensor:
        last = 1.0 if align_corners and size > 1 else 1 - 1 / size
        return torch.linspace(-last, last, size, device=device)

    y, x = torch.meshgrid(axis(height), axis(width), indexing="ij")
    return torch.stack((x, y), dim=-1).view(-1, 2)


def sample(image: Tensor, points: Tensor, *, padding: Padding = "border", align_corners: bool = False) -> Tensor:
    """Bilinear reading of `image` (N, C, H, W) at `points` (N, h, w, 2): (N, C, h, w) of the image's dtype.

    Points beyond the image read its edge ("border"), its mirror image ("reflection") or 0 ("zeros"). Computed in
    float32 at least, also under autocast: a position in bfloat16 is off by up to a quarter of a pixel in 64.
    """
    check_padding(padding)
    if image.ndim != 4:
        raise ValueError(f"image must be (N, C, H, W), not {tuple(image.shape)}")
    dtype = torch.promote_types(image.dtype, torch.float32)
    # The CPU's sampler is about twice as slow on channels-last input, and returns contiguous output either way.
    # Autocast leaves it as it is: it takes the wider dtype of its inputs on a GPU and float32 on a CPU.
    read = F.grid_sample(
        image.to(dtype).contiguous(),
        points.to(dtype),
        mode="bilinear",
        padding_mode=padding,
        align_corners=align_corners,
    )
    return read.to(image.dtype)
