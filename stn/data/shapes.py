"""A generated data set: ten figures on a textured background, each at a known, random pose."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from stn.data.decoding import check_memory
from stn.data.resident import ResidentDataModule
from stn.layers import Affine, figure_points, pixel_centres, sample

Outline = list[tuple[float, float]]


def circle(x: float, y: float, radius: float) -> Outline:
    """A circle as a polygon of 48 corners."""
    turns = [2 * math.pi * k / 48 for k in range(48)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


def heart() -> Outline:
    """The usual parametric heart, its point down."""
    turns = [2 * math.pi * k / 64 for k in range(64)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


def star() -> Outline:
    """A five-pointed star, one point up."""
    return [
        (radius * math.sin(math.pi * k / 5), -radius * math.cos(math.pi * k / 5))
        for k, radius in enumerate([1.0, 0.42] * 5)
    ]


# Upright figures in [-1, 1], y downwards: the polygons to fill, and those to cut out of them.
FIGURES: dict[str, tuple[list[Outline], list[Outline]]] = {
    "arrow": ([[(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)]], []),
    "crescent": ([circle(0, 0, 0.95)], [circle(0.45, 0, 0.75)]),
    "cross": ([[(-0.28, -0.95), (0.28, -0.95), (0.28, 0.95), (-0.28, 0.95)],
               [(-0.75, -0.6), (0.75, -0.6), (0.75, -0.1), (-0.75, -0.1)]], []),
    "ell": ([[(-0.7, -0.95), (-0.1, -0.95), (-0.1, 0.4), (0.8, 0.4), (0.8, 0.95), (-0.7, 0.95)]], []),
    "heart": ([heart()], []),
    "house": ([[(0, -0.95), (0.9, -0.1), (0.65, -0.1), (0.65, 0.9), (-0.65, 0.9), (-0.65, -0.1), (-0.9, -0.1)]],
              [[(-0.2, 0.25), (0.2, 0.25), (0.2, 0.9), (-0.2, 0.9)]]),
    "key": ([circle(0, -0.5, 0.48), [(-0.15, -0.2), (0.15, -0.2), (0.15, 1), (-0.15, 1)],
             [(0.1, 0.5), (0.55, 0.5), (0.55, 0.95), (0.1, 0.95)]], [circle(0, -0.5, 0.2)]),
    "star": ([star()], []),
    "tee": ([[(-0.85, -0.9), (0.85, -0.9), (0.85, -0.35), (0.28, -0.35), (0.28, 0.95), (-0.28, 0.95),
              (-0.28, -0.35), (-0.85, -0.35)]], []),
    "triangle": ([[(0, -0.95), (0.9, 0.85), (-0.9, 0.85)]], []),
}  # fmt: skip


def draw_figures(size: int) -> Tensor:
    """The upright figures as masks in [0, 1], (10, 1, size, size)."""
    masks = []
    for filled, cut in FIGURES.values():
        mask = Image.new("L", (size, size))
        brush = ImageDraw.Draw(mask)
        for outlines, value in ((filled, 255), (cut, 0)):
            for outline in outlines:
                brush.polygon([((x + 1) * size / 2, (y + 1) * size / 2) for x, y in outline], fill=value)
        masks.append(np.asarray(mask))
    return torch.from_numpy(np.stack(masks)).float()[:, None] / 255


def random_poses(count: int, rotation: float, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Random similarities that place an upright figure in the image, as affine θ (count, 6).

    rotation: the largest angle in degrees, in both directions. scale: the smallest and the largest, in fractions of the
    image. The shift keeps the figure's square inside the image, as long as it is not rotated.
    """
    draw = torch.rand(4, count, generator=generator)
    angle = (2 * draw[0] - 1) * math.radians(rotation)
    size = scale[0] + (scale[1] - scale[0]) * draw[1]
    shift_x, shift_y = (2 * draw[2:] - 1) * (1 - size)
    cos, sin = size * angle.cos(), size * angle.sin()
    return torch.stack((cos, -sin, shift_x, sin, cos, shift_y), dim=1)


def draw_shapes(labels: Tensor, poses: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draws the figures `labels` (N,) at `poses` (N, 6), coloured, on a texture: uint8 (N, 3, size, size)."""
    count, fine = len(labels), 2 * size
    upright = F.avg_pool2d(draw_figures(8 * size), 4)[labels]
    where = Affine()(Affine().inverse(poses), pixel_centres(fine, fine)).view(count, fine, fine, 2)
    mask = F.avg_pool2d(sample(upright, where, padding="zeros"), 2)
    ground = torch.rand(count, 3, size // 8 + 1, size // 8 + 1, generator=generator)
    ground = F.interpolate(ground, (size, size), mode="bicubic").mul(0.5).add(0.1)
    ground += 0.12 * torch.randn(ground.shape, generator=generator)
    # One bright and one dark channel make a saturated colour, which the background never has.
    colour = torch.rand(count, 3, generator=generator)
    order = torch.rand(count, 3, generator=generator).argsort(dim=1)
    colour = torch.where(order == 0, 0.95, torch.where(order == 1, 0.05, colour))[:, :, None, None]
    image = mask * colour + (1 - mask) * ground
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


class ShapesDataModule(ResidentDataModule):
    """Ten classes of coloured figures on a textured background at random poses; needs no files.

    train_images: how many images the training set has, those held out included.
    test_images: how many images the test set has.
    rotation: the largest angle in degrees, in both directions.
    min_scale: the smallest size of a figure, in fractions of the image.
    max_scale: the largest size of a figure, in fractions of the image.
    Raises ValueError for values out of range.

    `poses["train"]` and `poses["test"]` (N, 6) are in the order of `read`. They are the affine θ with which a
    transformer shows the figure upright and full size.
    """

    classes = tuple(FIGURES)

    def __init__(
        self,
        train_images: int = 10_000,
        test_images: int = 2_000,
        rotation: float = 60.0,
        min_scale: float = 0.4,
        max_scale: float = 0.8,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if train_images < 2 or test_images < 1:
            raise ValueError(f"train_images {train_images} and test_images {test_images} must be 2 and 1 or more")
        if not 0 < min_scale <= max_scale <= 1:
            raise ValueError(f"0 < min_scale <= max_scale <= 1 must hold, not {min_scale} and {max_scale}")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation must lie between 0 and 180 degrees, not {rotation}")
        check_memory(train_images + test_images, self.channels, self.image_size)
        self.count = {"train": train_images, "test": test_images}
        self.rotation, self.scale = rotation, (min_scale, max_scale)
        self.poses: dict[str, Tensor] = {}

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        split = "train" if train else "test"
        generator = torch.Generator().manual_seed(2 * self.split_seed + train)
        labels = torch.arange(self.count[split]) % len(FIGURES)
        self.poses[split] = random_poses(len(labels), self.rotation, self.scale, generator)
        self.figures[split] = Affine()(self.poses[split].double(), figure_points()).float()
        parts = zip(labels.split(1000), self.poses[split].split(1000), strict=True)
        return torch.cat([draw_shapes(*part, self.image_size, generator) for part in parts]), labels
